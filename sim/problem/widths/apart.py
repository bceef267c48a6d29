"""Widths that a plan sets apart from those of its checkpoint: a number, some kinds by name, or a name of GGUF files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from sim.problem.widths.gguf_names import FILE_NAMES, TYPE_BITS, file_name
from sim.problem.widths.widths import KINDS, Widths
from traces.errors import InputError, check_range, nearest, shown

MIN_BITS, MAX_BITS = 1.0, 32.0

REST = "rest"
"""All kinds that are not named, but routers and norms, which quantisers leave as they are."""

FORMS = "a width such as 4.5, widths by kind such as experts=4.5,rest=8, or a name of GGUF files such as Q4_K_M"


@dataclass(frozen=True, slots=True)
class WidthsApart:
    """The kinds of tensors whose width is set, in bits; the others keep their own."""

    experts: float | None = None
    attention: float | None = None
    shared: float | None = None
    dense: float | None = None
    router: float | None = None
    embedding: float | None = None
    head: float | None = None

    def over(self, widths: Widths) -> Widths:
        """These widths where they are set, the others where not."""
        return replace(widths, **self.to_dict())

    def to_dict(self) -> dict[str, float]:
        """Those that are set."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def __str__(self) -> str:
        return ",".join(f"{kind}={bits:g}" for kind, bits in self.to_dict().items())


WeightBits = float | str | WidthsApart
"""A number is the width of routed experts; a text is a name of GGUF files."""


def check_weight_bits(name: str, value: object) -> WeightBits | None:
    """What is meant by a value of a file or a line of commands. Raises InputError."""
    if value is None or isinstance(value, WidthsApart):
        return value
    if isinstance(value, Mapping):
        return _apart(name, value)
    if not isinstance(value, str):
        return check_range(name, value, MIN_BITS, MAX_BITS, "a width in bits")
    if "=" in value:
        parts = [part.partition("=") for part in re.split("[,+]", value) if part.strip()]
        kinds = [kind.strip() for kind, _, _ in parts]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise InputError(f"{name}: {shown(value)} gives {shown(twice)} twice; give it once")
        return _apart(name, {kind: bits.strip() for kind, (_, _, bits) in zip(kinds, parts, strict=True)})
    found = file_name(value.strip())
    if found is not None:
        return found
    try:
        return check_range(name, float(value), MIN_BITS, MAX_BITS, "a width in bits")
    except ValueError:
        known = ", ".join(FILE_NAMES)
        hint = nearest(value.strip().upper(), FILE_NAMES)
        raise InputError(f"{name}: {shown(value)} is no width{hint}; give {FORMS} ({known})") from None


def weight_bits_text(value: WeightBits) -> str:
    """How a person writes it."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _apart(name: str, given: Mapping[str, object]) -> WeightBits:
    """Widths by kind. Where only routed experts are named that is the width of these."""
    unknown = next((kind for kind in given if kind not in (*KINDS, REST)), None)
    if unknown is not None or not given:
        hint = nearest(str(unknown), (*KINDS, REST))
        raise InputError(f"{name}: {shown(unknown)} is no kind of tensor{hint}; known are {', '.join((*KINDS, REST))}")
    bits = {kind: _bits(f"{name}: {kind}", one) for kind, one in given.items()}
    rest = bits.pop(REST, None)
    if rest is not None:
        bits = {**dict.fromkeys((kind for kind in KINDS if kind != "router"), rest), **bits}
    return bits["experts"] if list(bits) == ["experts"] else WidthsApart(**bits)


def _bits(name: str, value: object) -> float:
    """A width, or that of a type of GGUF tensors."""
    if isinstance(value, str):
        if value.upper() in TYPE_BITS:
            return float(TYPE_BITS[value.upper()])
        try:
            value = float(value)
        except ValueError:
            types = ", ".join(TYPE_BITS)
            raise InputError(f"{name}: {shown(value)} is no width; give bits such as 4.5, or one of {types}") from None
    return check_range(name, value, MIN_BITS, MAX_BITS, "a width in bits")
