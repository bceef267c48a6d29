"""A machine's file read on top of what it extends, and what a command line sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.problem.machine.cards import card_table, find_machine, unknown_machine
from sim.problem.machine.derived import with_number
from sim.problem.machine.quantity import Dimension, Quantity
from sim.problem.machine.tables import Part
from sim.problem.presets import MACHINES
from traces.errors import InputError, error_prefix, nearest, shown
from traces.files import read_toml

Table = dict[str, Any]

AUTO = "auto"
"""The machine at hand, as it is detected."""

FOLLOWS = {"host.peak": "host.cores"}
"""What describes the same thing: a file that gives the first and not the second means neither of those it extends."""


def machine_table(name: str, settings: Sequence[str], kind: type[Part]) -> Table:
    """All that is said of a machine, as one table. Raises InputError for a file or a setting that cannot be read."""
    table = _read_auto() if name == AUTO else _read(*_locate(name, Path()))
    above: Table = {}
    for text in settings:
        above = with_number(above, *read_setting(text, kind))
    return _merged(table, above)


def _read_auto() -> Table:
    """The machine at hand on top of its card's preset."""
    from sim.problem.machine.detect import detected_table

    return _extended(detected_table(), AUTO, Path(), ())


def read_setting(text: str, kind: type[Part]) -> tuple[str, Any]:
    """`link.h2d=24GB/s` as a dotted name and what a file would hold. Raises InputError that begins with `--set`."""
    path, equals, value = (one.strip() for one in text.partition("="))
    known = dict(kind.numbers())
    with error_prefix("--set "):
        if not equals or not value:
            raise InputError(f"{shown(text)}: give NUMBER=VALUE, as in host_memory.capacity=64GB")
        if path not in known:
            ends = [one for one in known if one.endswith(f".{path.rpartition('.')[2]}")][:3]
            meant = f"; did you mean {' or '.join(ends)}?" if ends else nearest(path, known)
            raise InputError(f"{path}: no machine has such a number{meant}")
        return path, _value_of(path, value, known[path])


def _value_of(path: str, value: str, dimension: Dimension | None) -> Any:
    if dimension is not None:
        return Quantity.of_text(value, path, dimension, "--set").to_dict()
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdecimal() else value


def _locate(name: str, beside: Path) -> tuple[str | None, Path | None]:
    """The name of a preset, or else a path; a relative path in a file counts from the folder `beside`."""
    preset = find_machine(name)
    if preset is not None:
        return preset, None
    try:
        path = beside / Path(name).expanduser()
    except RuntimeError:  # of no such user
        path = Path(name)
    if path.suffix != ".toml":
        raise unknown_machine(name)
    return None, path


def _read(preset: str | None, path: Path | None, seen: tuple[Path, ...] = ()) -> Table:
    """Read a machine on top of what it extends. The name is each file's own, never inherited."""
    if preset is not None:
        path = MACHINES.path(preset)
    if path is None:
        assert preset is not None
        table = {"name": preset, **card_table(preset)}
        file, beside = preset, MACHINES.folder
    else:
        table = read_toml(path)
        path = path.resolve()
        if path in seen:
            raise InputError(f"{path}: extends itself by way of {', '.join(other.name for other in seen)}")
        file, beside, seen = path.name, path.parent, (*seen, path)
        table = {"name": path.stem, **table}
    return _extended(table, file, beside, seen)


def _extended(table: Table, file: str, beside: Path, seen: tuple[Path, ...]) -> Table:
    """A table on top of what it extends, if it does."""
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise InputError(f"{file}: extends: {shown(base)} is neither the name of a preset nor a path")
    with error_prefix(f"{file}: extends: "):
        inherited = _read(*_locate(base, beside), seen)
    inherited.pop("name", None)
    return _merged(inherited, table)


def _merged(below: Table, above: Table) -> Table:
    """Lay one file's tables over another's; a quantity is replaced as a whole."""
    for path, other in FOLLOWS.items():
        if _has(above, path) and not _has(above, other):
            below = _without(below, other)
    return _laid(below, above)


def _laid(below: Table, above: Table) -> Table:
    tables = {key for key, value in above.items() if isinstance(value, dict) and "value" not in value}
    inner = {key: _laid(below[key], above[key]) for key in tables if isinstance(below.get(key), dict)}
    return {**below, **above, **inner}


def _has(table: Table, path: str) -> bool:
    first, _, rest = path.partition(".")
    inner = table.get(first)
    return first in table if not rest else isinstance(inner, dict) and _has(inner, rest)


def _without(table: Table, path: str) -> Table:
    first, _, rest = path.partition(".")
    if not _has(table, path):
        return table
    return {**table, first: _without(table[first], rest)} if rest else {k: v for k, v in table.items() if k != first}
