"""From a published row to a setup: its machine, model, workload, schedule and policy."""

from dataclasses import dataclass
from functools import lru_cache

from sim.comparison import usual_setup
from sim.cost import Setup
from sim.planning import best_policy
from sim.problem import Hardware, Model, Problem, Workload
from sim.schedule import Schedule, by_name, registered
from traces.errors import InputError, nearest
from traces.files import read_toml
from validation.published.rows import FOLDER, Row

SETTINGS: dict[str, list[str]] = read_toml(FOLDER / "settings.toml")
"""Model and machine of each setting."""

SYSTEMS = {"deepspeed": "zero"}
"""Systems whose schedule has another name here."""

_hardware = lru_cache(maxsize=16)(Hardware.load)
_model = lru_cache(maxsize=16)(Model.load)
_workload = lru_cache(maxsize=16)(Workload.load)

ROOMY = 1e15
"""Bytes of a memory that a run, as it was published, is taken to fit."""


@dataclass(frozen=True, slots=True)
class Posed:
    """A row made ready to simulate, and what was assumed about it."""

    setup: Setup
    assumed: str = ""


def schedule_of(row: Row) -> Schedule:
    """The schedule of the row's system. Raises InputError with the nearest names if there is none."""
    name = SYSTEMS.get(row.schedule, row.schedule)
    if name not in registered():
        known = [*registered(), *SYSTEMS]
        raise InputError(
            f"schedule {row.schedule!r} is unknown{nearest(row.schedule, known)}; known: {', '.join(known)}"
        )
    return by_name(name)


def device_kind(machine: str) -> str:
    """The kind of devices of a preset: `t4` of `gcp-2xt4`."""
    return machine.rpartition("-")[2].lstrip("0123456789x")


def machine_of(row: Row) -> str:
    """The preset of the row's setting, checked against its devices. Raises InputError."""
    if row.setting not in SETTINGS:
        raise InputError(f"setting {row.setting!r} is unknown; known: {', '.join(SETTINGS)}")
    name = SETTINGS[row.setting][1]
    kind, count = device_kind(name).upper(), _hardware(name).num_devices
    for field, given, has in (("gpu", row.gpu.upper(), kind), ("n_gpu", row.n_gpu, count)):
        if given and given != has:
            raise InputError(f"{field} {getattr(row, field)!r} is not what setting {row.setting} has: {count} {kind}")
    return name


def pose(row: Row, hardware: Hardware | None = None) -> Posed:
    """Make a row ready to simulate; `hardware` stands for its preset.

    Raises InputError where the row asks for what is unknown or cannot be.
    """
    schedule, hardware = schedule_of(row), hardware or _hardware(machine_of(row))
    workload = _workload(row.workload).with_(gen_len=row.gen_len, padded=row.padded)
    problem = Problem(_model(row.model or SETTINGS[row.setting][0]), hardware, workload)
    if row.micro_batch_size is None and row.num_micro_batches is None:
        setup = best_policy(problem, schedule).best.setup
        return Posed(setup, f"policy not published: {setup.policy} is the schedule's own best here")
    size, count, assumed = _sizes(row)
    setup = usual_setup(problem, schedule, size, count)
    if not setup.shortages:
        return Posed(setup, assumed)
    short = f"it ran, though by the memory plan {'; '.join(map(str, setup.shortages))}"
    for path in ("device_memory.capacity", "host_memory.capacity"):
        hardware = hardware.with_value(path, ROOMY, "the run was published, so it fitted")
    roomy = Problem(problem.model, hardware, workload)
    return Posed(usual_setup(roomy, schedule, size, count), f"{assumed}; {short}" if assumed else short)


def _sizes(row: Row) -> tuple[int, int, str]:
    """Micro-batch size and count. More requests than they hold cannot have finished: the size was larger then."""
    finished = row.requests_finished
    size, count = row.micro_batch_size, row.num_micro_batches
    if size is None or count is None:
        given = size or count or 1
        if finished is None:
            raise InputError("micro_batch_size and num_micro_batches: give both, or neither, or requests_finished too")
        other = -(-finished // given)
        return (given, other, "") if size is not None else (other, given, "")
    if finished is not None and finished > size * count:
        larger = -(-finished // count)
        return larger, count, f"{finished} requests finished: micro-batches of {larger}, not {size}"
    return size, count, ""
