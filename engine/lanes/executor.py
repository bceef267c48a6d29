"""Runs the tasks of any schedule: a thread per lane, each in order of issue, waiting for dependencies and nothing else.

What a task does is not known here: `perform` does it. A lane that fails stops all others; every thread is joined before
`run` returns or raises.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from torch.autograd import profiler

from engine.device import LaneContext, Mark
from engine.lanes.task_queue import Ready, TaskQueue, describe
from sim.schedule import Lane, LaneKind, Task
from traces.errors import InputError
from traces.files import batch_range, ended_range, task_range

SUPERVISION_S = 0.1
"""How often the supervising thread looks up while lanes work: the delay of Ctrl-C."""

COPIES_IN_FLIGHT = 2
"""So many copies of one lane may be under way: the link goes from one to the next, and what they use stays little."""

Perform = Callable[[LaneContext, Task], int | None]
"""Does a task's work on its lane; returns the bytes it moved, or None if there was nothing left to do."""


class HasLanes(Protocol):
    """What a run needs of a device."""

    origin: str

    def open_lane(self, kind: LaneKind) -> LaneContext: ...


class TaskError(RuntimeError):
    """A task failed. Names the task; the original error is the cause."""

    def __init__(self, task: Task, error: BaseException) -> None:
        super().__init__(f"{describe(task)} failed: {type(error).__name__}: {error}")
        self.task, self.__cause__ = task, error


class Ran(NamedTuple):
    """A task that did something, when, and how many bytes it moved."""

    task: Task
    start: Mark
    end: Mark
    num_bytes: int


class _Progress:
    """How far a lane is: the end of its last task, the copies it has under way, and what it has to tell."""

    def __init__(self, lane: Lane) -> None:
        self.before: Mark | None = None
        self.ran: list[Ran] = []
        self._most_in_flight = None if lane.kind is LaneKind.GPU else COPIES_IN_FLIGHT
        self._in_flight: deque[Mark] = deque()
        self._untold: deque[Mark] = deque()

    def ended(self, task: Task, start: Mark, end: Mark, moved: int | None) -> None:
        """Takes note of a task, which ends when its mark is reached. Waits for earlier ones if too many have not."""
        self.before = end
        if moved is not None:
            self.ran.append(Ran(task, start, end, moved))
            self._untold += (start, end)
        while self._untold and self._untold[0].settle():  # a run has more tasks than a device has events
            self._untold.popleft()
        self._in_flight.append(end)
        if self._most_in_flight is None:
            self._in_flight.clear()
        elif len(self._in_flight) == self._most_in_flight:
            self._in_flight.popleft().wait()


class Executor:
    """One run of a schedule's tasks on a device.

    `steps` yields the tasks of each step in order of issue, `lanes` are those they may use. `finished` says that
    nothing is left to do although tasks remain. `on_thread_end` is called in each lane's thread when it ends. Of tasks
    that are not `told` of nothing is kept: a run may go on for long.
    """

    def __init__(
        self,
        device: HasLanes,
        steps: Iterable[list[Task]],
        lanes: Iterable[Lane],
        perform: Perform,
        finished: Callable[[], bool] = lambda: False,
        on_thread_end: Callable[[Lane], None] = lambda lane: None,
        told: Callable[[Task], bool] = lambda task: True,
    ) -> None:
        self._device = device
        self._perform = perform
        self._finished = finished
        self._on_thread_end = on_thread_end
        self._told = told
        self._queue = TaskQueue(steps, lanes)
        self._threads = [threading.Thread(target=self._work, args=(lane,), name=str(lane)) for lane in lanes]
        self._lanes_left = threading.Semaphore(0)
        self._progress = {lane: _Progress(lane) for lane in lanes}
        self._failure: BaseException | None = None

    def run(self) -> list[Ran]:
        """Runs all tasks; returns those that did something, lane by lane.

        Raises what `perform` raised: InputError as it is, with a note that names the task; anything else as TaskError.
        """
        named = batch_range(self._device.origin)
        with profiler.record_function(named) if _profiling() else contextlib.nullcontext():
            self._run_lanes()
        if self._failure is not None:
            raise self._failure
        return [ran for progress in self._progress.values() for ran in progress.ran]

    def stop(self) -> None:
        """Ends the run between two tasks of each lane. From any thread, also before it has begun."""
        self._queue.stop()

    @property
    def is_stopped(self) -> bool:
        """Whether no lane gets another task."""
        return self._queue.is_stopped

    def _run_lanes(self) -> None:
        started: list[threading.Thread] = []
        try:
            for thread in self._threads:
                started.append(thread)
                thread.start()  # Ctrl-C may come while this waits for a thread that is at work already
            for _ in started:
                while not self._lanes_left.acquire(timeout=SUPERVISION_S):  # Ctrl-C in Thread.join would end the join
                    pass
        finally:  # also after Ctrl-C
            self._queue.stop()
            for thread in started:
                with contextlib.suppress(RuntimeError):  # it never started
                    thread.join()

    def _work(self, lane: Lane) -> None:
        try:
            with self._device.open_lane(lane.kind) as context, contextlib.ExitStack() as at_end:
                at_end.callback(self._on_thread_end, lane)
                for ready in self._queue.tasks(lane):
                    try:
                        self._do(context, ready, self._progress[lane])
                    except BaseException as error:
                        self._failure = self._failure or _named(ready.task, error)
                        self._queue.stop()  # before this lane leaves, so that no other takes that for a deadlock
                        raise
                    if self._finished():
                        self._queue.stop()
        except BaseException as error:  # a lane must not die unnoticed, whatever killed it
            told = isinstance(error, InputError) and _same_cause(error, self._failure)  # by the lane itself, in words
            self._failure = error if told else self._failure or error
            self._queue.stop()
        finally:
            self._lanes_left.release()

    def _do(self, context: LaneContext, ready: Ready, progress: _Progress) -> None:
        task, deps, slept = ready
        before = progress.before
        for mark in deps:
            context.wait(mark)
        start = context.mark() if slept or before is None else context.begin(before, deps)
        moved = self._named_in_profile(context, task) if _profiling() else self._perform(context, task)
        end = context.mark()
        self._queue.ended(task, end)  # first, so that lanes that wait for it lose no time
        progress.ended(task, start, end, moved if self._told(task) else None)

    def _named_in_profile(self, context: LaneContext, task: Task) -> int | None:
        """Does a task in a range that names it, so that `traces.files.read_trace` can read the run back."""
        with profiler.record_function(task_range(task.id, task.key, task.lane.kind.value, task.deps)):
            moved = self._perform(context, task)
        if moved is not None:
            with profiler.record_function(ended_range(task.id, moved)):
                pass
        return moved


def _profiling() -> bool:
    """Whether a profiler runs, in any thread; what is public tells of the calling thread alone."""
    return profiler._is_profiler_enabled


def _same_cause(one: BaseException, other: BaseException | None) -> bool:
    return other is not None and one.__cause__ is not None and one.__cause__ is other.__cause__


def _named(task: Task, error: BaseException) -> BaseException:
    """The error of a task, which it names."""
    if not isinstance(error, InputError):
        return TaskError(task, error)
    error.add_note(f"in {describe(task)}")
    return error
