"""Sizes that nobody read: what a family that is not known has, and its numbers would be without.

A family whose code was read has its fields in the tables. Of any other one, a number that was passed over may be the
width of something that is stored or computed, so it is named, not guessed at.
"""

from collections.abc import Iterator, Mapping, Set
from fnmatch import fnmatchcase

from sim.problem.model.reading.families import HARMLESS
from sim.problem.model.reading.fields import Fields
from traces.errors import InputError

FEW = 6
"""Names that one line tells."""


def check_all_read(fields: Fields, model_type: str) -> None:
    """Refuse a configuration with sizes that were not read. Raises InputError with their names."""
    unread = sorted(_unread(fields.own, fields.noted))
    if not unread:
        return
    more = f" and {len(unread) - FEW} more" if len(unread) > FEW else ""
    raise InputError(
        f"model type {model_type or '(not given)'} is not known, and these fields of its configuration with a size "
        f"are not read: {', '.join(unread[:FEW])}{more}"
    )


def _unread(values: Mapping[str, object], noted: Set[str], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = above + name
        if path in noted and not (isinstance(value, Mapping) and any(one.startswith(path + ".") for one in noted)):
            continue
        if any(fnmatchcase(name.lower(), pattern) for pattern in HARMLESS):
            continue
        if isinstance(value, Mapping):
            yield from _unread(value, noted, path + ".")
        elif _has_size(value):
            yield path


def _has_size(value: object) -> bool:
    """Whole numbers above 1, alone, in a list, or as a text."""
    if isinstance(value, list):
        return any(_has_size(one) or isinstance(one, str) for one in value) or len(set(map(str, value))) > 1
    if isinstance(value, str):
        return value.replace(",", "").replace(" ", "").isdigit()
    return isinstance(value, int) and not isinstance(value, bool) and value > 1
