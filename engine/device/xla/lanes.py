"""Lanes that give XLA its work: what they are given is done later, in the order in which it was given.

JAX hands out arrays before they are computed, and nothing but an array says when it is. So each lane has a thread that
waits for its arrays one after the other and notes when each was there: the times of spans are what that thread saw.
"""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Self

import jax

from engine.device.base import LaneContext, Mark
from engine.device.threads import HostCores
from sim.schedule import LaneKind


class XlaMark(Mark):
    """Reached when the arrays that a lane was given until here are there."""

    def __init__(self, arrays: list[jax.Array]) -> None:
        self._arrays = arrays
        self._over = threading.Event()
        self._time_ns = 0
        self._failed: BaseException | None = None

    def reach(self) -> None:
        """Waits for the arrays; in the thread that watches the lane, or where there are none."""
        try:
            jax.block_until_ready(self._arrays)
        except Exception as error:  # of the computation; whoever waits is told
            self._failed = error
        self._time_ns = time.perf_counter_ns()
        self._arrays = []
        self._over.set()

    def wait(self) -> None:
        self._over.wait()
        if self._failed is not None:
            raise self._failed

    def settle(self) -> bool:
        return self._over.is_set()

    @property
    def time_ns(self) -> int:
        self.wait()
        return self._time_ns


class XlaLane(LaneContext):
    """One lane. `gave` tells it of every array that a task has asked XLA for and that nobody will overwrite in place.

    What other lanes do is waited for on the host: JAX has no event that one queue of a device could wait for.
    """

    def __init__(self, kind: LaneKind, cores: HostCores) -> None:
        super().__init__(kind, cores, default_threads=cores.attention)
        self._given: list[jax.Array] = []
        self._last = XlaMark([])
        self._last.reach()
        self._marks: queue.SimpleQueue[XlaMark | None] = queue.SimpleQueue()
        self._watcher = threading.Thread(target=self._watch, name=f"{kind} of XLA", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._marks.put(None)
        self._watcher.join()

    def gave(self, *arrays: jax.Array) -> None:
        """These are part of what the next mark waits for."""
        self._given += arrays

    def mark(self) -> Mark:
        before, self._last = self._last, XlaMark(self._given)
        if self._given or not before.settle():
            self._marks.put(self._last)
        else:
            self._last.reach()
        self._given = []
        return self._last

    def wait(self, mark: Mark) -> None:
        mark.wait()

    def _contexts(self) -> Iterator[AbstractContextManager[Any]]:
        return iter(())

    def _watch(self) -> None:
        while (mark := self._marks.get()) is not None:
            mark.reach()
