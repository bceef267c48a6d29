"""A run as it happened: spans on lanes, counters beside them, and where they come from.

The same nouns hold what the simulator predicts, what the engine measures and what a file keeps, so that any two runs
can be laid side by side task by task.
"""

import collections
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from traces.errors import InputError

NONE = -1  # no such coordinate: a span outside any layer, a counter of the host, a span that nothing held back
DEVICE_LANES = ("GPU", "H2D", "D2H", "NET")  # each device has them for itself; in the order people read them
HOST_LANES = ("CPU", "PIN", "DISK")  # they run on the host; in the order people read them

MEMORY = "memory (bytes)"
"""The counter of occupied memory. Its series are tiers: `device` on a device; `host`, `pinned`, `disk` on the host."""

LINK_RATE = "link rate (bytes/s)"
"""The counter of what a device's link carries. Its series are directions: `H2D`, `D2H`."""

POWER = "power (W)"
"""The counter of what parts of a machine draw. Its series are `device` and `link` on a device; `host` (its package of
cores), `host memory`, `network` and `rest` (board, fans, what the supply loses) on the host."""

MAX_NS = 2**51  # 26 days: after it, trace viewers' microseconds, kept as doubles, lose nanoseconds
MAX_COUNT = 2**63 - 1  # the most that a span or a counter holds: trace viewers keep whole numbers in 64 bits

LaneId = tuple[str, int]
"""(kind, rank): which stream of work on which device."""

Key = tuple[str, int, int, int, int, int]
"""(op, rank, step, layer, micro-batch, page): what a span did, the same in every run of a schedule."""


class Span(NamedTuple):
    """One task from start to end on one lane. A tuple, because a simulation makes hundreds of thousands."""

    id: int
    op: str
    lane: str  # the kind: one of DEVICE_LANES or HOST_LANES
    rank: int
    step: int
    layer: int
    micro_batch: int
    page: int
    start_ns: int
    end_ns: int
    bytes: int = 0  # moved by a copy, read and written by a computation
    flops: int = 0
    bound: str = ""  # the roof that set its duration
    waited_for: str = ""  # what its lane idled for before it started
    cause: int = NONE  # the span whose end let this one start

    @property
    def key(self) -> Key:
        """What the span did: equal in two runs of one schedule."""
        return (self.op, self.rank, self.step, self.layer, self.micro_batch, self.page)

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns

    def key_fields(self) -> dict[str, str | int]:
        """The key with its fields' names, as JSON values."""
        return dict(zip(("op", "rank", "step", "layer", "micro_batch", "page"), self.key, strict=True))


class Counter(NamedTuple):
    """The values of some series from `time_ns` until the counter's next sample."""

    name: str
    time_ns: int
    values: Mapping[str, float]
    rank: int = NONE  # the device it belongs to; NONE: the host


def span_getter(*fields: str) -> "itemgetter[Any]":
    """Fields of a span as a tuple, to sort and to group by: faster than attributes are."""
    return itemgetter(*map(Span._fields.index, fields))


_LANE_RANK = span_getter("lane", "rank")
START_END = span_getter("start_ns", "end_ns")
"""Sorts spans by time."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Spans and counters of one run.

    `metadata` holds JSON values. Its `origin` says what the numbers are: `simulated`, `emulated device`, `published`,
    `real GPU (name)`, or `XLA (name)` of a device as JAX calls it. By custom it also names `schedule, model, hardware,
    policy, versions, input_hash`.

    Raises InputError if spans of one lane overlap, ids repeat, a cause is missing, or a value is out of range.
    """

    metadata: dict[str, Any]
    spans: list[Span] = field(default_factory=list)
    counters: list[Counter] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_metadata(self.metadata)
        _check_values(self.spans)
        _check_ids(self.spans)
        _check_overlap(self.spans)
        _check_counters(self.counters)

    @property
    def origin(self) -> str:
        """What the numbers are; shown wherever they are."""
        return str(self.metadata["origin"])

    @property
    def start_ns(self) -> int:
        return min((span.start_ns for span in self.spans), default=0)

    @property
    def end_ns(self) -> int:
        return max((span.end_ns for span in self.spans), default=0)

    @property
    def makespan_ns(self) -> int:
        """From the first start to the last end."""
        return self.end_ns - self.start_ns

    def lanes(self) -> list[LaneId]:
        """Every lane that worked: the devices by rank, then the host."""
        return sorted(set(map(_LANE_RANK, self.spans)), key=lane_order)

    def busy_ns(self) -> dict[LaneId, int]:
        """How long each lane worked."""
        busy = dict.fromkeys(self.lanes(), 0)
        for span in self.spans:
            busy[span.lane, span.rank] += span.end_ns - span.start_ns
        return busy

    def spans_of(self, lane: LaneId) -> list[Span]:
        """The spans of one lane, in time order."""
        kind, rank = lane
        return sorted((span for span in self.spans if span.lane == kind and span.rank == rank), key=START_END)


