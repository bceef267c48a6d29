"""How quantisers name modules: exactly, by the end or the beginning of a name, by wildcards, by regular expressions."""

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from functools import lru_cache

from sim.problem.widths.modules import Module

Matches = Callable[[Module], bool]
"""Whether a module is one of those that a list names."""

LINEAR = "linear"
"""The class of all matrices but the embedding."""

_IN_A_LARGER_MODEL = re.compile(r"(model(\\?\.))?language_model(\\?\.)(model(\\?\.))?")
"""What stands before the names of a language model that is a part of a larger one."""
_WILD = re.compile(r"[*?\[\\^$+(|]")


def matching(patterns: Iterable[str]) -> Matches:
    """What matches any of them. A module counts by any name that checkpoints give it."""
    found = tuple(dict.fromkeys(_IN_A_LARGER_MODEL.sub(r"model\g<3>", one) for one in patterns))
    plain = frozenset(one for one in found if not one.startswith("re:") and not _WILD.search(one))
    wild = tuple(compiled for one in found if one not in plain for compiled in _compiled(one))
    all_linear = any(one.lower() == LINEAR for one in plain)

    def matches(module: Module) -> bool:
        if all_linear and module.kind != "embedding":
            return True
        return any(_is_in(plain, name) or any(one.match(name) for one in wild) for name in module.names)

    return matches


def _is_in(plain: frozenset[str], name: str) -> bool:
    """Whether a plain name is this one, the beginning of it or the end, at the borders between modules."""
    if not plain:
        return False
    parts = name.split(".")
    beginnings = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    if any(one in plain for one in beginnings):
        return True
    return any(".".join(parts[start:end]) in plain for start in range(1, len(parts)) for end in _ends(start, parts))


def _ends(start: int, parts: list[str]) -> range:
    """A name that stands in the middle, such as `self_attn` or `mlp.experts`, means all that is below it."""
    return range(start + 1, len(parts) + 1)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    """A pattern as a regular expression, which `re:` says, or as that and as one of wildcards, if it can be read."""
    expression = pattern.removeprefix("re:")
    texts = [expression] if expression != pattern else [translate(pattern), f"(?:{pattern})(?:\\.|$)"]
    found = []
    for text in texts:
        try:
            found.append(re.compile(text))
        except re.error:
            continue
    return tuple(found)
