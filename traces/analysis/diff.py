"""Two runs task by task: what changed in each op and lane, and where the difference in time comes from.

The makespan is the time on the critical path plus its gaps, in each run. So the difference of two makespans is, op by
op, the difference of their times on the two paths, plus the difference of the gaps: it adds up to the nanosecond. An
op's part is split further: tasks on both paths that took longer, tasks that came onto the path, tasks that left it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from traces.analysis.critical_path import CriticalPath, find_critical_path
from traces.trace import KEY_FIELDS, Key, LaneId, Span, Trace, lane_name, lane_order

NAMED = 5
"""How many of the tasks that only one run has are named."""

_START_ID = itemgetter(Span._fields.index("start_ns"), Span._fields.index("id"))


@dataclass(frozen=True, slots=True)
class Alignment:
    """Spans that both traces have, in pairs in the second one's order of time, and those that only one has."""

    pairs: list[tuple[Span, Span]]
    only_a: list[Span]
    only_b: list[Span]


@dataclass(slots=True)
class OpChange:
    """One op on its lane in both runs: tasks that both have. `errors` are |B − A| / A of those with A > 0."""

    op: str
    lane_a: str
    lane_b: str
    pairs: int = 0
    a_ns: int = 0
    b_ns: int = 0
    errors: list[float] = field(default_factory=list, repr=False)

    @property
    def mean_abs_error(self) -> float | None:
        """MAPE of B against A, 0.1 for 10 %; None if no task took any time in A."""
        return sum(self.errors) / len(self.errors) if self.errors else None

    @property
    def bias(self) -> float | None:
        """How much more time B's tasks took in all, 0.1 for 10 %; None if A's took none."""
        return (self.b_ns - self.a_ns) / self.a_ns if self.a_ns else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "lane_a": self.lane_a,
            "lane_b": self.lane_b,
            "tasks": self.pairs,
            "a_s": self.a_ns / 1e9,
            "b_s": self.b_ns / 1e9,
            "change_s": (self.b_ns - self.a_ns) / 1e9,
            "mean_abs_error": self.mean_abs_error,
            "bias": self.bias,
        }


@dataclass(slots=True)
class PathChange:
    """One op's time on the two critical paths: `b_ns − a_ns = same_ns + joined_ns − left_ns`."""

    op: str
    lane: str
    a_ns: int = 0
    b_ns: int = 0
    same_ns: int = 0  # how much longer tasks on both paths took
    joined_ns: int = 0  # tasks on B's path alone
    left_ns: int = 0  # tasks on A's path alone

    @property
    def change_ns(self) -> int:
        return self.b_ns - self.a_ns

    def to_dict(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "lane": self.lane,
            "a_s": self.a_ns / 1e9,
            "b_s": self.b_ns / 1e9,
            "change_s": self.change_ns / 1e9,
            "same_tasks_s": self.same_ns / 1e9,
            "joined_path_s": self.joined_ns / 1e9,
            "left_path_s": self.left_ns / 1e9,
        }


@dataclass(frozen=True, slots=True)
class Account:
    """Where the difference of two makespans comes from, largest part first."""

    paths: tuple[PathChange, ...]
    a_gaps_ns: int
    b_gaps_ns: int

    @property
    def gaps_ns(self) -> int:
        """How much longer nothing on the path ran."""
        return self.b_gaps_ns - self.a_gaps_ns

    @property
    def total_ns(self) -> int:
        """The sum of all parts: B's makespan less A's."""
        return sum(part.change_ns for part in self.paths) + self.gaps_ns

    def to_dict(self) -> dict[str, Any]:
        return {
            "paths": [part.to_dict() for part in self.paths],
            "gaps": {"a_s": self.a_gaps_ns / 1e9, "b_s": self.b_gaps_ns / 1e9, "change_s": self.gaps_ns / 1e9},
            "total_s": self.total_ns / 1e9,
        }


