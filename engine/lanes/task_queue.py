"""The tasks that lanes share: issued step by step, handed to each lane in order, once their dependencies have ended."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from engine.device import Mark
from sim.schedule import DeadlockError, Lane, Task

STEPS_AHEAD = 2
"""How many steps may be issued beyond the one that the slowest lane works on: bounds memory, not speed."""

STEPS_REMEMBERED = 4
"""Marks of tasks in earlier steps are let go of; all that a lane did then has ended long ago."""


class _HandOver:
    """A lock that also wakes sleeping lanes, once it is free: who wakes would only wait for it."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._lock = threading.Lock()
        self._asleep = {lane: threading.Lock() for lane in lanes}
        for gate in self._asleep.values():
            gate.acquire()
        self._to_wake: list[Lane] = []

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        woken, self._to_wake = self._to_wake, []
        self._lock.release()
        for lane in woken:
            self._asleep[lane].release()

    def wake(self, lanes: Iterable[Lane]) -> None:
        """Each of the lanes sleeps, and was not woken yet. Only inside."""
        self._to_wake += lanes

    def sleep(self, lane: Lane) -> None:
        """Go outside until another lane wakes this one. Only inside."""
        self.__exit__()
        self._asleep[lane].acquire()
        self.__enter__()


def describe(task: Task) -> str:
    """A task in words."""
    parts = [("step", task.step), ("layer", task.layer), ("micro-batch", task.micro_batch), ("page", task.page)]
    return f"task {task.op} ({', '.join(f'{name} {n}' for name, n in parts if n >= 0)}) on lane {task.lane}"


class Ready(NamedTuple):
    """A task whose dependencies have ended, their marks, and whether the lane slept before it could go on."""

    task: Task
    deps: list[Mark]
    slept: bool


class TaskQueue:
    """Gives each lane its tasks. All methods may be called from any thread."""

    def __init__(self, steps: Iterable[list[Task]], lanes: Iterable[Lane]) -> None:
        self._steps = iter(steps)
        self._issued: dict[Lane, deque[Task]] = {lane: deque() for lane in lanes}
        self._lock = _HandOver(self._issued)
        self.at_work = set(self._issued)
        """Lanes that neither wait nor have left."""
        self._slept: set[Lane] = set()  # lanes that slept since their last task
        self._waiting: dict[int | None, list[Lane]] = {}  # by the task whose end they wait for, or None: for issue
        self._marks: dict[int, Mark] = {}
        self._forgotten = 0  # tasks with a lower id ended long ago: their marks are gone
        self._open_steps: deque[list[int]] = deque()  # [first id, tasks not ended] of each step, oldest first
        self._ended_steps: deque[int] = deque()  # first ids of steps that have ended, oldest first
        self._exhausted = False
        self._stopped = False
        self._deadlocked = False

    def tasks(self, lane: Lane) -> Iterator[Ready]:
        """The lane's tasks, each when all its dependencies have ended. Raises DeadlockError."""
        try:
            while (ready := self._next(lane)) is not None:
                yield ready
        finally:
            with self._lock:
                self._leave(lane)

    def ended(self, task: Task, mark: Mark) -> None:
        """The task's work is done, or will be once the mark is reached."""
        with self._lock:
            self._marks[task.id] = mark
            self._wake(task.id)
            self._count_down(task)

    @property
    def is_stopped(self) -> bool:
        """Whether no lane gets another task."""
        return self._stopped

    def stop(self) -> None:
        """No lane gets another task."""
        with self._lock:
            self._stopped = True
            self._wake_all()

    def _next(self, lane: Lane) -> Ready | None:
        with self._lock:
            task = self._next_issued(lane)
            if task is None:
                return None
            for dep in task.deps:
                while not self._stopped and dep >= self._forgotten and dep not in self._marks:
                    self._wait(lane, dep, task)
            if self._stopped:
                return None
            marks = [self._marks[dep] for dep in task.deps if dep >= self._forgotten]
            slept = lane in self._slept
            self._slept.discard(lane)
            return Ready(task, marks, slept)

    def _next_issued(self, lane: Lane) -> Task | None:
        queue = self._issued[lane]
        while not queue and not self._exhausted and not self._stopped:
            if len(self._open_steps) <= STEPS_AHEAD:
                self._issue_step()
            else:
                self._wait(lane, None, None)
        return queue.popleft() if queue and not self._stopped else None

    def _issue_step(self) -> None:
        tasks = next(self._steps, None)
        if tasks is None:
            self._exhausted = True
        elif tasks:
            for task in tasks:
                if task.lane not in self._issued:
                    raise RuntimeError(f"{describe(task)}: the run was given no such lane")
                self._issued[task.lane].append(task)
            self._open_steps.append([tasks[0].id, len(tasks)])
        self._wake(None)

    def _count_down(self, task: Task) -> None:
        for step in reversed(self._open_steps):
            if step[0] <= task.id:
                step[1] -= 1
                break
        if not self._open_steps or self._open_steps[0][1]:
            return
        while self._open_steps and not self._open_steps[0][1]:
            self._ended_steps.append(self._open_steps.popleft()[0])
        while len(self._ended_steps) > STEPS_REMEMBERED:
            self._ended_steps.popleft()
            for id_ in range(self._forgotten, self._ended_steps[0]):
                self._marks.pop(id_, None)
            self._forgotten = self._ended_steps[0]
        self._wake(None)

    # waiting: who is woken counts as at work from that moment, so that "all wait" means what it says ------------

    def _wait(self, lane: Lane, dep: int | None, task: Task | None) -> None:
        self._waiting.setdefault(dep, []).append(lane)
        self._leave(lane)
        if not self._deadlocked:
            self._slept.add(lane)
            self._lock.sleep(lane)
        if self._deadlocked:
            what = f"{describe(task)} needs a task that cannot start" if task else "no step can be issued"
            raise DeadlockError(f"the schedule's tasks wait for each other: {what}")

    def _leave(self, lane: Lane) -> None:
        self.at_work.discard(lane)
        if not self.at_work and self._waiting and not self._stopped:
            self._deadlocked = self._stopped = True
            self._wake_all()

    def _wake(self, dep: int | None) -> None:
        lanes = self._waiting.pop(dep, [])
        self.at_work.update(lanes)
        self._lock.wake(lanes)

    def _wake_all(self) -> None:
        for dep in [*self._waiting]:
            self._wake(dep)
