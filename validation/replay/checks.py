"""A run once more: its own durations through its schedule (layer 1), then the cost model's (layers 2 and 3).

Layer 1 asks whether schedule and simulator order work as the real lanes did: each task lasts as long as it did in the
trace, and the makespan must come out. Layer 2 asks whether the cost model knows those durations, layer 3 whether the
whole simulated run, contention included, takes as long and keeps the lanes as busy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sim.cost import Cost
from sim.problem import Batch, Hardware
from sim.schedule import Op, Task
from sim.simulation import Executed, Simulation, span_of, start_delays
from traces.errors import InputError
from traces.trace import Key, Span, Trace
from validation.metrics import relative_error, wape
from validation.replay.accuracy import (
    LaneShare,
    OpCheck,
    PathShare,
    lane_shares,
    op_checks,
    path_agreement,
)
from validation.replay.delays import HandOverDelay, makespan_with_delays_ns, summarise
from validation.replay.rebuild import Recorded, hardware_of, rebuild_setup, recorded, spans_by_key

ORDER_BAR = 0.03
"""Largest makespan error of layer 1."""

NOTHING = Cost(0)
"""What a task costs that had nothing to do in the measured run: its requests had ended."""


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

    `path_agreement` is the share of the measured critical path's time whose (op, lane) the predicted one spends too;
    `path_tasks_agreement`, the share of it that is on the very same tasks.
    """

    run: PhaseError
    prefill: PhaseError
    decode: PhaseError | None
    throughput_error: float
    lanes: tuple[LaneShare, ...]
    path: tuple[PathShare, ...]
    path_agreement: float
    path_tasks_agreement: float


@dataclass(frozen=True, slots=True)
class Replay:
    """All checks of one trace. Without a known machine all but the first are None, and `why_not` says so.

    `replayed` is the run of the first, `predicted` that of the last.
    """

    measured: Trace
    replayed: Trace
    hardware: Hardware | None
    num_requests: int
    order_check: OrderCheck
    duration_check: DurationCheck | None
    run_check: RunCheck | None
    predicted: Trace | None
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, without the traces."""
        metadata = self.measured.metadata
        return {
            "origin": self.measured.origin,
            "schedule": metadata["schedule"],
            "model": metadata.get("model"),
            "policy": metadata.get("policy"),
            "input_hash": metadata.get("input_hash"),
            "hardware": None if self.hardware is None else self.hardware.name,
            "num_requests": self.num_requests,
            "layer1": asdict(self.order_check),
            "layer2": None if self.duration_check is None else asdict(self.duration_check),
            "layer3": None if self.run_check is None else asdict(self.run_check),
            "why_not": self.why_not,
        }


def replay_trace(trace: Trace, hardware: Hardware | None = None) -> Replay:
    """Replay a trace; `hardware` is the machine to predict it for (default: the one that the trace names).

    Raises InputError if the trace does not say enough of its run, or does not fit its schedule.
    """
    run = recorded(trace)
    steps = list(run.steps())
    tasks = {task.key: task for step in steps for task in step}
    spans = spans_by_key(trace, tasks)
    if not trace.makespan_ns:
        raise InputError("the trace's tasks take no time at all: there is nothing to replay")

    def lasting(task: Task) -> Cost:
        return Cost(spans[task.key].duration_ns, (), spans[task.key].bytes)

    replayed = replay_steps(run, spans, lasting)
    first = check_order(trace, replayed, list(tasks.values()), spans)
    num_requests = run.batch.num_requests
    machine = hardware or hardware_of(trace)
    if machine is None:
        why_not = "the trace describes no machine: give the one that was calibrated with --hardware"
        return Replay(trace, replayed, None, num_requests, first, None, None, None, why_not)
    costs = rebuild_setup(trace, run, machine).costs(only_contended=True)
    handed_over_ns = replay_steps(run, spans, lasting, hand_over_ns=costs.hand_over_ns).makespan_ns
    first = replace(first, error_with_hand_over=relative_error(handed_over_ns, trace.makespan_ns))
    predicted = replay_steps(run, spans, costs, costs.capacities, costs.hand_over_ns)
    second = check_durations(
        spans, predicted, {key: costs(task).duration_ns for key, task in tasks.items() if key in spans}
    )
    third = check_run(trace, predicted, run.batch)
    return Replay(trace, replayed, machine, num_requests, first, second, third, predicted)


def check_order(trace: Trace, replayed: Trace, tasks: list[Task], spans: Mapping[Key, Span]) -> OrderCheck:
    """The makespan that the trace's own durations give, and what the run lost between tasks."""
    measured_ns, replayed_ns = trace.makespan_ns, replayed.makespan_ns
    found = start_delays(tasks, spans)
    dispatched_ns = makespan_with_delays_ns(tasks, spans, found)
    return OrderCheck(
        measured_ns / 1e9,
        replayed_ns / 1e9,
        relative_error(replayed_ns, measured_ns),
        dispatched_ns / 1e9,
        relative_error(dispatched_ns, measured_ns),
        len(spans),
        len(tasks) - len(spans),
        summarise(found),
    )


