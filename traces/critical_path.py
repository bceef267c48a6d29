"""The chain of spans that made the run as long as it was: shorten none of these and nothing gets faster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from traces.errors import InputError
from traces.trace import NONE, Span, Trace


class Gap(NamedTuple):
    """Time on the critical path in which none of its spans ran: latency, or a wait that the trace does not explain."""

    start_ns: int
    end_ns: int
    before: Span  # the span that came next; its `waited_for` says what for


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
    def gap_share(self) -> float:
        """The part of the makespan, 0 to 1, in which no span of the path ran."""
        return sum(gap.end_ns - gap.start_ns for gap in self.gaps) / self.makespan_ns if self.makespan_ns else 0.0

    def share_by_op(self) -> dict[str, float]:
        """The part of the makespan, 0 to 1, that each op spent on the path, largest first."""
        return self._share(lambda span: span.op)

    def share_by_lane(self) -> dict[str, float]:
        """The part of the makespan, 0 to 1, that the path spent on each kind of lane, largest first."""
        return self._share(lambda span: span.lane)

    def _share(self, group: Callable[[Span], str]) -> dict[str, float]:
        total: dict[str, int] = {}
        for span, on_path_ns in zip(self.spans, self.on_path_ns, strict=True):
            total[group(span)] = total.get(group(span), 0) + on_path_ns
        ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))
        return {name: ns / self.makespan_ns if self.makespan_ns else 0.0 for name, ns in ordered}


def critical_path(trace: Trace) -> CriticalPath:
    """Follow causes back from the span that ends last (of several, the one with the lowest id).

    Raises InputError if causes go round in a circle.
    """
    if not trace.spans:
        return CriticalPath((), (), (), 0)
    start_ns = trace.start_ns
    spans = _chain(trace.spans)
    on_path_ns: list[int] = []
    gaps: list[Gap] = []
    reached_ns = start_ns
    for span in spans:
        if span.start_ns > reached_ns:
            gaps.append(Gap(reached_ns, span.start_ns, span))
            reached_ns = span.start_ns
        on_path_ns.append(max(0, span.end_ns - reached_ns))
        reached_ns = max(reached_ns, span.end_ns)
    return CriticalPath(tuple(spans), tuple(on_path_ns), tuple(gaps), reached_ns - start_ns)


def _chain(spans: list[Span]) -> list[Span]:
    by_id = {span.id: span for span in spans}
    span = max(spans, key=lambda span: (span.end_ns, -span.id))
    chain = [span]
    seen = {span.id}
    while span.cause != NONE:
        span = by_id[span.cause]
        if span.id in seen:
            raise InputError(f"span {span.id} ({span.op}) is its own cause, through {len(seen)} spans")
        seen.add(span.id)
        chain.append(span)
    chain.reverse()
    return chain