@dataclass(frozen=True, slots=True)
class Diff:
    """Run B against run A. `ops` by the size of the change, `busy_ns` of each lane in A and in B."""

    a: Trace
    b: Trace
    alignment: Alignment
    ops: tuple[OpChange, ...]
    busy_ns: Mapping[LaneId, tuple[int, int]]
    account: Account

    @property
    def change_ns(self) -> int:
        """B's makespan less A's."""
        return self.b.makespan_ns - self.a.makespan_ns

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, in seconds."""
        return {
            "a": {"metadata": self.a.metadata, "makespan_s": self.a.makespan_ns / 1e9},
            "b": {"metadata": self.b.metadata, "makespan_s": self.b.makespan_ns / 1e9},
            "change_s": self.change_ns / 1e9,
            "where_the_time_went": self.account.to_dict(),
            "ops": [op.to_dict() for op in self.ops],
            "only_in_a": _only(self.alignment.only_a),
            "only_in_b": _only(self.alignment.only_b),
            "lanes": {
                lane_name(lane): {"a_busy_s": a_ns / 1e9, "b_busy_s": b_ns / 1e9}
                for lane, (a_ns, b_ns) in self.busy_ns.items()
            },
        }


def diff_traces(a: Trace, b: Trace, path_a: CriticalPath | None = None, path_b: CriticalPath | None = None) -> Diff:
    """Lay run B beside run A; their critical paths can be given if they are known.

    Raises InputError if the causes of one of them go round in a circle.
    """
    aligned = align(a, b)
    busy_a, busy_b = a.busy_ns(), b.busy_ns()
    lanes = sorted(busy_a.keys() | busy_b.keys(), key=lane_order)
    return Diff(
        a,
        b,
        aligned,
        _ops(aligned.pairs),
        {lane: (busy_a.get(lane, 0), busy_b.get(lane, 0)) for lane in lanes},
        _account(path_a or find_critical_path(a), path_b or find_critical_path(b), aligned),
    )


def align(a: Trace, b: Trace) -> Alignment:
    """Pair spans by their keys; where a key comes several times, the first with the first, and so on."""
    waiting: dict[Key, list[Span]] = {}
    for span in sorted(a.spans, key=_START_ID, reverse=True):
        waiting.setdefault(span.key, []).append(span)
    pairs = []
    only_b = []
    for span in sorted(b.spans, key=_START_ID):
        others = waiting.get(span.key)
        if others:
            pairs.append((others.pop(), span))
        else:
            only_b.append(span)
    left = [span for others in waiting.values() for span in others]
    return Alignment(pairs, sorted(left, key=_START_ID), only_b)


def by_op(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Spans by what they did, the ops with most of them first."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.op, []).append(span)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _ops(pairs: Iterable[tuple[Span, Span]]) -> tuple[OpChange, ...]:
    changes: dict[tuple[str, str, str], OpChange] = {}
    for a, b in pairs:
        where = (a.op, a.lane, b.lane)
        change = changes.get(where) or changes.setdefault(where, OpChange(*where))
        a_ns, b_ns = a.end_ns - a.start_ns, b.end_ns - b.start_ns
        change.pairs += 1
        change.a_ns += a_ns
        change.b_ns += b_ns
        if a_ns:
            change.errors.append(abs(b_ns - a_ns) / a_ns)
    return tuple(sorted(changes.values(), key=lambda one: (-abs(one.b_ns - one.a_ns), one.op)))


def _account(a: CriticalPath, b: CriticalPath, aligned: Alignment) -> Account:
    on_a = {span.id: ns for span, ns in zip(a.spans, a.on_path_ns, strict=True)}
    on_b = {span.id: ns for span, ns in zip(b.spans, b.on_path_ns, strict=True)}
    same_ns = {
        (one.id, other.id): on_b[other.id] - on_a[one.id]
        for one, other in aligned.pairs
        if one.id in on_a and other.id in on_b and one.lane == other.lane
    }
    on_both_a, on_both_b = {one for one, _ in same_ns}, {other: ns for (_, other), ns in same_ns.items()}
    parts: dict[tuple[str, str], PathChange] = {}

    def part(span: Span) -> PathChange:
        return parts.setdefault((span.op, span.lane), PathChange(span.op, span.lane))

    for span in a.spans:
        part(span).a_ns += on_a[span.id]
        if span.id not in on_both_a:
            part(span).left_ns += on_a[span.id]
    for span in b.spans:
        part(span).b_ns += on_b[span.id]
        if span.id in on_both_b:
            part(span).same_ns += on_both_b[span.id]
        else:
            part(span).joined_ns += on_b[span.id]
    ordered = sorted(parts.values(), key=lambda row: (-abs(row.change_ns), row.op, row.lane))
    return Account(tuple(ordered), a.gaps_ns, b.gaps_ns)


def _only(spans: list[Span]) -> dict[str, Any]:
    total_ns = sum(span.duration_ns for span in spans)
    counts = {op: len(found) for op, found in by_op(spans).items()}
    first = [dict(zip(KEY_FIELDS, span.key, strict=True)) for span in spans[:NAMED]]
    return {"tasks": len(spans), "total_s": total_ns / 1e9, "by_op": counts, "first": first}