def replay_steps(
    run: Recorded,
    spans: Mapping[Key, Span],
    cost: Callable[[Task], Cost],
    capacities: Sequence[int] = (),
    hand_over_ns: int = 0,
) -> Trace:
    """The run's schedule with other durations: a trace of the tasks that it did; the others take no time."""
    ran: dict[int, Executed] = {}
    Simulation(
        run.steps(),
        lambda task: cost(task) if task.key in spans else NOTHING,
        capacities,
        on_task=lambda one: ran.update({one.task.id: one}),
        hand_over_ns=hand_over_ns,
    ).run()
    kept = {id_: one for id_, one in ran.items() if one.task.key in spans}
    metadata = {"origin": "simulated", "schedule": run.schedule.name}
    return Trace(metadata, [span_of(_causes_kept(one, kept, ran)) for one in kept.values()])


def _causes_kept(one: Executed, kept: Mapping[int, Executed], everything: Mapping[int, Executed]) -> Executed:
    """With a cause that is kept: behind tasks that took no time is the one that they waited for."""
    cause = one.cause
    while cause != -1 and cause not in kept:
        cause = everything[cause].cause
    return one._replace(cause=cause)


def check_durations(measured: Mapping[Key, Span], predicted: Trace, solo_ns: Mapping[Key, int]) -> DurationCheck:
    """Durations task by task; what took no measurable time is left out."""
    pairs = [(measured[span.key], span, solo_ns[span.key]) for span in predicted.spans]
    pairs = [pair for pair in pairs if pair[0].duration_ns > 0]
    ours = [span.duration_ns for _, span, _ in pairs]
    theirs = [span.duration_ns for span, _, _ in pairs]
    return DurationCheck(op_checks(pairs), wape(ours, theirs), relative_error(sum(ours), sum(theirs)))


def check_run(measured: Trace, predicted: Trace, batch: Batch) -> RunCheck:
    """Makespan, phases, lanes and critical path of the two runs."""
    both, path = (measured, predicted), path_agreement(measured, predicted)
    first, rest = _tokens(measured, batch)
    run = _period([trace.makespan_ns for trace in both], first + rest)
    return RunCheck(
        run,
        _period([_turn_ns(trace) - trace.start_ns for trace in both], first),
        _period([trace.end_ns - _turn_ns(trace) for trace in both], rest) if rest else None,
        relative_error(run.predicted_tokens_per_s, run.measured_tokens_per_s),
        lane_shares(measured, predicted),
        path.rows,
        path.by_op_and_lane,
        path.by_task,
    )


def _turn_ns(trace: Trace) -> int:
    """When the first token of every micro-batch is there."""
    return max((span.end_ns for span in trace.spans if span.step == 0 and span.op == Op.HEAD), default=trace.end_ns)


def _period(lengths_ns: Sequence[int], tokens: int) -> PhaseError:
    """Of the measured and the predicted length of a stretch in which so many tokens came out."""
    measured_s, predicted_s = (length_ns / 1e9 for length_ns in lengths_ns)
    error = relative_error(predicted_s, measured_s)
    return PhaseError(measured_s, predicted_s, error, tokens / measured_s, tokens / predicted_s)


def _tokens(trace: Trace, batch: Batch) -> tuple[int, int]:
    """Tokens of prefill and of decode: one a request and head, also where a request ended before its micro-batch."""
    first = rest = 0
    for span in trace.spans:
        if span.op == Op.HEAD and span.rank == 0:
            count = batch.copies * batch.micro_batches[span.micro_batch].num_requests
            first, rest = (first + count, rest) if span.step == 0 else (first, rest + count)
    return first, rest
