"""Two runs task by task: what changed in each op and lane, and where the difference in time comes from.

The makespan is the time on the critical path plus its gaps, in each run. So the difference of two makespans is, op by
op, the difference of their times on the two paths, plus the difference of the gaps: it adds up to the nanosecond. An
op's part is split further: tasks on both paths that took longer, tasks that came onto the path, tasks that left it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from traces.analysis.critical_path import CriticalPath, find_critical_path, totals
from traces.data_frame import as_json
from traces.trace import Key, LaneId, Span, Trace, lane_name, lane_order, span_getter

NAMED = 5  # of the tasks that only one run has
_START_ID = span_getter("start_ns", "id")


@dataclass(frozen=True, slots=True)
class Alignment:
    """Spans that both traces have, in pairs in the second one's order of time, and those that only one has."""

    pairs: list[tuple[Span, Span]]
    only_a: list[Span]
    only_b: list[Span]


@dataclass(frozen=True, slots=True)
class OpChange:
    """One op on its lane in both runs: tasks that both have."""

    op: str
    lane_a: str
    lane_b: str
    tasks: int
    a_ns: int
    b_ns: int
    mean_abs_error: float | None
    """MAPE of B against A, 0.1 for 10 %; None if no task took any time in A."""

    @property
    def change_ns(self) -> int:
        return self.b_ns - self.a_ns

    @property
    def bias(self) -> float | None:
        """How much more time B's tasks took in all, 0.1 for 10 %; None if A's took none."""
        return self.change_ns / self.a_ns if self.a_ns else None

    def to_dict(self) -> dict[str, Any]:
        return as_json(self, *self.__slots__, "change_ns", "bias")


@dataclass(slots=True)
class PathChange:
    """One op's time on the two critical paths: the change is `same_tasks + joined_path − left_path`."""

    op: str
    lane: str
    a_ns: int = 0
    b_ns: int = 0
    same_tasks_ns: int = 0  # how much longer tasks on both paths took
    joined_path_ns: int = 0  # tasks on B's path alone
    left_path_ns: int = 0  # tasks on A's path alone

    @property
    def change_ns(self) -> int:
        return self.b_ns - self.a_ns

    def to_dict(self) -> dict[str, Any]:
        return as_json(self, *self.__slots__, "change_ns")


@dataclass(frozen=True, slots=True)
class Account:
    """Where the difference of two makespans comes from, largest part first."""

    paths: tuple[PathChange, ...]
    gaps: PathChange
    """Time in which nothing on the path ran."""

    @property
    def total_ns(self) -> int:
        """The sum of all parts: B's makespan less A's."""
        return sum(part.change_ns for part in (*self.paths, self.gaps))

    def to_dict(self) -> dict[str, Any]:
        gaps = as_json(self.gaps, "a_ns", "b_ns", "change_ns")
        return {"paths": [part.to_dict() for part in self.paths], "gaps": gaps, "total_s": self.total_ns / 1e9}


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
        lanes = {lane_name(lane): {"a_busy_s": a / 1e9, "b_busy_s": b / 1e9} for lane, (a, b) in self.busy_ns.items()}
        return {
            "a": {"metadata": self.a.metadata, "makespan_s": self.a.makespan_ns / 1e9},
            "b": {"metadata": self.b.metadata, "makespan_s": self.b.makespan_ns / 1e9},
            "change_s": self.change_ns / 1e9,
            "where_the_time_went": self.account.to_dict(),
            "ops": [op.to_dict() for op in self.ops],
            "only_in_a": _only(self.alignment.only_a),
            "only_in_b": _only(self.alignment.only_b),
            "lanes": lanes,
        }


def diff_traces(a: Trace, b: Trace, path_a: CriticalPath | None = None, path_b: CriticalPath | None = None) -> Diff:
    """Lay run B beside run A; their critical paths can be given if they are known.

    Raises InputError if the causes of one of them go round in a circle.
    """
    aligned = align(a, b)
    account = _account(path_a or find_critical_path(a), path_b or find_critical_path(b), aligned)
    busy_a, busy_b = a.busy_ns(), b.busy_ns()
    lanes = sorted(busy_a.keys() | busy_b.keys(), key=lane_order)
    busy_ns = {lane: (busy_a.get(lane, 0), busy_b.get(lane, 0)) for lane in lanes}
    return Diff(a, b, aligned, _ops(aligned.pairs), busy_ns, account)


def align(a: Trace, b: Trace) -> Alignment:
    """Pair spans by their keys; where a key comes several times, the first with the first, and so on."""
    waiting: defaultdict[Key, list[Span]] = defaultdict(list)
    for span in sorted(a.spans, key=_START_ID, reverse=True):
        waiting[span.key].append(span)
    pairs = []
    only_b = []
    for span in sorted(b.spans, key=_START_ID):
        if others := waiting.get(span.key):
            pairs.append((others.pop(), span))
        else:
            only_b.append(span)
    left = [span for others in waiting.values() for span in others]
    return Alignment(pairs, sorted(left, key=_START_ID), only_b)


def count_by_op(spans: Iterable[Span]) -> dict[str, int]:
    """How many spans there are of each op, the most first."""
    return totals((span.op, 1) for span in spans)


def _ops(pairs: Iterable[tuple[Span, Span]]) -> tuple[OpChange, ...]:
    found: defaultdict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    for a, b in pairs:
        found[a.op, a.lane, b.lane].append((a.duration_ns, b.duration_ns))
    changes = []
    for where, times in found.items():
        errors = [abs(b_ns - a_ns) / a_ns for a_ns, b_ns in times if a_ns]
        mean = sum(errors) / len(errors) if errors else None
        a_ns, b_ns = map(sum, zip(*times, strict=True))
        changes.append(OpChange(*where, len(times), a_ns, b_ns, mean))
    return tuple(sorted(changes, key=lambda one: (-abs(one.change_ns), one.op)))


def _account(a: CriticalPath, b: CriticalPath, aligned: Alignment) -> Account:
    on_a = {span.id: ns for span, ns in zip(a.spans, a.on_path_ns, strict=True)}
    on_b = {span.id: ns for span, ns in zip(b.spans, b.on_path_ns, strict=True)}
    same_ns = {
        (one.id, other.id): on_b[other.id] - on_a[one.id]
        for one, other in aligned.pairs
        if one.id in on_a and other.id in on_b and one.lane == other.lane
    }
    on_both_a, on_both_b = {one for one, _ in same_ns}, {other: ns for (_, other), ns in same_ns.items()}
    parts = {(span.op, span.lane): PathChange(span.op, span.lane) for span in (*a.spans, *b.spans)}
    for span in a.spans:
        part, ns = parts[span.op, span.lane], on_a[span.id]
        part.a_ns += ns
        part.left_path_ns += 0 if span.id in on_both_a else ns
    for span in b.spans:
        part, ns = parts[span.op, span.lane], on_b[span.id]
        part.b_ns += ns
        part.same_tasks_ns += on_both_b.get(span.id, 0)
        part.joined_path_ns += 0 if span.id in on_both_b else ns
    ordered = sorted(parts.values(), key=lambda row: (-abs(row.change_ns), row.op, row.lane))
    return Account(tuple(ordered), PathChange("gaps", "", a.gaps_ns, b.gaps_ns))


def _only(spans: list[Span]) -> dict[str, Any]:
    total_ns = sum(span.duration_ns for span in spans)
    first = [span.key_fields() for span in spans[:NAMED]]
    return {"tasks": len(spans), "total_s": total_ns / 1e9, "by_op": count_by_op(spans), "first": first}
