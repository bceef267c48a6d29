"""The axes of a sweep: which settings take which values, read from texts such as `hardware.link.h2d=8..64x8`.

    NAME=V1,V2,...             each of these values
    NAME=FROM..TOxCOUNT        COUNT values from FROM to TO, evenly spaced
    NAME*=...                  factors on the machine's own number (of `hardware.` only)
    NAME+NAME*=...             several settings together, each with the same value
    LABEL:NAME=...             a shorter name for the column of the rows

Numbers of the machine are in the unit that its file gives them in, or in one of their own: `hardware.link.h2d[GiB/s]`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from sim.problem import Dimension, Hardware, Policy, WidthsApart, check_weight_bits
from sim.schedule import Place
from traces.errors import InputError, error_prefix, nearest, shown

Value = str | int | float | bool | None
"""One value of a setting."""

HARDWARE, POLICY = "hardware.", "policy."
POLICY_FIELDS = (*(field.name for field in fields(Policy)), "num_micro_batches")
FORM = "NAME=V1,V2 or NAME=FROM..TOxCOUNT, with *= instead of = to multiply"

MOST_VALUES = 10_000
"""Of an axis; a point takes a tenth of a second and more."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_AXIS = re.compile(r"(?:(?P<label>[^:=]+):)?(?P<names>[^:=]+?)(?P<factor>\*?)=(?P<values>.*)", re.DOTALL)
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?:x(\d+))?")
_PAIR = re.compile(r"(lognormal:[^,]*),")
_WITH_UNIT = re.compile(r"(.+)\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that an axis sets. `scale` takes a number of the machine to its SI base unit; factors have none."""

    name: str
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """Settings that take one value after another, together."""

    label: str
    settings: tuple[Setting, ...]
    values: tuple[Value, ...]
    factor: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(setting.name for setting in self.settings)


def parse_axes(texts: Sequence[str], hardware: Hardware) -> tuple[Axis, ...]:
    """Read the axes of a sweep. Numbers of the machine have the units of `hardware` where none is given.

    Raises InputError, one line, for an axis that cannot be read, and for two that set the same.
    """
    axes = tuple(parse_axis(text, hardware) for text in texts)
    names = [name for axis in axes for name in axis.names]
    for repeated in (*_repeated(names), *_repeated([axis.label for axis in axes])):
        raise InputError(f"--axis: {repeated} is set twice; give all its values in one axis")
    if {"prompt_len", "workload"} <= set(names):
        raise InputError("--axis: prompt_len stands instead of a workload; sweep one of them")
    return axes


def parse_axis(text: str, hardware: Hardware) -> Axis:
    """Read one axis. Raises InputError with what is allowed, and the nearest name where one is unknown."""
    found = _AXIS.fullmatch(text)
    if found is None:
        raise InputError(f"--axis {shown(text)}: not an axis; give {FORM}")
    factor = bool(found["factor"])
    settings = tuple(_setting(name.strip(), factor, hardware) for name in found["names"].split("+"))
    label = (found["label"] or found["names"]).strip() + ("" if found["label"] or not factor else "*")
    reads = [_as_factor if factor else _reader(setting.name) for setting in settings]
    words = _words(found["values"], label, numeric=str not in reads)
    values, *_ = [tuple(_read(word, label, read) for word in words) for read in reads]  # all must take them
    for repeated in _repeated(values):
        raise InputError(f"--axis {label}: the value {repeated} is given twice")
    return Axis(label, settings, values, factor)


def _setting(name: str, factor: bool, hardware: Hardware) -> Setting:
    with_unit = _WITH_UNIT.fullmatch(name)
    name, unit = with_unit.groups() if with_unit else (name, None)
    if name.startswith(HARDWARE):
        scale = _scale(name, unit, hardware)
        return Setting(name, None if factor else scale)
    if factor:
        raise InputError(f"--axis {name}*=: only numbers of the machine ({HARDWARE}link.h2d, ...) can be multiplied")
    if unit is not None:
        raise InputError(f"--axis {name}[{unit}]: only numbers of the machine ({HARDWARE}link.h2d, ...) have units")
    known = [*_READERS, *(POLICY + field for field in POLICY_FIELDS)]
    if name not in known:
        machine = [HARDWARE + path for path, _ in hardware.quantities()]
        raise InputError(
            f"--axis {name}: no such setting{_nearest(name, [*known, *machine])}; known: {', '.join(known)}, "
            f"and every number of the machine as {HARDWARE}link.h2d (`python -m sim list {hardware.name}` shows them)"
        )
    return Setting(name)


def _scale(name: str, unit: str | None, hardware: Hardware) -> float:
    """The size of the unit that the setting's values are in."""
    try:
        own = hardware.value(name.removeprefix(HARDWARE))
    except InputError:
        known = [HARDWARE + path for path, _ in hardware.quantities()]
        raise InputError(
            f"--axis {name}: {hardware.name} has no such number{_nearest(name, known)}; "
            f"`python -m sim list {hardware.name}` shows them"
        ) from None
    units = next(dimension.units for dimension in Dimension if own.unit in dimension.units)
    if unit is not None and unit not in units:
        raise InputError(f"--axis {name}[{unit}]: it is given in {', '.join(units)}")
    return units[unit or own.unit]


def _nearest(name: str, known: Sequence[str]) -> str:
    """The names that end so, else the nearest."""
    ends = [one for one in known if one.endswith(f".{name.rpartition('.')[2]}")]
    return f"; did you mean {' or '.join(ends[:3])}?" if ends else nearest(name, known)


def _words(text: str, label: str, numeric: bool) -> list[str]:
    """The values as texts, a range spelt out."""
    span = _RANGE.fullmatch(text.strip()) if numeric else None
    if span is None:
        words = [word.replace("\0", ",").strip() for word in _PAIR.sub(r"\1\0", text).split(",")]
        if not all(words):
            raise InputError(f"--axis {label}={text}: a value is missing; give {FORM}")
        return words
    first, last, count = float(span[1]), float(span[2]), int(span[3] or 0)
    if count > MOST_VALUES:
        raise InputError(f"--axis {label}={text}: {count:,} values are too many; give at most {MOST_VALUES:,}")
    if count < 2:
        raise InputError(f"--axis {label}={text}: say how many values, at least 2, as in {span[1]}..{span[2]}x5")
    return [f"{first + (last - first) * at / (count - 1):.12g}" for at in range(count)]


def _read(word: str, label: str, read: Callable[[str], Value]) -> Value:
    try:
        return read(word)
    except ValueError as error:
        raise InputError(f"--axis {label}: {shown(word)} is {error}") from None


def _reader(name: str) -> Callable[[str], Value]:
    if name.startswith(HARDWARE):
        return _as_number
    return _READERS.get(name) or _POLICY_READERS.get(name.removeprefix(POLICY), _as_share)


def _number(
    what: str, allowed: Callable[[float], bool] = lambda _: True, form: str = _NUMBER, kind: type[float] = float
) -> Callable[[str], Value]:
    """A reader of numbers; `what` says which are allowed."""

    def read(word: str) -> Value:
        if not re.fullmatch(form, word) or not allowed(kind(word)):
            raise ValueError(f"not {what}")
        return kind(word)

    return read


def _word(what: str, values: Mapping[str, Value]) -> Callable[[str], Value]:
    """A reader of a few words; `what` says what any other is."""

    def read(word: str) -> Value:
        if word not in values:
            raise ValueError(what)
        return values[word]

    return read


_as_number = _number("a number")
_as_count = _number("a whole number of at least 1", lambda number: number >= 1, r"\+?\d+", int)
_as_factor = _number("a factor; give a number above 0", lambda number: number > 0)
_as_share = _number("a share from 0 to 1", lambda number: 0 <= number <= 1)
_as_flag = _word("neither true nor false", {"true": True, "false": False})
_as_place = _word(f"not where attention runs; give {' or '.join(Place)}", {place.value: place.value for place in Place})


def _as_requests(word: str) -> Value:
    """How many, or the file that holds them."""
    return _as_count(word) if re.fullmatch(r"[-+\d]+", word) else word


def _as_share_or_flag(word: str) -> Value:
    """A share; true is all of it and false nothing."""
    return _as_share({"true": "1", "false": "0"}.get(word, word))


def _as_widths(word: str) -> Value:
    """A width, a name of GGUF files, or kinds and their widths, which a sign of addition joins."""
    if re.fullmatch(_NUMBER, word):
        return float(word)
    with error_prefix("--axis "):
        found = check_weight_bits("policy.weight_bits", word)
    return str(found) if isinstance(found, WidthsApart) else found


def _or_none(read: Callable[[str], Value]) -> Callable[[str], Value]:
    return lambda word: None if word == "none" else read(word)


_READERS: dict[str, Callable[[str], Value]] = {
    **dict.fromkeys(("model", "hardware", "workload", "schedule", "routing"), str),
    **dict.fromkeys(("gen_len", "prompt_len"), _as_count),
    "padded": _as_flag,
    **dict.fromkeys(("arrivals", "gen_lens", "prompt_lens", "priority"), str),
    **dict.fromkeys(("prefill_chunk", "prompt_batches", "block_tokens"), _as_count),
    **dict.fromkeys(("ttft", "tpot"), _as_number),
    "requests": _as_requests,
    "seed": _number("a whole number from 0 on", form=r"\d+", kind=int),
    "preempt": _as_flag,
}
_POLICY_READERS: dict[str, Callable[[str], Value]] = {
    **dict.fromkeys(("batch_size", "micro_batch_size", "num_micro_batches"), _as_count),
    "attention": _as_place,
    "pages": _or_none(_as_count),
    "pin_weights": _as_share_or_flag,
    "weight_bits": _or_none(_as_widths),
    "kv_bits": _or_none(_as_number),
}


def _repeated(items: Sequence[Any]) -> list[Any]:
    return [item for at, item in enumerate(items) if item in items[:at]]


def points(axes: Sequence[Axis]) -> Iterator[tuple[Value, ...]]:
    """Every combination of the axes' values, the last axis fastest."""
    return product(*(axis.values for axis in axes))