def lane_order(lane: LaneId) -> tuple[bool, int, int]:
    """Sorts lanes as people read them: devices by rank, then the host."""
    kind, rank = lane
    on_host = kind in HOST_LANES
    return (on_host, rank, (HOST_LANES if on_host else DEVICE_LANES).index(kind))


def lane_name(lane: LaneId) -> str:
    """What people call a lane: its kind, with the rank behind it where that is not 0."""
    kind, rank = lane
    return f"{kind}:{rank}" if rank else kind


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    origin = metadata.get("origin")
    fixed = origin in ("simulated", "emulated device", "published")
    if not fixed and not (isinstance(origin, str) and origin.startswith(("real GPU (", "XLA (")) and origin[-1] == ")"):
        known = "'simulated', 'emulated device', 'published', 'real GPU (name)' or 'XLA (name)'"
        raise InputError(f"metadata.origin is {origin!r}: say {known}")
    for name, value in metadata.items():
        try:
            survives = isinstance(name, str) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            survives = False
        if not survives:
            raise InputError(f"metadata.{name} is {value!r}: a JSON value is needed (no tuples, no NaN, string keys)")


def _check_values(spans: Iterable[Span]) -> None:
    for span in spans:
        if span.lane not in DEVICE_LANES and span.lane not in HOST_LANES:
            known = ", ".join(DEVICE_LANES + HOST_LANES)
            raise InputError(f"{_told(span)} is on lane {span.lane!r}: lanes are {known}")
        if not 0 <= span.start_ns <= span.end_ns <= MAX_NS:
            ran = f"from {span.start_ns} to {span.end_ns} ns"
            raise InputError(f"{_told(span)} runs {ran}: a span ends at or after its start, both within 0 to 2^51 ns")
        if span.rank < 0 or not 0 <= span.bytes <= MAX_COUNT or not 0 <= span.flops <= MAX_COUNT:
            given = f"rank {span.rank}, {span.bytes} bytes, {span.flops} flops"
            raise InputError(f"{_told(span)} has {given}: none may be negative, or above 2^63 - 1")


def _check_ids(spans: list[Span]) -> None:
    starts_ns = {span.id: span.start_ns for span in spans}
    if len(starts_ns) != len(spans):
        twice, count = collections.Counter(span.id for span in spans).most_common(1)[0]
        raise InputError(f"{count} spans have the id {twice}: ids must be unique")
    for span in spans:
        if span.cause != NONE and starts_ns.get(span.cause, MAX_NS + 1) > span.start_ns:
            wrong = "started later" if span.cause in starts_ns else "is no span's id"
            raise InputError(f"{_told(span)} has cause {span.cause}, which {wrong}: use {NONE} for none")


def _check_overlap(spans: list[Span]) -> None:
    latest: dict[LaneId, Span] = {}
    for span in sorted(spans, key=START_END):
        lane = _LANE_RANK(span)
        before = latest.get(lane)
        if before is not None and span.start_ns < before.end_ns:
            clash = f"{_told(span)} starts at {span.start_ns} ns while {_told(before)}"
            until = f"runs until {before.end_ns} ns on the same lane ({span.lane}, rank {span.rank})"
            raise InputError(f"{clash} {until}: a lane does one thing at a time")
        latest[lane] = span


def _check_counters(counters: Iterable[Counter]) -> None:
    for name, time_ns, values, rank in counters:
        if not 0 <= time_ns <= MAX_NS:
            raise InputError(f"counter {name!r} has a sample at {time_ns} ns: times are within 0 to 2^51 ns")
        if rank < NONE:
            raise InputError(f"counter {name!r} has rank {rank}: it must be a device's rank, or {NONE} for the host")
        if not values or not all(abs(value) <= MAX_COUNT for value in values.values()):
            raise InputError(f"counter {name!r} is {values!r} at {time_ns} ns: it needs numbers within ±(2^63 - 1)")


def _told(span: Span) -> str:
    return f"span {span.id} ({span.op}, step {span.step}, layer {span.layer}, micro-batch {span.micro_batch})"
