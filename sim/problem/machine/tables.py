"""Dataclasses of quantities, parts within parts: checked when they are made, written as tables, and read back."""

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Self, get_args, get_origin, get_type_hints

from sim.problem.machine.quantity import Dimension, Quantity
from traces.errors import InputError, check_keys, error_prefix, shown

_SUFFIXES = {
    "_bytes_per_s": Dimension.RATE,
    "_flops_per_s": Dimension.COMPUTE,
    "_kept_bytes": Dimension.KEPT,
    "_bytes": Dimension.SIZE,
    "_j_per_byte": Dimension.PER_BYTE,
    "_w": Dimension.POWER,
    "_s": Dimension.TIME,
}


@cache
def _key(field_name: str) -> tuple[str, Dimension]:
    """Split `h2d_bytes_per_s` into its name in files (`h2d`) and its dimension; a ratio keeps its suffix."""
    if field_name.endswith("_ratio"):
        return field_name, Dimension.RATIO
    suffix = next((one for one in _SUFFIXES if field_name.endswith(one)), "")
    return field_name.removesuffix(suffix), _SUFFIXES.get(suffix, Dimension.SHARE)


@dataclass(frozen=True, slots=True)
class Part:
    """What all parts have in common: their quantities are checked when they are made. Raises InputError."""

    def __post_init__(self) -> None:
        for field, (key, dimension) in _keys(type(self)).items():
            value = getattr(self, field)
            if not isinstance(value, float):
                continue
            least, most = dimension.within
            if not least <= value <= most:
                given = value.text if isinstance(value, Quantity) else f"{value:g}"
                raise InputError(f"{key}: {given} is not allowed; it must be {_rule(value, dimension)}")

    @classmethod
    def from_dict(cls, table: object, path: str = "") -> Self:
        """Build it from the table of its file. Raises InputError that starts with the dotted field, `path` first."""
        dot, keys = f"{path}." if path else "", {key: field for field, (key, _) in _keys(cls).items()}
        if not isinstance(table, Mapping):
            raise InputError(f"{path}: {shown(table)} is not a table of {', '.join(keys)}")
        hints = get_type_hints(cls)
        optional = {key for key, name in keys.items() if _may_lack(hints[name])}
        missing = [key for key in keys if key not in optional and key not in table]
        first = keys[missing[0]] if missing else ""
        hint = _key(first)[1].how_to_give if hints.get(first) is Quantity else ""
        check_keys(table, keys, missing, path, hint)
        values = {keys[key]: _value(hints[keys[key]], keys[key], table[key], dot + key) for key in table}
        with error_prefix(dot):
            return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the table of its file; `from_dict` gives the same part back."""
        content = {key: getattr(self, field) for field, (key, _) in _keys(type(self)).items()}
        return {
            key: _written(value) for key, value in content.items() if value is not False and value not in (None, ())
        }

    def quantities(self, dot: str = "") -> Iterator[tuple[str, Quantity]]:
        """Yield every number with its dotted name: `link.h2d`, `device.gemm.at_tokens[0].time_ratio`."""
        for field, (key, _) in _keys(type(self)).items():
            value = getattr(self, field)
            if isinstance(value, Quantity):
                yield dot + key, value
            elif isinstance(value, Part):
                yield from value.quantities(f"{dot}{key}.")
            elif isinstance(value, tuple):
                for at, one in enumerate(value):
                    yield from one.quantities(f"{dot}{key}[{at}].")

    def replaced(self, path: str, value: Quantity) -> Self:
        """Return the part with another number at a dotted name that `quantities` gives."""
        first, _, rest = path.partition(".")
        key, _, index = first.removesuffix("]").partition("[")
        name = next(field for field, (known, _) in _keys(type(self)).items() if known == key)
        inner = getattr(self, name)
        if not rest:
            changed: object = value
        elif index:
            changed = tuple(one.replaced(rest, value) if at == int(index) else one for at, one in enumerate(inner))
        else:
            changed = inner.replaced(rest, value)
        return replace(self, **{name: changed})

    def multiplied(self, factors: Mapping[str, float], dot: str = "") -> Self:
        """Return the part with many numbers at once multiplied, by dotted name, within what each may be."""
        changed: dict[str, Any] = {}
        for field, (key, dimension) in _keys(type(self)).items():
            value, path = getattr(self, field), dot + key
            if isinstance(value, Quantity) and path in factors:
                least, most = dimension.within
                si_value = min(max(value * factors[path], least), most)
                changed[field] = value.replaced(si_value, f"{factors[path]:.3g} × {value.source}", value.basis)
            elif isinstance(value, Part):
                changed[field] = value.multiplied(factors, f"{path}.")
            elif isinstance(value, tuple):
                changed[field] = tuple(one.multiplied(factors, f"{path}[{at}].") for at, one in enumerate(value))
        return replace(self, **changed) if changed else self

    @classmethod
    def numbers(cls, dot: str = "") -> Iterator[tuple[str, Dimension | None]]:
        """Yield the dotted name of all that a table can hold, but lists, with its dimension; None of what has none."""
        hints = get_type_hints(cls)
        for field, (key, dimension) in _keys(cls).items():
            kind = _without_none(hints[field])
            if get_origin(kind) is tuple:
                continue
            if issubclass(kind, Part):
                yield from kind.numbers(f"{dot}{key}.")
            else:
                yield dot + key, dimension if kind is Quantity else None


def _without_none(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is types.UnionType else hint


def _may_lack(hint: Any) -> bool:
    return hint is bool or get_origin(hint) in (types.UnionType, tuple)


def _rule(value: float, dimension: Dimension) -> str:
    """What a number of this kind must be that is not."""
    if dimension is Dimension.SHARE:
        return "above 0 and at most 1"
    least, most = dimension.within
    if value <= 0 or math.isnan(value):
        return "above 0" if least else "0 or more"
    unit = dimension.base_unit
    return f"at least {least:g}{unit}" if value < least else f"at most {most:g}{unit}"


def _keys(part: type[Part]) -> dict[str, tuple[str, Dimension]]:
    """Per field of a part, its name in files and its dimension."""
    return {field.name: _key(field.name) for field in fields(part)}


def _value(kind: type, name: str, content: object, path: str) -> object:
    """Read one field of a table as what its annotation asks for."""
    kind = _without_none(kind)
    if get_origin(kind) is tuple:
        if not isinstance(content, list):
            raise InputError(f"{path}: not a list of tables; each starts with [[{path}]]")
        return tuple(get_args(kind)[0].from_dict(one, f"{path}[{at}]") for at, one in enumerate(content))
    if kind is Quantity:
        return Quantity.parse(content, path, _key(name)[1])
    if issubclass(kind, Part):
        return kind.from_dict(content, path)
    if not isinstance(content, kind) or (isinstance(content, bool) and kind is not bool):
        raise InputError(f"{path}: {shown(content)} is not {_WORDS[kind]}")
    return content


_WORDS: dict[type, str] = {bool: "true or false", int: "a whole number", str: "a text"}


def _written(value: Any) -> object:
    """A field's value as its file has it."""
    if isinstance(value, tuple):
        return [one.to_dict() for one in value]
    return value.to_dict() if isinstance(value, Part | Quantity) else value
