"""Dataclasses of quantities, parts within parts: checked when they are made, written as tables, and read back."""

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sim.problem.machine.quantity import Dimension, Quantity, how_to_give
from traces.errors import InputError, check_keys, error_prefix

_SUFFIXES = {
    "_bytes_per_s": Dimension.RATE,
    "_flops_per_s": Dimension.COMPUTE,
    "_bytes": Dimension.SIZE,
    "_s": Dimension.TIME,
}


def _key(field_name: str) -> tuple[str, Dimension]:
    """Split `h2d_bytes_per_s` into its name in files (`h2d`) and its dimension; no suffix means a share.

    A ratio keeps its suffix.
    """
    if field_name.endswith("_ratio"):
        return field_name, Dimension.RATIO
    for suffix, dimension in _SUFFIXES.items():
        if field_name.endswith(suffix):
            return field_name.removesuffix(suffix), dimension
    return field_name, Dimension.SHARE


@dataclass(frozen=True, slots=True)
class Part:
    """What all parts have in common: their quantities are checked when they are made. Raises InputError."""

    def __post_init__(self) -> None:
        for key, dimension, value in self._own_quantities():
            if dimension is Dimension.SHARE:
                allowed, rule = 0 < value <= 1, "above 0 and at most 1"
            elif dimension is Dimension.TIME:
                allowed, rule = 0 <= value < math.inf, "0 or more"
            else:
                allowed, rule = 0 < value < math.inf, "above 0"
            if not allowed:
                given = value.text if isinstance(value, Quantity) else f"{value:g}"
                raise InputError(f"{key}: {given} is not allowed; it must be {rule}")

    def _own_quantities(self) -> Iterator[tuple[str, Dimension, float]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                yield (*_key(field.name), value)


_P = TypeVar("_P", bound=Part)


def build(part: type[_P], table: object, path: str) -> _P:
    """Build the dataclass `part` from a table. Raises InputError that starts with the dotted `path` of the table."""
    dot = f"{path}." if path else ""
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: {table!r} is not a table of {', '.join(_key(f.name)[0] for f in fields(part))}")
    hints = get_type_hints(part)
    keys = {_key(field.name)[0]: field.name for field in fields(part)}
    optional = {key for key, name in keys.items() if get_origin(hints[name]) in (types.UnionType, tuple)}
    missing = [key for key in keys if key not in optional and key not in table]
    hint = how_to_give(_key(keys[missing[0]])[1]) if missing and hints[keys[missing[0]]] is Quantity else ""
    check_keys(table, keys, missing, path, hint)
    values = {keys[key]: _value(hints[keys[key]], keys[key], table[key], dot + key) for key in table}
    with error_prefix(dot):
        return part(**values)


def _value(kind: type, name: str, content: object, path: str) -> object:
    """Read one field of a table as what its annotation asks for."""
    if get_origin(kind) is types.UnionType:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        if not isinstance(content, list):
            raise InputError(f"{path}: not a list of tables; each starts with [[{path}]]")
        return tuple(build(get_args(kind)[0], one, f"{path}[{at}]") for at, one in enumerate(content))
    if kind is Quantity:
        return Quantity.parse(content, path, _key(name)[1])
    if issubclass(kind, Part):
        return build(kind, content, path)
    if isinstance(content, bool) or not isinstance(content, kind):
        raise InputError(f"{path}: {content!r} is not {'a whole number' if kind is int else 'a text'}")
    return content


def tables(part: Part) -> dict[str, Any]:
    """The tables that `build` makes the same part from."""
    content = {_key(field.name)[0]: getattr(part, field.name) for field in fields(part)}
    return {key: _written(value) for key, value in content.items() if value not in (None, ())}


def _written(value: Any) -> object:
    """A field's value as its file has it."""
    if isinstance(value, Quantity):
        return value.to_dict()
    if isinstance(value, tuple):
        return [tables(one) for one in value]
    return tables(value) if isinstance(value, Part) else value


def walk(part: Part, dot: str = "") -> Iterator[tuple[str, Quantity]]:
    """Every number with its dotted path, which starts with `dot`: `link.h2d`, `device.gemm.at_tokens[0].time_ratio`."""
    for field in fields(part):
        value, path = getattr(part, field.name), dot + _key(field.name)[0]
        if isinstance(value, Quantity):
            yield path, value
        elif isinstance(value, Part):
            yield from walk(value, f"{path}.")
        elif isinstance(value, tuple):
            for at, one in enumerate(value):
                yield from walk(one, f"{path}[{at}].")


def replaced(part: _P, path: str, value: Quantity) -> _P:
    """The part with another number at a path that `walk` gives."""
    first, _, rest = path.partition(".")
    key, _, index = first.removesuffix("]").partition("[")
    name = next(field.name for field in fields(part) if _key(field.name)[0] == key)
    inner = getattr(part, name)
    if not rest:
        changed: object = value
    elif index:
        changed = tuple(replaced(one, rest, value) if at == int(index) else one for at, one in enumerate(inner))
    else:
        changed = replaced(inner, rest, value)
    return replace(part, **{name: changed})
