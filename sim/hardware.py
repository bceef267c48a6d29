"""A machine to offload on: devices, host, memories and links, every number with its unit, basis and source."""

import bisect
import itertools
import math
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from sim.quantity import Basis, Dimension, Quantity, check_keys, how_to_give, nearest
from traces.errors import InputError

_PRESETS = Path(__file__).parent / "presets" / "hardware"
_SUFFIXES = {
    "_ratio": Dimension.RATIO,
    "_bytes_per_s": Dimension.RATE,
    "_flops_per_s": Dimension.COMPUTE,
    "_bytes": Dimension.SIZE,
    "_s": Dimension.TIME,
}


def _key(field_name: str) -> tuple[str, Dimension]:
    """Split `h2d_bytes_per_s` into its name in files (`h2d`) and its dimension; no suffix means a share."""
    for suffix, dimension in _SUFFIXES.items():
        if field_name.endswith(suffix):
            return field_name.removesuffix(suffix), dimension
    return field_name, Dimension.SHARE


@dataclass(frozen=True, slots=True)
class _Part:
    """What all parts of a machine have in common: their quantities are checked when they are made."""

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


_P = TypeVar("_P", bound=_Part)


@dataclass(frozen=True, slots=True)
class Memory(_Part):
    """One memory: how much it holds, and how fast its own processor reads it at best."""

    capacity_bytes: Quantity
    bandwidth_bytes_per_s: Quantity


@dataclass(frozen=True, slots=True)
class Step(_Part):
    """What work on `rows` tokens takes over what roofs and fixed times say: kernels cut matrices into tiles."""

    rows: int
    time_ratio: Quantity


@dataclass(frozen=True, slots=True)
class Efficiency(_Part):
    """The share of the peaks that one class of ops reaches, above 0 and at most 1, and a fixed time of such work."""

    compute: Quantity
    memory: Quantity
    latency_s: Quantity | None = None
    """What work of this class takes on top of the launch latency however small it is: its kernels, one by one."""
    overlap: Quantity | None = None
    """Share of the shorter of compute and memory traffic that hides behind the longer; if not given all (HRM)."""
    steps: tuple[Step, ...] = ()
    """By ascending rows; none: as the roofs say."""

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        rows = [step.rows for step in self.steps]
        if rows and (rows[0] < 1 or any(after <= before for before, after in itertools.pairwise(rows))):
            raise InputError(f"steps: their rows are {rows}; they must ascend from 1 or more")

    def time_ratio(self, rows: float) -> float:
        """Time over what the roofs say, for work on `rows` tokens: between steps along the logarithm of the rows."""
        if not self.steps:
            return 1.0
        at = bisect.bisect_right(self.steps, rows, key=lambda step: step.rows)
        if at in (0, len(self.steps)):
            return float(self.steps[max(0, at - 1)].time_ratio)
        before, after = self.steps[at - 1], self.steps[at]
        share = math.log(rows / before.rows) / math.log(after.rows / before.rows)
        return (1 - share) * before.time_ratio + share * after.time_ratio


@dataclass(frozen=True, slots=True)
class Processor(_Part):
    """A device or the host's cores.

    `launch_latency_s` is a fixed cost of every task, `request_overhead_s` one of every request in decode attention.
    `head` is the class of LM head, sampling and the next embedding; without it they count as `gemm`.
    `decode_attention` is that of one new token a request; without it it counts as `attention`. On the host it is that
    of a kernel which reads the KV cache where it lies, also for schedules whose own systems copy it first.
    """

    peak_flops_per_s: Quantity
    launch_latency_s: Quantity
    request_overhead_s: Quantity
    gemm: Efficiency
    experts: Efficiency
    attention: Efficiency
    head: Efficiency | None = None
    decode_attention: Efficiency | None = None


@dataclass(frozen=True, slots=True)
class Link(_Part):
    """The link of one device to the host.

    `peak` is the theoretical rate of one direction (the HRM's roof), the others are sustained. `duplex` is the sum of
    both directions when both are busy. `*_pageable` is for copies from or to memory that is not page-locked.
    """

    peak_bytes_per_s: Quantity
    h2d_bytes_per_s: Quantity
    d2h_bytes_per_s: Quantity
    duplex_bytes_per_s: Quantity
    h2d_pageable_bytes_per_s: Quantity
    d2h_pageable_bytes_per_s: Quantity
    latency_s: Quantity


