"""From an order of issue to tasks with dependencies.

A schedule says only what is issued where and in which order. What must wait for what follows from the slots: a read
waits for the write before it, a write waits for the write and all reads before it (so reuse of a buffer is a
dependency too).
"""

import itertools
from collections import defaultdict
from typing import NamedTuple

from sim.schedule.slots import Slot, SlotLayout
from sim.schedule.task import NONE, Lane, Op, Task


class Issue(NamedTuple):
    """A task as a schedule issues it: without id and dependencies."""

    op: Op
    lane: Lane
    step: int
    layer: int = NONE
    micro_batch: int = NONE
    page: int = NONE


class Barrier:
    """Issued between two tasks: nothing after it starts before everything before it has ended, on any lane."""


BARRIER = Barrier()


class DeadlockError(RuntimeError):
    """A schedule in which tasks wait for each other for ever: a bug of the schedule."""


class _SlotUse:
    """The last write of a slot and the reads since."""

    __slots__ = ("readers", "writer")

    def __init__(self) -> None:
        self.writer: int | None = None
        self.readers: list[int] = []


class DependencyTracker:
    """Numbers issued tasks and finds the dependencies of each.

    Dependencies that follow from others are left out: those on the task's own lane (a lane works in order), and
    those that an earlier task of the lane or another dependency has waited for already. `_clocks` knows for each
    task the latest task of every lane that has ended before it ends.
    """

    def __init__(self, layout: SlotLayout) -> None:
        self._layout = layout
        self._uses: defaultdict[Slot, _SlotUse] = defaultdict(_SlotUse)
        self._clocks: list[dict[Lane, int]] = []
        self._lanes: list[Lane] = []
        self._last_on_lane: dict[Lane, int] = {}
        self._barrier: tuple[int, ...] = ()
        self._met: set[Lane] = set()

    def barrier(self) -> None:
        """All lanes meet: the next task of each lane waits for the last task of every lane."""
        self._barrier = tuple(self._last_on_lane.values())
        self._met.clear()

    def add(self, issue: Issue) -> Task:
        """Give the issued task its id and dependencies."""
        task = Task(len(self._lanes), *issue)
        needed = self._conflicts(task)
        if task.lane not in self._met:
            self._met.add(task.lane)
            needed.extend(self._barrier)
        task = task._replace(deps=self._not_implied(needed, task))
        self._lanes.append(task.lane)
        self._last_on_lane[task.lane] = task.id
        return task

    def _conflicts(self, task: Task) -> list[int]:
        reads, writes = self._layout.accesses(task)
        found: list[int] = []
        for slot in itertools.chain.from_iterable(access.slots() for access in reads):
            use = self._uses[slot]
            if use.writer is not None:
                found.append(use.writer)
            use.readers.append(task.id)
        for slot in itertools.chain.from_iterable(access.slots() for access in writes):
            use = self._uses[slot]
            if use.writer is not None:
                found.append(use.writer)
            found.extend(reader for reader in use.readers if reader != task.id)
            use.writer, use.readers = task.id, []
        return found

    def _not_implied(self, needed: list[int], task: Task) -> tuple[int, ...]:
        before = self._last_on_lane.get(task.lane)
        clock = {} if before is None else self._clocks[before].copy()
        kept: list[int] = []
        for id_ in sorted(set(needed), reverse=True):  # a later task may imply an earlier one, never the reverse
            if clock.get(self._lanes[id_], -1) >= id_:
                continue
            kept.append(id_)
            for lane, known in self._clocks[id_].items():
                if clock.get(lane, -1) < known:
                    clock[lane] = known
        clock[task.lane] = task.id
        self._clocks.append(clock)
        return tuple(reversed(kept))
