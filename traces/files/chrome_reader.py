"""The trace in a file that `chrome_writer` wrote, however it is laid out."""

import json

from msgspec import Raw, Struct, ValidationError
from msgspec.json import Decoder

from traces.errors import InputError, shown
from traces.files.document import SCHEMA, SECTION, Document, nanoseconds, take_each
from traces.trace import HOST_LANES, NONE, Counter, LaneId, Span, Trace


def chrome_trace(document: Document) -> Trace:
    """The trace in a file of this project.

    Raises InputError that says what is wrong if something is damaged or the file is of another schema.
    """
    section = json.loads(bytes(document.section))
    if not isinstance(section, dict) or section.get("schema") != SCHEMA:
        found = section.get("schema") if isinstance(section, dict) else section
        raise InputError(f"its {SECTION}.schema is {shown(found)}: this version reads schema {SCHEMA}")
    metadata, host_pid = section.get("metadata"), section.get("host_pid")
    if not isinstance(metadata, dict) or type(host_pid) is not int:
        raise InputError(f"its section {SECTION!r} lacks a usable 'metadata' or 'host_pid'")
    events = _Events(host_pid)
    take_each(document.events, events.take)
    return Trace(metadata, events.spans, events.counters)


class _SpanArgs(Struct, gc=False):
    id: int
    op: str
    step: int
    layer: int
    micro_batch: int
    page: int
    bytes: int
    flops: int
    bound: str
    waited_for: str
    cause: int


class _Slice(Struct, gc=False, tag_field="ph", tag="X"):
    pid: int
    tid: int
    ts: float
    dur: float
    args: _SpanArgs


class _Sample(Struct, gc=False, tag_field="ph", tag="C"):
    name: str
    pid: int
    ts: float
    args: dict[str, int | float]


class _NameArgs(Struct):
    name: str = ""


class _Name(Struct, tag_field="ph", tag="M"):
    name: str
    pid: int
    tid: int
    args: _NameArgs


class _Phase(Struct):
    ph: str


_decode = Decoder(_Slice | _Sample | _Name).decode
_decode_phase = Decoder(_Phase).decode


class _Events:
    """Collects what the events of one file say."""

    def __init__(self, host_pid: int) -> None:
        self.spans: list[Span] = []
        self.counters: list[Counter] = []
        self._host_pid = host_pid
        self._lanes: dict[tuple[int, int], LaneId] = {}  # (pid, tid) -> lane
        self._words: dict[str, str] = {}  # one copy of each string, which thousands of spans share

    def take(self, raw: Raw) -> None:
        try:
            event = _decode(raw)
        except ValidationError:
            if _decode_phase(raw).ph in "XCM":
                raise
            return  # an arrow, or what another program has added
        if type(event) is _Slice:
            self.spans.append(self._span(event))
        elif type(event) is _Sample:
            rank = NONE if event.pid == self._host_pid else event.pid
            self.counters.append(Counter(event.name, nanoseconds(event.ts), event.args, rank))
        elif type(event) is _Name and event.name == "thread_name":
            self._lanes[event.pid, event.tid] = _lane(event.args.name, event.pid)

    def _span(self, event: _Slice) -> Span:
        lane = self._lanes.get((event.pid, event.tid))
        if lane is None:
            raise ValueError("its thread has no name")
        args, word, start_ns = event.args, self._words.setdefault, nanoseconds(event.ts)
        return Span(
            args.id, word(args.op, args.op), *lane, args.step, args.layer, args.micro_batch, args.page,
            start_ns, start_ns + nanoseconds(event.dur), args.bytes, args.flops,
            word(args.bound, args.bound), word(args.waited_for, args.waited_for), args.cause,
        )  # fmt: skip


def _lane(thread_name: str, pid: int) -> LaneId:
    """The lane of a thread: a device's lanes are named by their kind, the host's `PIN`, `PIN:1` and so on."""
    kind, _, rank = thread_name.partition(":")
    return (kind, int(rank or 0)) if kind in HOST_LANES else (kind, pid)
