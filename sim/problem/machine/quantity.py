"""A number that knows its unit and where it comes from, so that a prediction can say what it rests on."""

import math
import re
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Never, Self

from traces.errors import InputError, check_choice, check_keys, shown


class Basis(StrEnum):
    """How a number came to be known, from the best to the weakest for predicting one machine."""

    MEASURED = "measured"  # on a machine of this kind
    FITTED = "fitted"  # chosen so that a model meets published or measured runs
    DATASHEET = "datasheet"  # the maker's own figure, or arithmetic on it
    ASSUMED = "assumed"  # a usual value; replace it when you can


_SIZES = {
    "B": 1.0,
    **{f"{letter}B": 1e3**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024.0**power for power, letter in enumerate("KMGT", 1)},
}


class Dimension(Enum):
    """What kind of amount a field holds: in words, its usual unit, all units with their SI size, and its limits.

    Limits are in the SI base unit, and far from any machine: a modem's line, and a thousand times what racks do.
    """

    SIZE = "a size", "GB", _SIZES, (1.0, 1e18)
    KEPT = "a size, or nothing", "GB", _SIZES, (0.0, 1e18)
    RATE = "a bandwidth", "GB/s", {f"{unit}/s": scale for unit, scale in _SIZES.items()}, (1e3, 1e18)
    COMPUTE = (
        "a compute rate",
        "TFLOPS",
        {f"{letter}FLOPS": 1e3**power for power, letter in enumerate(["", *"KMGTP"])},
        (1e6, 1e21),
    )
    POWER = "a power", "W", {"W": 1.0, "mW": 1e-3, "kW": 1e3}, (0.0, 1e6)
    PER_BYTE = "an energy a byte", "pJ/B", {"J/B": 1.0, "nJ/B": 1e-9, "pJ/B": 1e-12, "pJ/bit": 8e-12}, (0.0, 1e-3)
    TIME = "a time", "us", {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}, (0.0, 3600.0)
    SHARE = "a share", "1", {"1": 1.0}, (1e-9, 1.0)
    RATIO = "a ratio", "1", {"1": 1.0}, (1e-6, 1e6)

    def __init__(self, what: str, usual_unit: str, units: Mapping[str, float], within: tuple[float, float]) -> None:
        self.what, self.units, self.within = what, units, within
        self.base_unit = "" if units.keys() == {"1"} else f" {next(unit for unit in units if units[unit] == 1)}"
        text = "0.5" if usual_unit == "1" else f"0.5 {usual_unit}"
        full = f'{{ value = 0.5, unit = "{usual_unit}", basis = "assumed", source = "..." }}'
        self.how_to_give = f'give it as {full}, or as a text, "{text}"'

    def unit_of(self, text: str) -> str | None:
        """The unit that a person means: in all small letters, too, where that is no other; None if there is none."""
        same = [unit for unit in self.units if text == unit or (text.islower() and text == unit.lower())]
        return same[0] if same else None


_SCALES = {unit: scale for dimension in Dimension for unit, scale in dimension.units.items()}
_KEYS = ("value", "unit", "basis", "source")
_TEXT = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\s\d.].*)?")

NO_SOURCE = "given as a text, without a source"


class Quantity(float):
    """A float in the SI base unit (B, B/s, FLOP/s, s, W, J/B, 1) that remembers how it was given.

    It takes part in arithmetic as the float it is; `value` and `unit` are as given ("300" and "GB/s"),
    `basis` and `source` say how it is known.
    """

    __slots__ = ("basis", "source", "unit", "value")

    value: float
    unit: str
    basis: Basis
    source: str

    def __new__(cls, value: float, unit: str, basis: Basis = Basis.ASSUMED, source: str = "given by caller") -> Self:
        """Make a quantity of `value` in `unit`. Raises InputError for a unit that does not exist."""
        if unit not in _SCALES:
            raise InputError(f"unknown unit {shown(unit)}; allowed: {', '.join(_SCALES)}")
        self = super().__new__(cls, value * _SCALES[unit])
        for name, content in zip(_KEYS, (value, unit, Basis(basis), source), strict=True):
            object.__setattr__(self, name, content)
        return self

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError(f"a Quantity cannot be changed: {name}")

    def __reduce__(self) -> tuple[type[Self], tuple[float, str, Basis, str]]:
        return type(self), (self.value, self.unit, self.basis, self.source)

    def __repr__(self) -> str:
        return f"Quantity({self.text}, {self.basis})"

    @property
    def text(self) -> str:
        """The number as it was given, with its unit: `300 GB/s`."""
        return f"{self.value:.6g}" if self.unit == "1" else f"{self.value:.6g} {self.unit}"

    def replaced(self, si_value: float, source: str, basis: Basis = Basis.ASSUMED) -> Self:
        """Return the same field with another value (in the SI base unit), in the same unit."""
        return type(self)(si_value / _SCALES[self.unit], self.unit, basis, source)

    def known(self, basis: Basis, source: str) -> Self:
        """Return the same number, known in another way."""
        return type(self)(self.value, self.unit, basis, source)

    def to_dict(self) -> dict[str, object]:
        """Return the table that `parse` reads."""
        return {"value": self.value, "unit": self.unit, "basis": self.basis.value, "source": self.source}

    @classmethod
    def of_text(cls, text: str, field: str, dimension: Dimension, source: str = NO_SOURCE) -> Self:
        """Read `64 GB`. Raises InputError that starts with the dotted `field`."""
        found = _TEXT.fullmatch(text.strip())
        if found is None or not abs(float(found[1])) < math.inf:
            raise InputError(f"{field}: {shown(text)} is not {dimension.what}; {dimension.how_to_give}")
        given = (found[2] or "1").strip()
        unit = dimension.unit_of(given)
        if unit is None:
            units = ", ".join(dimension.units)
            what = f"unknown unit {shown(given)}" if found[2] else f"{shown(text)} has no unit"
            raise InputError(f"{field}: {what}; {dimension.what} is given in {units}")
        return cls(float(found[1]), unit, Basis.ASSUMED, source)

    @classmethod
    def parse(cls, table: object, field: str, dimension: Dimension) -> Self:
        """Read `{ value, unit, basis, source }` or `64 GB`. Raises InputError that starts with the dotted `field`."""
        if isinstance(table, str):
            return cls.of_text(table, field, dimension)
        if not isinstance(table, Mapping):
            raise InputError(f"{field}: {shown(table)} is not a quantity; {dimension.how_to_give}")
        check_keys(table, _KEYS, _KEYS, field, dimension.how_to_give)
        value, unit, basis, source = (table[key] for key in _KEYS)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise InputError(f"{field}: the value {shown(value)} is not a finite number")
        if not isinstance(unit, str) or unit not in dimension.units:
            raise InputError(
                f"{field}: unknown unit {shown(unit)}; {dimension.what} is given in {', '.join(dimension.units)}"
            )
        check_choice(f"{field}.basis", basis, Basis)
        if not isinstance(source, str) or not source.strip():
            raise InputError(f"{field}: the source {shown(source)} is empty; say where the number comes from")
        return cls(float(value), unit, Basis(basis), source)
