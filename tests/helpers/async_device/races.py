"""torch's race detector for CUDA streams, told of all that happens on ours.

The detector knows memory by an address each. Tensors overlap, so memory is cut where a tensor begins or ends, and each
piece is an address of its own; a piece that is cut later takes its history along. The detector is not told that memory
is freed: what takes its place must be ordered after those who used it before.

It takes what one thread of the host has waited for to be known to all. That hides races: a thread that gives work to a
stream keeps here what it has learnt to itself, and passes it on with memory that it frees and when it leaves its
stream. What other threads learn (attention on the host) reaches all, for they hand over by marks that are not seen.
"""

import bisect
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from async_device.interface import private
from async_device.streams import chosen_stream

if TYPE_CHECKING:
    from async_device.streams import Event, Stream


Done = dict[int, int]
"""The last kernel or copy of each stream that somebody knows to be done."""


class Span(NamedTuple):
    """Bytes of a block of memory, by addresses."""

    block: int
    start: int
    stop: int


class _WithoutStacks:
    """In place of `traceback` in the detector: it looks up the stack at every kernel, which takes most of the time."""

    class StackSummary:
        extract = staticmethod(lambda *_, **__: [])

    walk_stack = staticmethod(lambda _: ())


class Races:
    """What is ordered after what. `found` has an entry for each access that is not ordered after another."""

    def __init__(self) -> None:
        private("sanitizer").traceback = _WithoutStacks
        self.found: list[str] = []
        self._handler = private("EventHandler")()
        self._syncs = self._handler.syncs
        self._known: dict[int, Done] = {}  # by thread
        self._cuts: dict[int, list[int]] = {}

    def launched(self, stream: "Stream", what: str, reads: Iterable[Span], writes: Iterable[Span]) -> None:
        """A kernel or copy was given to a stream."""
        self.ordered_after(stream, self.knows())
        for span in (reads := list(reads)) + (writes := list(writes)):
            self._cut(span)
        written = {piece for span in writes for piece in self._pieces(span)}
        read = {piece for span in reads for piece in self._pieces(span)} - written
        aliases: dict[int, list[str]] = {piece: [] for piece in read | written}
        errors = self._handler._handle_kernel_launch(stream.number, read, written, set(), what, aliases)
        for error in errors:
            now, before = error.current_access, error.previous_access
            self.found.append(
                f"{now.type} memory in {what} on stream {now.stream}, not ordered after {before.operator} on stream "
                f"{before.stream} {before.type} it"
            )

    def recorded(self, event: "Event", stream: "Stream") -> None:
        self._handler._handle_event_record(id(event), stream.number)

    def waits(self, stream: "Stream", event: "Event") -> None:
        self._handler._handle_event_wait(id(event), stream.number)

    def forgotten(self, event: "Event") -> None:
        self._handler._handle_event_deletion(id(event))

    # what the host knows ----------------------------------------------------------------------------------------------

    def host_waited_for(self, event: "Event") -> None:
        self._learn(self._syncs.recorded_sync_states.get(id(event), {}))

    def host_saw(self, event: "Event") -> None:
        """A thread was told that the event was reached. What it does with that is not seen, so all may know."""
        self._tell_all(self._syncs.recorded_sync_states.get(id(event), {}))

    def host_waited_for_stream(self, stream: "Stream") -> None:
        self._learn(self._syncs.current_sync_states.get(stream.number, {}))

    def host_waited_for_all(self) -> None:
        for state in list(self._syncs.current_sync_states.values()):
            self._learn(dict(state))

    def knows(self) -> Done:
        """What this thread knows to be done, beyond what all do."""
        return dict(self._known.get(threading.get_ident(), {}))

    def ordered_after(self, stream: "Stream", known: Done) -> None:
        """What the stream is given from now on comes after this."""
        self._syncs._ensure_stream_exists(stream.number)
        _later(self._syncs.current_sync_states[stream.number], known)

    def tell_all(self) -> None:
        """The calling thread hands over to others: from now on all know what it knows."""
        self._tell_all(self._known.pop(threading.get_ident(), {}))

    def _learn(self, done: Done) -> None:
        if chosen_stream() is None:
            self._tell_all(done)
        else:
            _later(self._known.setdefault(threading.get_ident(), {}), done)

    def _tell_all(self, done: Done) -> None:
        for state in (*self._syncs.current_sync_states.values(), self._syncs.host_sync_state):
            _later(state, done)

    def _cut(self, span: Span) -> None:
        cuts = self._cuts.setdefault(span.block, [])
        known = self._handler.tensors_accessed.accesses
        for at in (span.start, span.stop):
            i = bisect.bisect_left(cuts, at)
            if i < len(cuts) and cuts[i] == at:
                continue
            if i and (whole := known.get(cuts[i - 1])):
                known[at] = private("TensorInfo")(whole.allocation_stack_trace, list(whole.reads), whole.write)
            cuts.insert(i, at)

    def _pieces(self, span: Span) -> list[int]:
        cuts = self._cuts[span.block]
        return cuts[bisect.bisect_left(cuts, span.start) : bisect.bisect_left(cuts, span.stop)]


def _later(state: Done, other: Done) -> None:
    for stream, number in other.items():
        state[stream] = max(state.get(stream, -1), number)
