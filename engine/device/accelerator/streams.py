"""Lanes that are streams of a device, and the marks on them.

A stream works behind the host's back, so the memory that a copy uses must stay as it is until the stream has done it:
on the device the lane keeps it until it knows so, on the host its owner does. But for copies of pageable memory,
nothing here blocks the thread that gives work to the stream, until the lane ends.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.device.accelerator.clock import DeviceClock
from engine.device.accelerator.runtime import Event, Runtime, Stream
from engine.device.base import LaneContext, Mark
from engine.device.threads import HostCores
from sim.schedule import LaneKind


class StreamMark(Mark):
    """An event on a lane's stream. Once it tells its time, the event is let go of."""

    __slots__ = ("_anchor", "_clock", "_event", "_time_ns")

    of_device = True

    def __init__(self, event: Event, stream: Stream, clock: DeviceClock) -> None:
        self._clock = clock
        self._anchor = clock.tick()
        self._time_ns: int | None = None
        self._event: Event | None = event
        stream.record_event(event)

    @property
    def event(self) -> Event | None:
        """What to wait for; None if the point was reached."""
        return self._event

    def wait(self) -> None:
        if (event := self._event) is not None:
            event.synchronize()

    @property
    def reached(self) -> bool:
        """Whether the point is reached by now."""
        event = self._event
        return event is None or event.query()

    def settle(self) -> bool:
        if not self.reached:
            return False
        _ = self.time_ns
        return True

    @property
    def time_ns(self) -> int:
        event = self._event
        if event is not None:
            event.synchronize()
            self._time_ns = self._clock.host_ns(event, self._anchor)
            self._event = None
        assert self._time_ns is not None
        return self._time_ns


class StreamLane(LaneContext):
    """A lane that is a stream. `full` tells what it means that the model's own code found no memory."""

    def __init__(
        self,
        kind: LaneKind,
        stream: Stream,
        runtime: Runtime,
        clock: DeviceClock,
        cores: HostCores,
        default_threads: int,
        full: Callable[[torch.OutOfMemoryError], Exception],
    ) -> None:
        super().__init__(kind, cores, default_threads)
        self.stream = stream
        self._runtime = runtime
        self._clock = clock
        self._full = full
        self._copied: list[torch.Tensor] = []  # what copies since the last mark use, and what `keep` was given
        self._in_use: deque[tuple[StreamMark, list[torch.Tensor]]] = deque()

    def _contexts(self) -> Iterator[contextlib.AbstractContextManager[Any]]:
        *host, inference = super()._contexts()
        yield from (*host, self._runtime.on(self.stream), inference)

    def __exit__(self, kind: object = None, error: object = None, *trace: object) -> None:
        try:
            self.stream.synchronize()  # what follows finds the results, and what copies used may go
        finally:
            self._copied.clear()
            self._in_use.clear()
            super().__exit__()
        if isinstance(error, torch.OutOfMemoryError):  # of the model's own code
            raise self._full(error) from error

    def mark(self) -> StreamMark:
        mark = StreamMark(self._runtime.new_event(), self.stream, self._clock)
        if self._copied:
            self._in_use.append((mark, self._copied))
            self._copied = []
        while self._in_use and self._in_use[0][0].reached:
            self._in_use.popleft()
        return mark

    def wait(self, mark: Mark) -> None:
        if not isinstance(mark, StreamMark):
            mark.wait()
        elif (event := mark.event) is not None:
            self.stream.wait_event(event)

    def keep(self, *tensors: torch.Tensor) -> None:
        self._copied += tensors

    def _copy(self, dst: torch.Tensor, src: torch.Tensor, direction: LaneKind, pinned: bool) -> None:
        """Blocks this thread unless the host's side is page-locked and in one piece.

        Otherwise torch goes through a temporary of its own, which it must not read before the copy has ended. Such a
        copy begins when the stream has done what it was given before: the driver lets no thread make an event while
        one waits inside it.
        """
        host, on_device = (src, dst) if direction is LaneKind.H2D else (dst, src)
        unblocked = pinned and host.is_contiguous()
        if not unblocked:
            self.mark().wait()
        dst.copy_(src, non_blocking=unblocked)
        self._copied.append(on_device)  # or its memory might be handed out again before the copy has ended
