"""A run once more: its own durations through its schedule (layer 1), then the cost model's (layers 2 and 3).

Layer 1 asks whether schedule and simulator order work as the real lanes did: each task lasts as long as it did in the
trace, and the makespan must come out. Layer 2 asks whether the cost model knows those durations, layer 3 whether the
whole simulated run, contention included, takes as long and keeps the lanes as busy.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sim.cost import Cost
from sim.problem import Hardware
from sim.schedule import Lane, Op, Task
from sim.simulation import RECORD, in_turn, simulate_stretches, span_of, start_delays
from traces.errors import InputError
from traces.trace import NONE, Key, Span, Trace
from validation.metrics import relative_error, wape
from validation.replay.accuracy import LaneShare, OpCheck, PathShare, lane_shares, op_checks, path_agreement
from validation.replay.energy import EnergyCheck, check_energy, in_phases
from validation.replay.rebuild import Run, hardware_of, recorded, spans_by_key
from validation.replay.streams import RecordedStream, StreamCheck, check_decisions, latency_checks, times_in

ORDER_BAR = 0.03
"""Largest makespan error of layer 1."""

TOLD = ("origin", "schedule", "model", "policy", "input_hash")
"""What the results tell of a trace's metadata."""

NOTHING = Cost(0)
"""What a task costs that had nothing to do in the measured run: its requests had ended."""


@dataclass(frozen=True, slots=True)
class HandOverDelay:
    """From the moment a task on lane `after` could start, because one on lane `before` had ended, to when it did.

    `before` equals `after` where the lane itself was busy until then. Seconds; `p90_s` is what one in ten exceeds.
    """

    before: str
    after: str
    count: int
    median_s: float
    p90_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class OrderCheck:
    """Measured durations through the same schedule. Seconds; errors are shares of the measured makespan.

    `error` is the law's alone. `error_with_dispatch` adds between tasks the median hand-over delay of each pair of
    lanes, as measured in this very trace (`gaps`); `error_with_hand_over` the one between lanes that the machine has,
    if it is known. `absent` tasks were issued but had nothing to do; they take no time.
    """

    measured_s: float
    replayed_s: float
    error: float
    with_dispatch_s: float
    error_with_dispatch: float
    tasks: int
    absent: int
    gaps: tuple[HandOverDelay, ...]
    error_with_hand_over: float | None = None


@dataclass(frozen=True, slots=True)
class DurationCheck:
    """The cost model's durations of the same tasks. `wape` and `bias` are over all of them together."""

    ops: tuple[OpCheck, ...]
    wape: float
    bias: float


@dataclass(frozen=True, slots=True)
class PhaseError:
    """A stretch of the run, measured and predicted: seconds, tokens per second, and the error of the time."""

    measured_s: float
    predicted_s: float
    error: float
    measured_tokens_per_s: float
    predicted_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class RunCheck:
    """The simulated run beside the measured one, whole and by phase.

    A stream has no phases: prompts and decode share its steps. `path_agreement` is the share of the measured critical
    path's time whose (op, lane) the predicted one spends too; `path_tasks_agreement`, the share of it that is on the
    very same tasks.
    """

    run: PhaseError
    prefill: PhaseError | None
    decode: PhaseError | None
    throughput_error: float
    lanes: tuple[LaneShare, ...]
    path: tuple[PathShare, ...]
    path_agreement: float
    path_tasks_agreement: float


