"""Lanes whose work a host thread does itself, at once."""

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch

from engine.device.base import LaneContext, Mark
from engine.device.emulated import intra_op_threads
from sim.schedule import LaneKind


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

    def __init__(self, kind: LaneKind, threads: int, default_threads: int) -> None:
        super().__init__(kind)
        self._threads = threads
        self._default_threads = default_threads
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._entered.enter_context(intra_op_threads(self._threads, self._default_threads))
        self._entered.enter_context(torch.inference_mode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def mark(self) -> Mark:
        return HostMark()

    def begin(self, before: Mark, deps: Sequence[Mark]) -> Mark:
        """A thread is at work from one task to the next: what it does between two is part of the second."""
        points = [mark for mark in (before, *deps) if isinstance(mark, HostMark)]
        return max(points, key=lambda mark: mark.time_ns) if len(points) == 1 + len(deps) else self.mark()

    def wait(self, mark: Mark) -> None:
        mark.wait()

    def copy_h2d(self, dst: torch.Tensor, src: torch.Tensor, *, pinned: bool = True) -> None:
        raise RuntimeError(f"lane {self.kind} has no link to the device")

    def copy_d2h(self, dst: torch.Tensor, src: torch.Tensor, *, pinned: bool = True) -> None:
        raise RuntimeError(f"lane {self.kind} has no link to the device")
