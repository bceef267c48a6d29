"""The law of time: end = max(lane free, ends of dependencies, each with its hand-over delay) + duration.

Written once, as a plain loop over tasks in order of issue, for whole nanoseconds and for arrays of seconds alike. The
simulators must meet it to the nanosecond when nothing is shared; the start delays of a measured run are what it does
not know; the bounds are sums of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from sim.schedule import Lane, Task
from traces.errors import InputError
from traces.trace import Key, Span

Time = TypeVar("Time", bound=Any)

Delay = Callable[[Task, Task], int]
"""From the end of the first task to the moment from which it counts as ended for the second, in nanoseconds."""

CLOCK_SLACK_NS = 100_000
"""How much too early a task may seem to start: a device's clock is placed on the host's with some error."""


def hand_over_delay_ns(before: Lane, after: Lane, hand_over_ns: int) -> int:
    """How much later than a task's end another lane notices it; its own lane knows at once."""
    return 0 if before == after else hand_over_ns


class Turn(NamedTuple, Generic[Time]):
    """One task by the law: what it waited for, each with the time from which that counts as ended, and its own end."""

    task: Task
    waits: list[tuple[Time, Task]]
    """The task before it on its lane comes first."""
    ready: Time
    end: Time

    @property
    def last(self) -> Task | None:
        """What it waited for longest: its lane's own task if that counts from the same moment."""
        return max(self.waits, key=itemgetter(0), default=(0, None))[1]


def in_turn(
    tasks: Iterable[Task],
    end: Callable[[Task, Time], Time],
    start: Time,
    *,
    delay: Delay | None = None,
    latest: Callable[[Time, Time], Time] = max,
) -> Iterator[Turn[Time]]:
    """The tasks in order of issue, each ending at `end(task, ready)`; it is ready at `start` if it waits for nothing.

    Dependencies that are not among the tasks count as ended before.
    """
    ended: dict[int, tuple[Time, Task]] = {}
    before: dict[Lane, tuple[Time, Task]] = {}
    for task in tasks:
        waits = [before[task.lane]] if task.lane in before else []
        waits += [ended[dep] for dep in task.deps if dep in ended]
        if delay is not None:
            waits = [(when + delay(other, task), other) for when, other in waits]
        ready = reduce(latest, map(itemgetter(0), waits)) if waits else start
        turn = Turn(task, waits, ready, end(task, ready))
        before[task.lane] = ended[task.id] = turn.end, task
        yield turn


def task_ends(tasks: Iterable[Task], duration_ns: Callable[[Task], int], hand_over_ns: int = 0) -> dict[int, int]:
    """End of every task by id, in nanoseconds; of dependencies that are not among the tasks all know from time 0 on."""

    def delay(before: Task, after: Task) -> int:
        return hand_over_delay_ns(before.lane, after.lane, hand_over_ns)

    turns = in_turn(tasks, lambda task, ready_ns: ready_ns + duration_ns(task), 0, delay=delay)
    return {turn.task.id: turn.end for turn in turns}


def start_delays(tasks: Sequence[Task], spans: Mapping[Key, Span]) -> dict[tuple[Lane, Lane], list[int]]:
    """Hand-over delays of a measured run: nanoseconds from ready to start of each task that ran.

    By (lane of what it waited for last, its own lane). In the engine it is the hand-over from one lane's thread to
    another's; on a GPU, the wait for an event, or the launch. Tasks that are not in the trace take no time: they hand
    on when they could start. Raises InputError if a task starts before it can by the schedule.
    """

    def end_ns(task: Task, ready_ns: int) -> int:
        return spans[task.key].end_ns if task.key in spans else ready_ns

    found: dict[tuple[Lane, Lane], list[int]] = {}
    lane_of: dict[int, Lane] = {}  # of an absent task, the lane of what it waited for itself
    for turn in in_turn(tasks, end_ns, 0):
        task, last, span = turn.task, turn.last, spans.get(turn.task.key)
        lane_of[task.id] = lane_of[last.id] if span is None and last is not None else task.lane
        if span is not None and last is not None:
            if span.start_ns < turn.ready - CLOCK_SLACK_NS:
                raise InputError(
                    f"in the trace {span.op} (step {span.step}, layer {span.layer}, micro-batch {span.micro_batch}) "
                    f"starts {(turn.ready - span.start_ns) / 1e6:.3f} ms before what it waits for in its schedule has "
                    f"ended: was it made by another version of that schedule?"
                )
            found.setdefault((lane_of[last.id], task.lane), []).append(max(0, span.start_ns - turn.ready))
    return found
