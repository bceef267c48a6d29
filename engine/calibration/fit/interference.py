"""How much the lanes of an emulated device get in each other's way: from tasks alone and beside others.

Runs that keep several lanes busy are simulated with more and more of it, until tasks slow down as much as they did.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from engine.calibration.measure import Condition
from sim.problem import Basis, Hardware, Model
from sim.schedule import LaneKind
from sim.simulation import Executed, Simulation
from traces.trace import Span

TURNS = tuple(share / 100 for share in range(20, 101, 10))
"""From what lets five lanes work side by side to taking turns."""

BESIDE = tuple(share / 100 for share in range(70, 101, 2))

COMPUTES = (LaneKind.GPU.value, LaneKind.CPU.value)

Kind = tuple[str, str]
"""An op and its lane."""


class Slowdown(NamedTuple):
    """Of the computing tasks of one condition in decode: mean time beside others over mean time alone, and kinds."""

    condition: Condition
    ratio: float
    kinds: frozenset[Kind]


def measured_slowdowns(planned: Sequence[Condition], runs: Sequence[Sequence[Sequence[Span]]]) -> list[Slowdown]:
    """Every condition with several lanes at work that another shows alone. `runs[i][at]`: round i, condition at."""
    found = []
    for at, condition in enumerate(planned):
        alone = next((i for i, one in enumerate(planned) if one.alone and _alike(one, condition)), None)
        if condition.alone or alone is None:
            continue
        beside, undisturbed = (_by_kind(span for one in runs for span in one[i]) for i in (at, alone))
        kinds = frozenset(beside) & frozenset(undisturbed)
        taken_s = sum(sum(beside[kind]) for kind in kinds)
        needed_s = sum(len(beside[kind]) * sum(undisturbed[kind]) / len(undisturbed[kind]) for kind in kinds)
        if needed_s:
            found.append(Slowdown(condition, taken_s / needed_s, kinds))
    return found


def with_turns(
    hardware: Hardware, model: Model, planned: Sequence[Condition], runs: Sequence[Sequence[Sequence[Span]]]
) -> Hardware:
    """The machine with the shares at which simulated tasks slow down most nearly as measured ones do.

    `model` is as it was run. A machine without an emulated device stays as it is.
    """
    found = measured_slowdowns(planned, runs)
    if hardware.emulation is None or not found:
        return hardware

    def off(shares: tuple[float, float]) -> float:
        machine = _with(hardware, shares, "trial")
        return sum(abs(math.log(simulated_slowdown(machine, model, one) / one.ratio)) for one in found)

    told = ", ".join(f"{one.ratio:.2f}" for one in found)
    best = min(itertools.product(TURNS, BESIDE), key=off)
    return _with(hardware, best, f"tasks of {len(found)} runs took {told} times as long as alone")


def simulated_slowdown(hardware: Hardware, model: Model, measured: Slowdown) -> float:
    """The same ratio as the simulator has it."""
    condition = measured.condition
    costs = condition.costs(model, hardware)
    alone = condition.costs(model, hardware.with_value("emulation.beside_stream", 1.0))
    steps = condition.schedule.steps(condition.shape(model), 0, condition.batch.gen_len)
    ran: list[Executed] = []
    observe: Callable[[Executed], None] = ran.append
    Simulation(steps, costs, costs.capacities, on_task=observe, hand_over_ns=costs.hand_over_ns).run()
    chosen = [
        one for one in ran if one.task.step > 0 and (one.task.op.value, one.task.lane.kind.value) in measured.kinds
    ]
    taken_ns = sum(one.end_ns - one.start_ns for one in chosen)
    return taken_ns / sum(alone(one.task).duration_ns for one in chosen)


def _alike(one: Condition, other: Condition) -> bool:
    return one.size == other.size and one.places == other.places


def _by_kind(spans: Iterable[Span]) -> dict[Kind, list[float]]:
    found: dict[Kind, list[float]] = {}
    for span in spans:
        if span.step > 0 and span.lane in COMPUTES:
            found.setdefault((str(span.op), str(span.lane)), []).append(span.duration_ns / 1e9)
    return found


def _with(hardware: Hardware, shares: tuple[float, float], source: str) -> Hardware:
    turns, beside = shares
    taking_turns = hardware.with_value("emulation.turns", turns, source, Basis.MEASURED)
    return taking_turns.with_value("emulation.beside_stream", beside, source, Basis.MEASURED)