@dataclass(frozen=True, slots=True)
class Replay:
    """All checks of one trace. Without a known machine all but the first are None, and `why_not` says so.

    `replayed` is the run of the first, `predicted` that of the last. Only a stream has a `stream_check`, and only a run
    whose joules were counted has an `energy_check`, on a machine whose watts are known.
    """

    measured: Trace
    run: Run
    replayed: Trace
    hardware: Hardware | None
    order_check: OrderCheck
    duration_check: DurationCheck | None
    run_check: RunCheck | None
    predicted: Trace | None
    stream_check: StreamCheck | None = None
    why_not: str = ""
    energy_check: EnergyCheck | None = None

    @property
    def num_requests(self) -> int:
        return self.run.num_requests

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, without the traces."""
        layers = (self.order_check, self.duration_check, self.run_check)
        return {
            **{name: self.measured.metadata.get(name) for name in TOLD},
            "hardware": self.hardware and self.hardware.name,
            "num_requests": self.num_requests,
            **{f"layer{number}": layer and asdict(layer) for number, layer in enumerate(layers, 1)},
            "stream": self.stream_check and asdict(self.stream_check),
            "energy": self.energy_check and asdict(self.energy_check),
            "why_not": self.why_not,
        }


def replay_trace(trace: Trace, hardware: Hardware | None = None) -> Replay:
    """Replay a trace; `hardware` is the machine to predict it for (default: the one that the trace names).

    Raises InputError if the trace does not say enough of its run, or does not fit its schedule.
    """
    stream = RecordedStream.of(trace) if RECORD in trace.metadata else None
    run: Run = stream or recorded(trace)
    tasks = {task.key: task for step in run.steps() for task in step}
    spans = spans_by_key(trace, tasks)
    if not trace.makespan_ns:
        raise InputError("the trace's tasks take no time at all: there is nothing to replay")

    def lasting(task: Task) -> Cost:
        return Cost(spans[task.key].duration_ns, (), spans[task.key].bytes)

    replayed = replay_steps(run, spans, lasting)
    first = check_order(trace, replayed, run, spans)
    checked = None if stream is None else check_decisions(stream.record)
    machine = hardware or hardware_of(trace)
    if machine is None:
        why_not = "the trace describes no machine: give the one that was calibrated with --hardware"
        return Replay(trace, run, replayed, None, first, None, None, None, checked, why_not)
    costs = run.costs(trace, machine)
    handed_over_ns = replay_steps(run, spans, lasting, hand_over_ns=costs.hand_over_ns).makespan_ns
    first = replace(first, error_with_hand_over=relative_error(handed_over_ns, trace.makespan_ns))
    predicted = replay_steps(run, spans, costs, costs.capacities, costs.hand_over_ns)
    second = check_durations(run, spans, predicted, {key: costs(tasks[key]).duration_ns for key in spans})
    third = check_run(trace, predicted, run)
    if stream is not None and checked is not None:
        latencies = latency_checks(*(times_in(one, stream.record) for one in (trace, predicted)))
        checked = replace(checked, latencies=latencies)
    done = in_phases((tasks[key] for key in spans), run.shape, _phases_s(third))
    joules = check_energy(trace, done, costs, machine)
    return Replay(trace, run, replayed, machine, first, second, third, predicted, checked, energy_check=joules)


def _phases_s(found: RunCheck) -> dict[str, float]:
    """How long the simulated phases take; those of a stream are one."""
    phases = {"prefill": found.prefill, "decode": found.decode}
    named = {name: one.predicted_s for name, one in phases.items() if one is not None}
    return named or {"stream": found.run.predicted_s}


def check_order(trace: Trace, replayed: Trace, run: Run, spans: Mapping[Key, Span]) -> OrderCheck:
    """The makespan that the trace's own durations give, and what the run lost between tasks."""
    measured_ns, replayed_ns = trace.makespan_ns, replayed.makespan_ns
    stretches = [(begun_ns, [task for step in steps for task in step]) for begun_ns, steps in run.stretches()]
    found: dict[tuple[Lane, Lane], list[int]] = {}
    for _, tasks in stretches:
        for pair, delays in start_delays(tasks, spans).items():
            found.setdefault(pair, []).extend(delays)
    started_ns = dispatched_ns = stretches[0][0]
    for begun_ns, tasks in stretches:
        dispatched_ns = max(dispatched_ns, begun_ns) + makespan_with_delays_ns(tasks, spans, found)
    dispatched_ns -= started_ns
    num_tasks = sum(len(tasks) for _, tasks in stretches)
    law = replayed_ns / 1e9, relative_error(replayed_ns, measured_ns)
    dispatched = dispatched_ns / 1e9, relative_error(dispatched_ns, measured_ns)
    return OrderCheck(measured_ns / 1e9, *law, *dispatched, len(spans), num_tasks - len(spans), summarise(found))


