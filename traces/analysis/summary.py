"""What happened in one run: how busy each lane was and what it waited for, time by op, bytes moved, memory peaks."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from traces.analysis.critical_path import totals
from traces.analysis.power import PowerUse, power_of
from traces.data_frame import as_json
from traces.trace import MEMORY, NONE, START_END, LaneId, Span, Trace, lane_name

OVERHEAD = "overhead"  # idle although, as far as the trace knows, nothing held the next task back
END_OF_RUN = "end of run"  # idle because the lane had nothing left to do
COPY_LANES = ("H2D", "D2H", "PIN", "DISK", "NET")  # their spans move bytes from one memory to another


@dataclass(slots=True)
class LaneUse:
    """What one lane did: nanoseconds busy, and idle by what it waited for, an op or one of the two words above.

    Uses add up: of the steps of a simulated run, and weighted where steps are interpolated.
    """

    lane: LaneId
    busy_ns: float = 0
    waited_ns: dict[str, float] = field(default_factory=dict)
    num_spans: int = 0
    moved_bytes: int = 0

    def add(self, other: "LaneUse", weight: float = 1) -> None:
        """Accumulate the times of another stretch of the run."""
        self.busy_ns += weight * other.busy_ns
        for what, waited_ns in other.waited_ns.items():
            self.waited_ns[what] = self.waited_ns.get(what, 0) + weight * waited_ns

    @property
    def idle_ns(self) -> float:
        """What the lane waited, whatever for."""
        return sum(self.waited_ns.values())

    @property
    def busy_share(self) -> float:
        """The part of the run, 0 to 1, in which the lane worked."""
        whole_ns = self.busy_ns + self.idle_ns
        return self.busy_ns / whole_ns if whole_ns else 0.0

    @property
    def copies(self) -> bool:
        """Whether the lane moves bytes from one memory to another."""
        return self.lane[0] in COPY_LANES

    @property
    def bytes_per_s(self) -> float:
        """The mean rate at which a copy lane moves bytes while it works."""
        return self.moved_bytes / (self.busy_ns / 1e9) if self.busy_ns else 0.0

    def to_dict(self) -> dict[str, Any]:
        fields = {"spans": self.num_spans, **as_json(self, "busy_ns", "busy_share", "idle_ns")}
        fields["waited_s"] = {what: ns / 1e9 for what, ns in self.waited_ns.items()}
        return fields | ({"bytes": self.moved_bytes, "bytes_per_s": self.bytes_per_s} if self.copies else {})


@dataclass(frozen=True, slots=True)
class OpUse:
    """All spans of one op on one kind of lane."""

    op: str
    lane: str
    num_spans: int
    total_ns: int
    longest_ns: int

    def to_dict(self) -> dict[str, Any]:
        return {"spans": self.num_spans, **as_json(self, "op", "lane", "total_ns", "longest_ns")}


@dataclass(frozen=True, slots=True)
class Summary:
    """One run. Lanes in the order people read them, ops by the time they took; `memory_peak_bytes` by tier."""

    metadata: Mapping[str, Any]
    makespan_ns: int
    lanes: tuple[LaneUse, ...]
    ops: tuple[OpUse, ...]
    memory_peak_bytes: Mapping[str, float]
    power: tuple[PowerUse, ...]
    """Of the parts whose power was recorded."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, in seconds and bytes."""
        return {
            "metadata": dict(self.metadata),
            "makespan_s": self.makespan_ns / 1e9,
            "lanes": {lane_name(use.lane): use.to_dict() for use in self.lanes},
            "ops": [use.to_dict() for use in self.ops],
            "memory_peak_bytes": dict(self.memory_peak_bytes),
            "power": {use.name: use.to_dict() for use in self.power},
        }


def summarise(trace: Trace) -> Summary:
    """Go over the spans of a run once. What a lane did and what it waited for add up to the makespan."""
    of_lane: dict[LaneId, list[Span]] = {lane: [] for lane in trace.lanes()}
    for span in sorted(trace.spans, key=START_END):
        of_lane[span.lane, span.rank].append(span)
    by_id = {span.id: span for span in trace.spans}
    start_ns, end_ns = trace.start_ns, trace.end_ns
    lanes = tuple(_lane(lane, spans, by_id, start_ns, end_ns) for lane, spans in of_lane.items())
    return Summary(trace.metadata, end_ns - start_ns, lanes, _ops(trace), _memory_peaks(trace), power_of(trace))


def _lane(lane: LaneId, spans: list[Span], by_id: Mapping[int, Span], start_ns: int, end_ns: int) -> LaneUse:
    waits: list[tuple[str, float]] = []
    free_at = start_ns
    for span in spans:
        if span.start_ns > free_at:
            waits += _waits(span, free_at, by_id)
        free_at = span.end_ns
    if end_ns > free_at:
        waits.append((END_OF_RUN, end_ns - free_at))
    busy_ns, moved = sum(span.duration_ns for span in spans), sum(span.bytes for span in spans)
    return LaneUse(lane, busy_ns, totals(waits), len(spans), moved)


def _waits(span: Span, idle_from_ns: int, by_id: Mapping[int, Span]) -> Iterator[tuple[str, int]]:
    """What a lane idled for before a span: until the end of its cause for that op, then for nothing that is known."""
    idle_ns = span.start_ns - idle_from_ns
    if span.cause == NONE:
        yield span.waited_for or OVERHEAD, idle_ns
        return
    cause = by_id[span.cause]
    held_ns = min(max(cause.end_ns - idle_from_ns, 0), idle_ns)  # 0 if the cause is on the same lane
    if held_ns:
        yield cause.op, held_ns
    if idle_ns > held_ns:
        yield OVERHEAD, idle_ns - held_ns


def _ops(trace: Trace) -> tuple[OpUse, ...]:
    found: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for span in trace.spans:
        found[span.op, span.lane].append(span.duration_ns)
    uses = (OpUse(*where, len(ns), sum(ns), max(ns)) for where, ns in found.items())
    return tuple(sorted(uses, key=lambda use: (-use.total_ns, use.op, use.lane)))


def _memory_peaks(trace: Trace) -> dict[str, float]:
    """The most that each tier held: `device` of rank 0, `device:1` of rank 1, and those of the host."""
    peaks: dict[tuple[str, int], float] = {}
    for counter in trace.counters:
        if counter.name == MEMORY:
            for tier, held in counter.values.items():
                where = (tier, counter.rank)
                peaks[where] = max(peaks.get(where, held), held)
    return {f"{tier}:{rank}" if rank > 0 else tier: peak for (tier, rank), peak in peaks.items()}
