"""How much tasks slow each other down, and how late lanes notice each other, from short runs.

For an emulated device, whose lanes share the host's cores and one interpreter, runs that keep several lanes busy are
simulated with more and more of it, until tasks slow down as much as they did.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.calibration.measure import Beside, Condition, HostExpertsTime, Measured, MeasuredRun, Sample
from sim.problem import Basis, Hardware, Model
from sim.schedule import LaneKind, Op
from sim.simulation import Executed, Simulation, start_delays
from traces.trace import Span

INTERPRETER_SHARES = tuple(share / 100 for share in range(20, 101, 10))
"""From what lets five lanes work side by side to one lane at a time."""

BESIDE_STREAM = tuple(share / 100 for share in range(70, 101, 2))

COMPUTES = (LaneKind.GPU, LaneKind.CPU)

Kind = tuple[str, str]
"""An op and its lane."""


@dataclass(frozen=True, slots=True)
class Contention:
    """What two kinds of work cost each other: seconds of a task alone, and beside other work."""

    op: str
    alone_s: float
    beside_s: float

    @property
    def slowdown(self) -> float:
        return self.beside_s / self.alone_s


def contended(samples: Sequence[Sample]) -> list[Contention]:
    """Tasks that ran both alone and beside a stream of weights, with equal sizes."""
    found = []
    for beside, alone in itertools.product(samples, samples):
        task, other = beside.task, alone.task
        same = (other.op, other.step, other.lane) == (task.op, task.step, task.lane)
        if same and task.step and task.lane.kind in COMPUTES and _shows_alone(alone.condition, beside.condition):
            where = "CPU" if task.lane.kind is LaneKind.CPU else "device"
            copies = f"beside the copies of {beside.condition.schedule.name}"
            label = f"{task.op.value} on the {where}, step {task.step}, {copies}"
            found.append(Contention(label, alone.mean_s, beside.mean_s))
    return found


def contended_on_host(times: Sequence[HostExpertsTime]) -> list[Contention]:
    """Experts on the host, alone and beside each other kind of work."""
    alone = {one.tokens: one.seconds.median for one in times if one.beside is Beside.NOTHING}
    return [
        Contention(
            f"{Op.HOST_EXPERTS.value}, {one.tokens} tokens, beside {one.beside.value}",
            alone[one.tokens],
            one.seconds.median,
        )
        for one in times
        if one.beside is not Beside.NOTHING and one.tokens in alone
    ]


class Slowdown(NamedTuple):
    """Of the computing tasks of one condition in decode: mean time beside others over mean time alone, and kinds."""

    condition: Condition
    ratio: float
    kinds: frozenset[Kind]


def measured_slowdowns(runs: Sequence[MeasuredRun]) -> list[Slowdown]:
    """Every condition with several lanes at work that another shows alone."""
    spans: dict[Condition, list[Span]] = {}
    for run in runs:
        spans.setdefault(run.condition, []).extend(run.spans)
    found = []
    for condition, own in spans.items():
        alone = next((one for one in spans if _shows_alone(one, condition)), None)
        if alone is None:
            continue
        beside, undisturbed = _by_kind(own), _by_kind(spans[alone])
        kinds = frozenset(beside) & frozenset(undisturbed)
        taken_s = sum(sum(beside[kind]) for kind in kinds)
        needed_s = sum(len(beside[kind]) * sum(undisturbed[kind]) / len(undisturbed[kind]) for kind in kinds)
        if needed_s:
            found.append(Slowdown(condition, taken_s / needed_s, kinds))
    return found


def with_interference(hardware: Hardware, model: Model, runs: Sequence[MeasuredRun]) -> Hardware:
    """The machine with the shares at which simulated tasks slow down most nearly as measured ones do.

    `model` is as it was run. A machine without an emulated device stays as it is.
    """
    found = measured_slowdowns(runs)
    if hardware.emulation is None or not found:
        return hardware

    def off(shares: tuple[float, float]) -> float:
        machine = _with(hardware, shares, "trial")
        return sum(abs(math.log(simulated_slowdown(machine, model, one) / one.ratio)) for one in found)

    told = ", ".join(f"{one.ratio:.2f}" for one in found)
    best = min(itertools.product(INTERPRETER_SHARES, BESIDE_STREAM), key=off)
    return _with(hardware, best, f"tasks of {len(found)} runs took {told} times as long as alone")


def simulated_slowdown(hardware: Hardware, model: Model, measured: Slowdown) -> float:
    """The same ratio as the simulator has it."""
    condition = measured.condition
    costs = condition.costs(model, hardware)
    alone = condition.costs(model, hardware.with_value("emulation.beside_stream", 1.0))
    ran: list[Executed] = []
    steps = condition.steps(model)
    Simulation(steps, costs, costs.capacities, on_task=ran.append, hand_over_ns=costs.hand_over_ns).run()
    chosen = [one for one in ran if one.task.step > 0 and (one.task.op, one.task.lane.kind) in measured.kinds]
    taken_ns = sum(one.end_ns - one.start_ns for one in chosen)
    return taken_ns / sum(alone(one.task).duration_ns for one in chosen)


def _shows_alone(one: Condition, other: Condition) -> bool:
    """Whether the tasks of `other`, which run beside others, run alone in `one`."""
    alike = (one.size, one.policy.attention) == (other.size, other.policy.attention)
    return one.alone and not other.alone and alike


def _by_kind(spans: Iterable[Span]) -> dict[Kind, list[float]]:
    found: dict[Kind, list[float]] = {}
    for span in spans:
        if span.step > 0 and span.lane in COMPUTES:
            found.setdefault((str(span.op), str(span.lane)), []).append(span.duration_ns / 1e9)
    return found


def _with(hardware: Hardware, shares: tuple[float, float], source: str) -> Hardware:
    for name, share in zip(("interpreter_share", "beside_stream"), shares, strict=True):
        hardware = hardware.with_value(f"emulation.{name}", share, source, Basis.MEASURED)
    return hardware


def hand_overs_s(model: Model, run: MeasuredRun) -> list[float]:
    """Seconds between lanes in one run: each task that waited for another lane last.

    `model` is as it was run, with its first layers only.
    """
    tasks = [task for step in run.condition.steps(model) for task in step]
    delays_ns = start_delays(tasks, {span.key: span for span in run.spans})
    return [delay / 1e9 for (before, after), found in delays_ns.items() if before != after for delay in found]


def with_hand_over(hardware: Hardware, model: Model, runs: Sequence[MeasuredRun]) -> Hardware:
    """The machine with the median over the runs that keep several lanes busy."""
    found = [seconds for run in runs if not run.condition.alone for seconds in hand_overs_s(model, run)]
    if not found:
        return hardware
    measured = Measured.of(found, "from a task's end to the start of what waited for it on another lane")
    return replace(hardware, hand_over_s=measured.quantity("us", 1e-6))
