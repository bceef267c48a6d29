"""torch's race detector for CUDA streams, told of all that happens on ours.

The detector knows memory by an address each. Tensors overlap, so memory is cut where a tensor begins or ends, and each
piece is an address of its own; a piece that is cut later takes its history along. The detector is not told that memory
is freed: what takes its place must be ordered after those who used it before.
"""

import bisect
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from async_device.interface import private

if TYPE_CHECKING:
    from async_device.streams import Event, Stream


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
        self._cuts: dict[int, list[int]] = {}

    def launched(self, stream: "Stream", what: str, reads: Iterable[Span], writes: Iterable[Span]) -> None:
        """A kernel or copy was given to a stream."""
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

    def host_waited_for(self, event: "Event") -> None:
        self._handler._handle_event_synchronization(id(event))

    def host_waited_for_stream(self, stream: "Stream") -> None:
        self._handler._handle_stream_synchronization(stream.number)

    def host_waited_for_all(self) -> None:
        self._handler._handle_device_synchronization()

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
