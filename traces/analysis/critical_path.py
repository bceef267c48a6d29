"""The chain of spans that made the run as long as it was: shorten none of these and nothing gets faster."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from traces.data_frame import as_json
from traces.errors import InputError
from traces.trace import NONE, Span, Trace, lane_name

_Number = TypeVar("_Number", int, float)

DEPENDENCY = "dependency"  # what a real run's lane waited for: another lane's task, which the span's `cause` names


class Gap(NamedTuple):
    """Time on the critical path in which none of its spans ran: latency, or a wait that the trace does not explain."""

    start_ns: int
    end_ns: int
    before: Span  # the span that came next; its `waited_for` says what for

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns

    def to_dict(self) -> dict[str, Any]:
        return as_json(self, "start_ns") | {"s": self.duration_ns / 1e9, "before": self.before.key_fields()}


class Stretch(NamedTuple):
    """Spans of one lane that follow each other on the critical path, with none of another lane between them."""

    spans: tuple[Span, ...]
    on_path_ns: int  # without the gaps between them
    ns_by_op: dict[str, int]  # the same, largest first

    def to_dict(self) -> dict[str, Any]:
        first, last = self.spans[0], self.spans[-1]
        return {
            "lane": lane_name((first.lane, first.rank)),
            "start_s": first.start_ns / 1e9,
            "end_s": last.end_ns / 1e9,
            "on_path_s": self.on_path_ns / 1e9,
            "by_op_s": {op: ns / 1e9 for op, ns in self.ns_by_op.items()},
            "tasks": len(self.spans),
            "first": first.key_fields(),
            "last": last.key_fields(),
        }


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """Spans in time order, each let off by the one before, from the start of the trace to its last end.

    `on_path_ns` holds, per span, its time on the path: all of it, unless the clocks of a real run saw it start before
    its cause had ended. These times and the gaps add up to the makespan.
    """

    spans: tuple[Span, ...]
    on_path_ns: tuple[int, ...]
    gaps: tuple[Gap, ...]
    makespan_ns: int

    @property
    def gaps_ns(self) -> int:
        """How long no span of the path ran."""
        return sum(gap.duration_ns for gap in self.gaps)

    @property
    def gap_share(self) -> float:
        """The part of the makespan, 0 to 1, in which no span of the path ran."""
        return self._share(self.gaps_ns)

    def ns_by(self, what: str) -> dict[str, int]:
        """How long each `op`, or each kind of `lane`, ran on the path, largest first."""
        return totals((getattr(span, what), ns) for span, ns in self._on_path())

    def gap_ns_by(self, what: str) -> dict[str, int]:
        """How long the gaps before each `op`, or on each kind of `lane`, were, largest first."""
        return totals((getattr(gap.before, what), gap.duration_ns) for gap in self.gaps)

    def stretches(self) -> list[Stretch]:
        """The path cut where it goes from one lane to another, longest first."""
        found = []
        for _, run in groupby(self._on_path(), lambda item: (item[0].lane, item[0].rank)):
            spans, on_path_ns = zip(*run, strict=True)
            by_op = totals((span.op, ns) for span, ns in zip(spans, on_path_ns, strict=True))
            found.append(Stretch(spans, sum(on_path_ns), by_op))
        return sorted(found, key=lambda stretch: (-stretch.on_path_ns, stretch.spans[0].start_ns))

    def to_dict(self, top: int) -> dict[str, Any]:
        """The path as JSON values, in seconds, with so many of its longest stretches and gaps."""
        largest = sorted(self.gaps, key=lambda gap: (-gap.duration_ns, gap.start_ns))[:top]
        return {
            "makespan_s": self.makespan_ns / 1e9,
            "tasks": len(self.spans),
            "by_op": self._parts(self.ns_by("op")),
            "by_lane": self._parts(self.ns_by("lane")),
            "gaps": {
                "count": len(self.gaps),
                "s": self.gaps_ns / 1e9,
                "share": self.gap_share,
                "before_op": self._parts(self.gap_ns_by("op")),
                "longest": [gap.to_dict() for gap in largest],
            },
            "stretches": [stretch.to_dict() for stretch in self.stretches()[:top]],
        }

    def _parts(self, ns_by_name: dict[str, int]) -> dict[str, dict[str, float]]:
        return {name: {"s": ns / 1e9, "share": self._share(ns)} for name, ns in ns_by_name.items()}

    def _on_path(self) -> Iterator[tuple[Span, int]]:
        return zip(self.spans, self.on_path_ns, strict=True)

    def _share(self, ns: int) -> float:
        return ns / self.makespan_ns if self.makespan_ns else 0.0


def find_critical_path(trace: Trace) -> CriticalPath:
    """Follow causes back from the span that ends last (of several, the one with the lowest id).

    Raises InputError if causes go round in a circle.
    """
    if not trace.spans:
        return CriticalPath((), (), (), 0)
    spans = _chain(trace.spans)
    on_path_ns: list[int] = []
    gaps: list[Gap] = []
    reached_ns = trace.start_ns
    for span in spans:
        if span.start_ns > reached_ns:
            gaps.append(Gap(reached_ns, span.start_ns, span))
            reached_ns = span.start_ns
        on_path_ns.append(max(0, span.end_ns - reached_ns))
        reached_ns = max(reached_ns, span.end_ns)
    return CriticalPath(tuple(spans), tuple(on_path_ns), tuple(gaps), reached_ns - trace.start_ns)


def cause_of(start_ns: int, deps: Iterable[int], before: int, ends_ns: Mapping[int, int]) -> int:
    """The id of the task whose end let one start at `start_ns`; NONE if it waited for none.

    `deps` are its dependencies, `before` is the task before it on its lane; of those that had ended, the last to end.
    """
    ended = [id_ for id_ in (*deps, before) if id_ in ends_ns and ends_ns[id_] <= start_ns]
    return max(ended, key=lambda id_: ends_ns[id_], default=NONE)


def totals(parts: Iterable[tuple[str, _Number]]) -> dict[str, _Number]:
    """Sums by name, largest first."""
    total: dict[str, _Number] = {}
    for name, ns in parts:
        total[name] = total.get(name, 0) + ns
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _chain(spans: list[Span]) -> list[Span]:
    by_id = {span.id: span for span in spans}
    span = max(spans, key=lambda span: (span.end_ns, -span.id))
    chain = {span.id: span}
    while span.cause != NONE:
        span = by_id[span.cause]
        if span.id in chain:
            raise InputError(f"span {span.id} ({span.op}) is its own cause, through {len(chain)} spans")
        chain[span.id] = span
    return list(reversed(chain.values()))