@dataclass(frozen=True, slots=True)
class Network(_Part):
    """What carries an all-reduce between the devices of one host."""

    bandwidth_bytes_per_s: Quantity
    latency_s: Quantity


@dataclass(frozen=True, slots=True)
class Emulation(_Part):
    """A device that the host's own cores and memory play: what it does, it takes from the host.

    Its lanes are threads of one interpreter beside each other in the same caches. `turns` is the share of its time in
    which a task needs what they share, so that work beside it waits: at 1 two tasks take turns, at 1/2 they do not
    meet. Copies, and copies into page-locked memory, need it only if they are so small that latency is most of them.
    `beside_stream` is the share of its speed that compute on the device keeps in decode while weights or KV cache
    stream, which share its caches.
    """

    turns: Quantity
    beside_stream: Quantity


@dataclass(frozen=True, slots=True)
class OptimizerConstants(_Part):
    """The constants that MoE-Lightning's own policy optimizer was given, per device (its artifact, branch asplos25).

    They are not what the machine does: they are here so that the paper's estimates can be reproduced.
    """

    gpu_memory_bytes: Quantity
    gpu_bandwidth_bytes_per_s: Quantity
    gpu_peak_flops_per_s: Quantity
    cpu_memory_bytes: Quantity
    cpu_bandwidth_bytes_per_s: Quantity
    cpu_peak_flops_per_s: Quantity
    link_bytes_per_s: Quantity