def summarise(found: Mapping[tuple[Lane, Lane], Sequence[int]]) -> tuple[HandOverDelay, ...]:
    """One line a pair of lanes, those that lost most first."""
    lines = []
    for (before, after), delays in found.items():
        ninth_decile = sorted(delays)[len(delays) * 9 // 10]
        median_s, p90_s, total_s = (ns / 1e9 for ns in (statistics.median(delays), ninth_decile, sum(delays)))
        lines.append(HandOverDelay(str(before), str(after), len(delays), median_s, p90_s, total_s))
    return tuple(sorted(lines, key=lambda line: -line.total_s))


def makespan_with_delays_ns(
    tasks: Iterable[Task], spans: Mapping[Key, Span], found: Mapping[tuple[Lane, Lane], Sequence[int]]
) -> int:
    """The makespan by the law with the median hand-over delay of each pair of lanes between tasks that ran."""
    medians = {pair: round(statistics.median(delays)) for pair, delays in found.items()}

    def delay(before: Task, after: Task) -> int:
        return medians.get((before.lane, after.lane), 0) if after.key in spans else 0

    def end_ns(task: Task, ready_ns: int) -> int:
        return ready_ns + (spans[task.key].duration_ns if task.key in spans else 0)

    return max((turn.end for turn in in_turn(tasks, end_ns, 0, delay=delay)), default=0)


def replay_steps(
    run: Run,
    spans: Mapping[Key, Span],
    cost: Callable[[Task], Cost],
    capacities: Sequence[int] = (),
    hand_over_ns: int = 0,
) -> Trace:
    """The run's schedule with other durations: a trace of the tasks that it did; the others take no time."""

    def cost_of(task: Task) -> Cost:
        return cost(task) if task.key in spans else NOTHING

    ran = simulate_stretches(run.stretches(), cost_of, capacities, hand_over_ns)
    by_id = {one.task.id: one for one in ran}

    def cause_kept(cause: int) -> int:
        """Behind tasks that took no time is the one that they waited for."""
        while cause != NONE and by_id[cause].task.key not in spans:
            cause = by_id[cause].cause
        return cause

    kept = (one._replace(cause=cause_kept(one.cause)) for one in ran if one.task.key in spans)
    return Trace({"origin": "simulated", "schedule": run.schedule.name}, list(map(span_of, kept)))


def check_durations(
    run: Run, measured: Mapping[Key, Span], predicted: Trace, solo_ns: Mapping[Key, int]
) -> DurationCheck:
    """Durations task by task; what took no measurable time is left out."""
    spans = [span for span in predicted.spans if measured[span.key].duration_ns > 0]
    pairs = [(measured[span.key], span, solo_ns[span.key]) for span in spans]
    theirs, ours = [span.duration_ns for span, _, _ in pairs], [span.duration_ns for span in spans]
    return DurationCheck(op_checks(pairs, run.shape), wape(ours, theirs), relative_error(sum(ours), sum(theirs)))


def check_run(measured: Trace, predicted: Trace, recorded_run: Run) -> RunCheck:
    """Makespan, phases, lanes and critical path of the two runs."""
    both = (measured, predicted)
    first, rest = recorded_run.tokens(measured.spans)
    run = _period([trace.makespan_ns for trace in both], first + rest)
    has_phases = any(span.step == 0 for span in measured.spans)
    prefill = _period([_turn_ns(trace) - trace.start_ns for trace in both], first) if has_phases else None
    decode = _period([trace.end_ns - _turn_ns(trace) for trace in both], rest) if has_phases and rest else None
    error = relative_error(run.predicted_tokens_per_s, run.measured_tokens_per_s)
    return RunCheck(run, prefill, decode, error, lane_shares(*both), *path_agreement(*both))


def _turn_ns(trace: Trace) -> int:
    """When the first token of every micro-batch is there."""
    return max((span.end_ns for span in trace.spans if span.step == 0 and span.op == Op.HEAD), default=trace.end_ns)


def _period(lengths_ns: Sequence[int], tokens: int) -> PhaseError:
    """Of the measured and the predicted length of a stretch in which so many tokens came out."""
    measured_s, predicted_s = (length_ns / 1e9 for length_ns in lengths_ns)
    error = relative_error(predicted_s, measured_s)
    return PhaseError(measured_s, predicted_s, error, tokens / measured_s, tokens / predicted_s)
