"""Streams that run late, and events on them. One thing runs at a time, under one lock; what is late stays queued."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from async_device.machine import Machine
    from async_device.races import Span

LOCK = threading.RLock()
LATE = None
AT_ONCE = 0

_chosen = threading.local()


class Stream:
    """Work in order. `lag` is how many pieces of it may wait for their turn: LATE any number, AT_ONCE none."""

    def __init__(self, machine: "Machine", number: int) -> None:
        self.machine = machine
        self.number = number
        self.lag: int | None = LATE
        self.works = False  # whether it was ever given a kernel or a copy
        self.issued = self.done = self.known = 0  # pieces of work; of those done, the host waited for the known ones
        self._queue: deque[Callable[[], object]] = deque()

    @property
    def device(self) -> torch.device:
        return self.machine.device

    def put(self, work: Callable[[], object]) -> int:
        """Queues work. Returns how many pieces there are with it."""
        with LOCK:
            self._queue.append(work)
            self.issued += 1
            at = self.issued
            if self.lag is not LATE:
                self.run(at - self.lag)
            return at

    def launch(self, what: str, reads: "list[Span]", writes: "list[Span]", work: Callable[[], object]) -> None:
        """Queues a kernel or a copy."""
        with LOCK:
            self.works = True
            self.machine.races.launched(self, what, reads, writes)
            self.put(work)

    def run(self, upto: int | None = None) -> None:
        """Does the work up to a piece, and what that waits for on other streams."""
        with LOCK, torch.inference_mode():
            upto = self.issued if upto is None else upto
            while self.done < upto:
                work = self._queue.popleft()
                self.done += 1
                work()

    def wait_event(self, event: "Event") -> None:
        with LOCK:
            if event.stream is not None:
                stream, at = event.stream, event.at
                self.machine.races.waits(self, event)
                self.put(lambda: stream.run(at))

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event(self.machine)
        event.record(self)
        return event

    def synchronize(self, why: str = "stream") -> None:
        with LOCK:
            self.machine.host_waits(why)
            self.run()
            self.known = self.issued
            self.machine.races.host_waited_for_stream(self)


class Event:
    """A point on a stream; knows when it was reached."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self.stream: Stream | None = None
        self.at = 0
        self.time_ns: int | None = None
        machine.events.add(self)

    def record(self, stream: Stream) -> None:
        def happen() -> None:
            self.time_ns = time.perf_counter_ns()

        with LOCK:
            self.stream, self.time_ns = stream, None
            self._machine.races.recorded(self, stream)
            self.at = stream.put(happen)

    def query(self) -> bool:
        """Whether the host can be sure of it: one that merely looks may always look too early."""
        with LOCK:
            if self.stream is None:
                return True
            done = self.stream.done if self._machine.tells_early else self.stream.known
            if done >= self.at:
                self._machine.races.host_saw(self)
            return done >= self.at

    def synchronize(self) -> None:
        with LOCK:
            if self.stream is None:
                return
            if self.stream.done < self.at and self.stream.works:
                self._machine.host_waits("event")
            self.stream.run(self.at)
            self.stream.known = max(self.stream.known, self.at)
            self._machine.races.host_waited_for(self)

    def elapsed_time(self, end: "Event") -> float:
        assert self.time_ns is not None, "the first event has not happened"
        assert end.time_ns is not None, "the second event has not happened"
        return (end.time_ns - self.time_ns) / 1e6

    def __del__(self) -> None:
        with LOCK:
            self._machine.races.forgotten(self)


def chosen_stream() -> Stream | None:
    """The stream that this thread computes on, if it chose one."""
    return getattr(_chosen, "stream", None)


def choose_stream(stream: Stream | None) -> None:
    _chosen.stream = stream