@dataclass(frozen=True, slots=True)
class Hardware(_Part):
    """A host with `num_devices` equal devices. Host memory and cores are shared; each device has a link of its own.

    `pinned_bytes` limits page-locked host memory; `pin_bytes_per_s` is the rate at which one thread copies pageable
    memory into it. `network` is there exactly when there are several devices. `hand_over_s` is how long after a task's
    end another lane notices it: the wait on an event, or until a thread wakes; if not given, none.
    """

    name: str
    description: str
    num_devices: int
    pinned_bytes: Quantity
    pin_bytes_per_s: Quantity
    device: Processor
    device_memory: Memory
    host: Processor
    host_memory: Memory
    link: Link
    network: Network | None = None
    disk: Memory | None = None
    optimizer: OptimizerConstants | None = None
    emulation: Emulation | None = None
    hand_over_s: Quantity | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("name: it is empty; give the machine a name")
        if self.num_devices < 1:
            raise InputError(f"num_devices: {self.num_devices} is not allowed; it must be 1 or more")
        if self.num_devices > 1 and self.network is None:
            raise InputError(f"network: missing; {self.num_devices} devices need one for their all-reduces")
        if self.num_devices == 1 and self.network is not None:
            raise InputError("network: one device has none; remove it, or set num_devices")
        _Part.__post_init__(self)

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Return the names of the machines that come with the project."""
        return tuple(sorted(path.stem for path in _PRESETS.glob("[!_]*.toml")))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Return a preset by name, or the machine in a `.toml` file. Raises InputError, one line, for what is wrong.

        A file may start from a preset or another file with `extends = "gcp-t4"` and give only what differs.
        """
        path = _locate(str(name_or_path), Path())
        table = _read(path)
        try:
            return cls.from_dict({"name": path.stem, **table})
        except InputError as error:
            raise InputError(f"{name_or_path}: {error}") from None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """Build a machine from the tables of its file. Raises InputError that starts with the dotted field."""
        return _build(cls, table, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the tables of the machine's file; `from_dict` gives the same machine back."""
        return _tables(self)

    def write(self, path: str | Path) -> None:
        """Write the machine's file; `load` gives the same machine back. Raises InputError if it cannot be written."""
        import tomli_w

        if Path(path).suffix != ".toml":
            raise InputError(f"{path}: a machine's file ends in .toml")
        try:
            Path(path).write_text(tomli_w.dumps(self.to_dict()), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None

    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Yield every number of the machine with its dotted name, such as `link.h2d`."""
        return _walk(self, "")

    def value(self, path: str) -> Quantity:
        """Return the number at a dotted path such as `link.h2d`. Raises InputError when there is none."""
        known = dict(self.quantities())
        if path not in known:
            raise InputError(f"{path}: no such number in {self.name}{nearest(path, known)}; known: {', '.join(known)}")
        return known[path]

    def with_value(
        self, path: str, si_value: float, source: str = "given by the caller", basis: Basis = Basis.ASSUMED
    ) -> Self:
        """Return the machine with the number at `path` set, in the SI base unit. Raises InputError."""
        value = self.value(path).replaced(si_value, source, basis)
        try:
            return _replaced(self, path.split("."), value)
        except InputError as error:
            raise InputError(f"{path.rpartition('.')[0]}.{error}".removeprefix(".")) from None

    def scaled(self, path: str, factor: float) -> Self:
        """Return the machine with the number at `path` multiplied by `factor`, and assumed. Raises InputError."""
        return self.with_value(path, self.value(path) * factor, f"{factor:g} × the value of {self.name}")


def _locate(name: str, beside: Path) -> Path:
    """Return the file of a preset or of a path; a relative path in a file counts from the folder `beside`."""
    preset = _PRESETS / f"{name}.toml"
    if "/" not in name and preset.is_file():
        return preset
    path = beside / Path(name).expanduser()
    if path.suffix == ".toml":
        return path
    presets = Hardware.presets()
    raise InputError(
        f"unknown hardware {name!r}{nearest(name, presets)}; presets: {', '.join(presets)}; "
        "or give the path of a .toml file"
    )


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a machine's file on top of what it extends. The name is each file's own, never inherited."""
    path = path.resolve()
    if path in seen:
        raise InputError(f"{path}: extends itself by way of {', '.join(other.name for other in seen)}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise InputError(f"{path}: extends: {base!r} is neither the name of a preset nor a path")
    try:
        inherited = _read(_locate(base, path.parent), (*seen, path))
    except InputError as error:
        raise InputError(f"{path.name}: extends: {error}") from None
    inherited.pop("name", None)
    return _merged(inherited, table)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay one file's tables over another's; a quantity is replaced as a whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and "value" not in value:
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def _build(part: type[_P], table: object, path: str) -> _P:
    """Build the dataclass `part` from a table; the dotted `path` of the table starts every error."""
    dot = f"{path}." if path else ""
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: {table!r} is not a table of {', '.join(_key(f.name)[0] for f in fields(part))}")
    hints = get_type_hints(part)
    keys = {_key(field.name)[0]: field.name for field in fields(part)}
    optional = {key for key, name in keys.items() if get_origin(hints[name]) in (types.UnionType, tuple)}
    missing = [key for key in keys if key not in optional and key not in table]
    hint = how_to_give(_key(keys[missing[0]])[1]) if missing and hints[keys[missing[0]]] is Quantity else ""
    check_keys(table, keys, [*missing], path, hint)
    values = {keys[key]: _value(hints[keys[key]], keys[key], table[key], dot + key) for key in table}
    try:
        return part(**values)
    except InputError as error:
        raise InputError(f"{dot}{error}") from None


def _value(kind: type, name: str, content: object, path: str) -> object:
    """Read one field of a table as what its annotation asks for."""
    if get_origin(kind) is types.UnionType:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        if not isinstance(content, list):
            raise InputError(f"{path}: {content!r} is not a list of tables")
        return tuple(_build(get_args(kind)[0], one, f"{path}[{at}]") for at, one in enumerate(content))
    if kind is Quantity:
        return Quantity.parse(content, path, _key(name)[1])
    if issubclass(kind, _Part):
        return _build(kind, content, path)
    if isinstance(content, bool) or not isinstance(content, kind):
        raise InputError(f"{path}: {content!r} is not {'a whole number' if kind is int else 'a text'}")
    return content


def _tables(part: _Part) -> dict[str, Any]:
    content = {_key(field.name)[0]: getattr(part, field.name) for field in fields(part)}
    return {key: _written(value) for key, value in content.items() if value not in (None, ())}


def _written(value: Any) -> object:
    """A field's value as its file has it."""
    if isinstance(value, Quantity):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_tables(one) for one in value]
    return _tables(value) if isinstance(value, _Part) else value


def _walk(part: _Part, dot: str) -> Iterator[tuple[str, Quantity]]:
    for field in fields(part):
        value, path = getattr(part, field.name), dot + _key(field.name)[0]
        if isinstance(value, Quantity):
            yield path, value
        elif isinstance(value, _Part):
            yield from _walk(value, f"{path}.")


def _replaced(part: _P, path: list[str], value: Quantity) -> _P:
    name = next(field.name for field in fields(part) if _key(field.name)[0] == path[0])
    return replace(part, **{name: value if len(path) == 1 else _replaced(getattr(part, name), path[1:], value)})
