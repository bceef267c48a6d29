"""From an order of issue to tasks with dependencies.

A schedule says only what is issued where and in which order. What must wait for what follows from the slots: a read
waits for the write before it, a write waits for the write and all reads before it (so reuse of a buffer is a
dependency too).
"""

from collections import defaultdict
from typing import NamedTuple

from sim.schedule.slots import Slot, SlotLayout, slots_of
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


class DependencyTracker:
    """Numbers issued tasks and finds the dependencies of each.

    Dependencies that follow from others are left out: those on the task's own lane (a lane works in order), and
    those that an earlier task of the lane or another dependency has waited for already. `_clocks` knows for each
    task the latest task of every lane that has ended before it ends.
    """

    def __init__(self, layout: SlotLayout) -> None:
        self._layout = layout
        self._writer: dict[Slot, int] = {}
        self._readers: defaultdict[Slot, list[int]] = defaultdict(list)  # since then
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
        id_ = len(self._lanes)
        needed = self._conflicts(Task(id_, *issue))
        if issue.lane not in self._met:
            self._met.add(issue.lane)
            needed.update(self._barrier)
        task = Task(id_, *issue, self._not_implied(needed, id_, issue.lane))
        self._lanes.append(task.lane)
        self._last_on_lane[task.lane] = task.id
        return task

    def _conflicts(self, task: Task) -> set[int]:
        reads, writes = self._layout.accesses(task)
        writer, readers = self._writer, self._readers
        found = set[int]()
        for slot in slots_of(reads):
            if slot in writer:
                found.add(writer[slot])
            readers[slot].append(task.id)
        for slot in slots_of(writes):
            if slot in writer:
                found.add(writer[slot])
            if slot in readers:
                found.update(readers.pop(slot))
            writer[slot] = task.id
        found.discard(task.id)
        return found

    def _not_implied(self, needed: set[int], task: int, own: Lane) -> tuple[int, ...]:
        before = self._last_on_lane.get(own)
        clock = {} if before is None else self._clocks[before].copy()
        kept: list[int] = []
        for id_ in sorted(needed, reverse=True):  # a later task may imply an earlier one, never the reverse
            if clock.get(self._lanes[id_], -1) >= id_:
                continue
            kept.append(id_)
            for lane, known in self._clocks[id_].items():
                if clock.get(lane, -1) < known:
                    clock[lane] = known
        clock[own] = task
        self._clocks.append(clock)
        return tuple(reversed(kept))
