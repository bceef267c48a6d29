"""Lanes whose work a host thread does itself, at once."""

import time
from collections.abc import Sequence

from engine.device.base import LaneContext, Mark


class HostMark(Mark):
    """A point that is reached already: a thread has done its work when it says so."""

    __slots__ = ("_time_ns",)

    def __init__(self) -> None:
        self._time_ns = time.perf_counter_ns()

    def wait(self) -> None:
        return

    @property
    def time_ns(self) -> int:
        return self._time_ns


class ThreadLane(LaneContext):
    """A lane that is a thread: its work is done when the call that does it returns. It has no link to copy over."""

    def mark(self) -> Mark:
        return HostMark()

    def begin(self, before: Mark, deps: Sequence[Mark]) -> Mark:
        """A thread is at work from one task to the next: what it does between two is part of the second."""
        points = [mark for mark in (before, *deps) if isinstance(mark, HostMark)]
        return max(points, key=lambda mark: mark.time_ns) if len(points) == 1 + len(deps) else self.mark()

    def wait(self, mark: Mark) -> None:
        mark.wait()
