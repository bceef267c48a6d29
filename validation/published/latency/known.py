"""What published rows name, found: the system's schedule, the model with its widths, the machine.

The names and what they stand for are in `data/known.toml`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec

from sim.problem import Hardware, Model, Widths
from traces.errors import InputError, nearest
from traces.files import read_toml
from validation.published.latency.placement import Options
from validation.published.latency.rows import LatencyRow

DATA = Path(__file__).parent / "data"
POPULARITY_FILE = DATA / "popularity.toml"
_KNOWN = read_toml(DATA / "known.toml")

POPULARITY: dict[str, float] = read_toml(POPULARITY_FILE)
"""By preset of a model, the exponent of Zipf's law that its experts' popularity follows."""

DATASETS: dict[str, dict[str, int]] = _KNOWN["datasets"]
"""Mean tokens of prompts and of what is generated."""

_hardware = lru_cache(maxsize=32)(Hardware.load)
_model = lru_cache(maxsize=32)(Model.load)


@dataclass(frozen=True, slots=True)
class ServingSystem:
    """A system that rows name: see `data/known.toml`."""

    name: str
    schedule: str
    throughput: str
    split_schedule: str = ""
    prefill_experts: str = ""
    piece: int | None = None
    pin_weights: float = 0.0
    slots_serve_prefill: bool = True


SYSTEMS = msgspec.convert(_KNOWN["systems"], tuple[ServingSystem, ...])


def named_system(row: LatencyRow) -> ServingSystem:
    """The system, by the beginning of its name. Raises InputError."""
    for one in SYSTEMS:
        if row.system.lower().startswith(one.name.lower()):
            return one
    names = [one.name for one in SYSTEMS]
    raise InputError(f"system {row.system!r} is unknown{nearest(row.system, names)}; known: {', '.join(names)}")


def named_model(row: LatencyRow, options: Options) -> Model:
    """The model with the widths and the experts a token that the row names. Raises InputError."""
    if refused := _of_beginning(_KNOWN["refused"], row.model):
        raise InputError(f"model {row.model!r}: {refused}")
    model = _model(_of_beginning(_KNOWN["models"], row.model) or row.model)
    if widths := _widths(row):
        model = replace(
            model, widths=Widths.of(experts=widths["experts"], others=widths["others"], ends=widths["ends"])
        )
    if options.top_k is None:
        return model
    layers = [replace(one, top_k=options.top_k) if one.num_experts else one for one in model.layers]
    return replace(model, layers=tuple(layers))


def _of_beginning(table: Mapping[str, str], name: str) -> str | None:
    """The entry of the first key that the name begins with."""
    return next((value for key, value in table.items() if name.lower().startswith(key.lower())), None)


def _widths(row: LatencyRow) -> dict[str, float] | None:
    """What the row says of widths, its model's name included: Q4_K_M, F16 gguf (MXFP4 experts). Raises InputError."""
    widths: dict[str, dict[str, float]] = _KNOWN["widths"]
    words = re.findall(r"[a-z0-9_]+", f"{row.precision} {row.model}".lower())
    found = next((bits for name, bits in widths.items() if name.lower() in words), None)
    if found is None and row.precision:
        hint = f"{nearest(row.precision, widths)}; known: {', '.join(widths)}, or nothing for the model's own"
        raise InputError(f"precision {row.precision!r} is unknown{hint}")
    return found


def name_of_machine(row: LatencyRow, options: Options) -> str:
    """The machine that the row gives, or the preset of these devices and this CPU. Raises InputError."""
    if row.machine:
        return row.machine
    gpu, cpu = row.gpu.lower().removeprefix("nvidia ").removeprefix("geforce "), row.cpu.lower()
    for one in _KNOWN["machines"]:
        same_cpu = one["cpu"].lower() in cpu if one["cpu"] else not cpu
        same_gpus = gpu.startswith(one["gpu"].lower()) and row.num_gpus == one["n_gpu"]
        if same_gpus and same_cpu and one.get("sockets", options.sockets) == options.sockets:
            return str(one["machine"])
    which = f"{row.num_gpus} x {row.gpu or 'a gpu not named'} and {row.cpu or 'a cpu not named'}"
    raise InputError(f"machine: none is known with {which}; give a preset or the path of a .toml file")


def load_machine(name: str) -> Hardware:
    """A preset or a file. Raises InputError."""
    return _hardware(name)
