"""From the moment a task could start to the moment it did, in a real run: what its schedule's law does not know.

In the engine it is the hand-over from one lane's thread to another's; on a GPU, the wait for an event, or the launch.
"""

from collections.abc import Mapping, Sequence

from sim.schedule import Lane, Task
from traces.errors import InputError
from traces.trace import Key, Span

CLOCK_SLACK_NS = 100_000
"""How much too early a task may seem to start: a device's clock is placed on the host's with some error."""


def start_delays(tasks: Sequence[Task], spans: Mapping[Key, Span]) -> dict[tuple[Lane, Lane], list[int]]:
    """Nanoseconds from ready to start of each task that ran, by (lane of what it waited for last, its own lane).

    Tasks that are not in the trace take no time: they hand on when they could start. Raises InputError if a task
    starts before it can by the schedule.
    """
    found: dict[tuple[Lane, Lane], list[int]] = {}
    ends: dict[int, int] = {}
    before: dict[Lane, int] = {}
    lane_of: dict[int, Lane] = {}  # of an absent task, the lane of what it waited for itself
    for task in tasks:
        last = _last_of(task, before, ends)
        ready_ns = 0 if last is None else ends[last]
        span = spans.get(task.key)
        if span is not None and last is not None:
            _check_order(span, ready_ns)
            found.setdefault((lane_of[last], task.lane), []).append(max(0, span.start_ns - ready_ns))
        ends[task.id] = ready_ns if span is None else span.end_ns
        lane_of[task.id] = lane_of[last] if span is None and last is not None else task.lane
        before[task.lane] = task.id
    return found


def _check_order(span: Span, ready_ns: int) -> None:
    if span.start_ns < ready_ns - CLOCK_SLACK_NS:
        raise InputError(
            f"in the trace {span.op} (step {span.step}, layer {span.layer}, micro-batch {span.micro_batch}) starts "
            f"{(ready_ns - span.start_ns) / 1e6:.3f} ms before what it waits for in its schedule has ended: was it "
            f"made by another version of that schedule?"
        )


def _last_of(task: Task, before: Mapping[Lane, int], ends: Mapping[int, int]) -> int | None:
    """Of the tasks that one waits for, the last to end: its lane's own if it ends with another."""
    waits = [id_ for id_ in (before.get(task.lane), *task.deps) if id_ is not None and id_ in ends]
    return max(waits, key=lambda id_: ends[id_], default=None)
