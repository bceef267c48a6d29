"""Two runs of the same tasks, measured and predicted: durations per op, lanes' busy time, critical paths."""

from collections.abc import Sequence
from dataclasses import dataclass

from traces.analysis import find_critical_path
from traces.trace import LaneId, Span, Trace, lane_order
from validation.metrics import bias, mape, wape

Pair = tuple[Span, Span, int]
"""One task: as measured, as predicted (slowed down by what it shares), and the nanoseconds that it takes alone."""


@dataclass(frozen=True, slots=True)
class OpAccuracy:
    """Durations of one op on one lane in prefill or decode. Seconds are sums over its tasks; errors are shares.

    `solo_bias` is that of the durations before contention.
    """

    op: str
    lane: str
    phase: str
    count: int
    measured_s: float
    predicted_s: float
    mape: float
    wape: float
    bias: float
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


@dataclass(frozen=True, slots=True)
class PathAgreement:
    """How alike two critical paths are, as shares of the measured one's time: by (op, lane), and task by task."""

    rows: tuple[PathShare, ...]
    by_op_and_lane: float
    by_task: float


def op_accuracy(pairs: Sequence[Pair]) -> tuple[OpAccuracy, ...]:
    """One line per op, lane and phase: what took most measured time first."""
    groups: dict[tuple[str, LaneId, str], list[Pair]] = {}
    for pair in pairs:
        span = pair[0]
        phase = "decode" if span.step else "prefill"
        groups.setdefault((span.op, (span.lane, span.rank), phase), []).append(pair)
    lines = (_op_line(op, lane, phase, own) for (op, lane, phase), own in groups.items())
    return tuple(sorted(lines, key=lambda line: -line.measured_s))


def _op_line(op: str, lane: LaneId, phase: str, pairs: Sequence[Pair]) -> OpAccuracy:
    measured = [one.duration_ns for one, _, _ in pairs]
    predicted = [one.duration_ns for _, one, _ in pairs]
    return OpAccuracy(
        op,
        lane_name(lane),
        phase,
        len(pairs),
        sum(measured) / 1e9,
        sum(predicted) / 1e9,
        mape(predicted, measured),
        wape(predicted, measured),
        bias(predicted, measured),
        bias([solo_ns for _, _, solo_ns in pairs], measured),
    )


def lane_shares(measured: Trace, predicted: Trace) -> tuple[LaneShare, ...]:
    """Every lane of the two runs."""
    busy = [{lane: ns / trace.makespan_ns for lane, ns in trace.busy_ns().items()} for trace in (measured, predicted)]
    lanes = sorted(busy[0].keys() | busy[1].keys(), key=lane_order)
    shares = ((lane, busy[0].get(lane, 0.0), busy[1].get(lane, 0.0)) for lane in lanes)
    return tuple(LaneShare(lane_name(lane), one, other, 100 * (other - one)) for lane, one, other in shares)


def path_agreement(measured: Trace, predicted: Trace) -> PathAgreement:
    """Compare the two critical paths. Time that no span explains (gaps) agrees with nothing."""
    paths = [find_critical_path(trace) for trace in (measured, predicted)]
    shares: list[dict[tuple[str, LaneId], float]] = [{}, {}]
    for path, found in zip(paths, shares, strict=True):
        for span, on_path_ns in zip(path.spans, path.on_path_ns, strict=True):
            what = (span.op, (span.lane, span.rank))
            found[what] = found.get(what, 0.0) + on_path_ns / path.makespan_ns
    largest = {what: max(share.get(what, 0.0) for share in shares) for what in shares[0].keys() | shares[1].keys()}
    everything = sorted(largest, key=lambda what: (-largest[what], what))
    rows = tuple(
        PathShare(op, lane_name(lane), shares[0].get((op, lane), 0.0), shares[1].get((op, lane), 0.0))
        for op, lane in everything
    )
    explained = sum(row.measured for row in rows)
    common = sum(min(row.measured, row.predicted) for row in rows)
    keys = {span.key for span in paths[1].spans}
    same_ns = sum(ns for span, ns in zip(paths[0].spans, paths[0].on_path_ns, strict=True) if span.key in keys)
    on_path_ns = sum(paths[0].on_path_ns)
    return PathAgreement(rows, common / explained if explained else 0.0, same_ns / on_path_ns if on_path_ns else 0.0)


def lane_name(lane: LaneId) -> str:
    """A lane as people write it: `GPU`, or `GPU:1` on the second device."""
    kind, rank = lane
    return kind if rank == 0 else f"{kind}:{rank}"
