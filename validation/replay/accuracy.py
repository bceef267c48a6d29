"""Two runs of the same tasks, measured and predicted: durations per op, lanes' busy time, critical paths."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sim.schedule import PipelineShape
from traces.analysis import find_critical_path
from traces.trace import Span, Trace, lane_name, lane_order
from validation.metrics import bias, mape, wape

What = tuple[str, str, str]
"""An op, its lane and its phase, such as `("Attn", "CPU", "decode")`."""

Pair = tuple[Span, Span, int]
"""One task: as measured, as predicted (slowed down by what it shares), and the nanoseconds that it takes alone."""


@dataclass(frozen=True, slots=True)
class OpAccuracy:
    """Durations of one op on one lane in prefill or decode. Seconds are sums over its tasks; errors are shares."""

    op: str
    lane: str
    phase: str
    count: int
    measured_s: float
    predicted_s: float
    mape: float
    wape: float
    bias: float

    @classmethod
    def of(cls, what: What, measured_ns: Sequence[float], predicted_ns: Sequence[float], **more: Any) -> Self:
        """Of durations task by task."""
        errors = (mape(predicted_ns, measured_ns), wape(predicted_ns, measured_ns), bias(predicted_ns, measured_ns))
        return cls(*what, len(measured_ns), sum(measured_ns) / 1e9, sum(predicted_ns) / 1e9, *errors, **more)


@dataclass(frozen=True, slots=True)
class OpCheck(OpAccuracy):
    """The same, and the `bias` of the durations before contention."""

    solo_bias: float


@dataclass(frozen=True, slots=True)
class LaneShare:
    """How busy one lane was: shares of each run's makespan, and their difference in percentage points."""

    lane: str
    measured: float
    predicted: float
    points: float


@dataclass(frozen=True, slots=True)
class PathShare:
    """What one op on one lane is of the critical path, measured and predicted: shares of each run's makespan."""

    op: str
    lane: str
    measured: float
    predicted: float


def what_of(span: Span, shape: PipelineShape) -> What:
    """The group whose accuracy a task is part of."""
    phase = "prefill" if shape.has_prompts(span.step, span.micro_batch) else "decode"
    return span.op, lane_name((span.lane, span.rank)), phase


def op_checks(pairs: Sequence[Pair], shape: PipelineShape) -> tuple[OpCheck, ...]:
    """One line per op, lane and phase: what took most measured time first."""
    groups: defaultdict[What, list[tuple[int, int, int]]] = defaultdict(list)
    for measured, predicted, solo_ns in pairs:
        groups[what_of(measured, shape)].append((measured.duration_ns, predicted.duration_ns, solo_ns))
    lines = []
    for what, durations in groups.items():
        measured_ns, predicted_ns, alone_ns = (list(column) for column in zip(*durations, strict=True))
        lines.append(OpCheck.of(what, measured_ns, predicted_ns, solo_bias=bias(alone_ns, measured_ns)))
    return tuple(sorted(lines, key=lambda line: -line.measured_s))


def lane_shares(measured: Trace, predicted: Trace) -> tuple[LaneShare, ...]:
    """Every lane of the two runs."""
    busy = [{lane: ns / trace.makespan_ns for lane, ns in trace.busy_ns().items()} for trace in (measured, predicted)]
    lanes = sorted(busy[0].keys() | busy[1].keys(), key=lane_order)
    shares = ((lane, busy[0].get(lane, 0.0), busy[1].get(lane, 0.0)) for lane in lanes)
    return tuple(LaneShare(lane_name(lane), one, other, 100 * (other - one)) for lane, one, other in shares)


def path_agreement(measured: Trace, predicted: Trace) -> tuple[tuple[PathShare, ...], float, float]:
    """Two critical paths, and how alike they are by (op, lane) and task by task, as shares of the measured one's time.

    Time that no span explains (gaps) agrees with nothing.
    """
    paths = [find_critical_path(trace) for trace in (measured, predicted)]
    shares: list[defaultdict[tuple[str, str], float]] = [defaultdict(float), defaultdict(float)]
    for path, found in zip(paths, shares, strict=True):
        for span, on_path_ns in zip(path.spans, path.on_path_ns, strict=True):
            found[span.op, lane_name((span.lane, span.rank))] += on_path_ns / path.makespan_ns
    rows = [PathShare(*what, *(share[what] for share in shares)) for what in shares[0].keys() | shares[1].keys()]
    rows.sort(key=lambda row: (-max(row.measured, row.predicted), row.op, row.lane))
    explained = sum(row.measured for row in rows)
    common = sum(min(row.measured, row.predicted) for row in rows)
    keys = {span.key for span in paths[1].spans}
    same_ns = sum(ns for span, ns in zip(paths[0].spans, paths[0].on_path_ns, strict=True) if span.key in keys)
    on_path_ns = sum(paths[0].on_path_ns)
    return tuple(rows), common / explained if explained else 0.0, same_ns / on_path_ns if on_path_ns else 0.0
