"""What a real run loses between tasks: from the moment a task could start to the moment it does.

A schedule's law knows no such time. In the engine it is the hand-over from one lane's thread to another's, and the
bookkeeping around a task; on a GPU, the launch. It is measured here from a trace, for each pair of lanes.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim.schedule.task import Lane, Task
from traces.errors import InputError
from traces.trace import Key, Span

CLOCK_SLACK_NS = 100_000
"""How much too early a task may seem to start: a device's clock is placed on the host's with some error."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The waits of tasks on lane `after` for nothing, when what had let them start was a task on lane `before`.

    `before` equals `after` where the lane itself was busy until then. Seconds; `p90_s` is what one in ten exceeds.
    """

    before: str
    after: str
    count: int
    median_s: float
    p90_s: float
    total_s: float


def gaps_between(tasks: Sequence[Task], spans: Mapping[Key, Span]) -> dict[tuple[Lane, Lane], list[int]]:
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


def summarise(found: Mapping[tuple[Lane, Lane], Sequence[int]]) -> tuple[Gap, ...]:
    """One line a pair of lanes, those that lost most first."""
    lines = (
        Gap(
            str(before),
            str(after),
            len(waits),
            statistics.median(waits) / 1e9,
            _ninth_decile(waits) / 1e9,
            sum(waits) / 1e9,
        )
        for (before, after), waits in found.items()
    )
    return tuple(sorted(lines, key=lambda gap: -gap.total_s))


def with_latency(
    tasks: Iterable[Task], spans: Mapping[Key, Span], found: Mapping[tuple[Lane, Lane], Sequence[int]]
) -> int:
    """The makespan by the law with a fixed latency between tasks: the median gap of each pair of lanes."""
    latency = {pair: round(statistics.median(waits)) for pair, waits in found.items()}
    free: dict[Lane, int] = {}
    ends: dict[int, tuple[int, Lane]] = {}
    for task in tasks:
        span = spans.get(task.key)
        start = max(_starts(task, free, ends, latency if span is not None else {}), default=0)
        free[task.lane] = end = start + (0 if span is None else span.duration_ns)
        ends[task.id] = end, task.lane
    return max(free.values(), default=0)


def _starts(
    task: Task,
    free: Mapping[Lane, int],
    ends: Mapping[int, tuple[int, Lane]],
    latency: Mapping[tuple[Lane, Lane], int],
) -> Iterator[int]:
    if task.lane in free:
        yield free[task.lane] + latency.get((task.lane, task.lane), 0)
    for dep in task.deps:
        if dep in ends:
            end, lane = ends[dep]
            yield end + latency.get((lane, task.lane), 0)


def _ninth_decile(values: Sequence[int]) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * 9 // 10)]
