"""What a real run loses between tasks, for each pair of lanes, and the makespan with that in it."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim.schedule import Lane, Task
from traces.trace import Key, Span


@dataclass(frozen=True, slots=True)
class HandOverDelay:
    """The waits of tasks on lane `after` for nothing, when what had let them start was a task on lane `before`.

    `before` equals `after` where the lane itself was busy until then. Seconds; `p90_s` is what one in ten exceeds.
    """

    before: str
    after: str
    count: int
    median_s: float
    p90_s: float
    total_s: float


def summarise(found: Mapping[tuple[Lane, Lane], Sequence[int]]) -> tuple[HandOverDelay, ...]:
    """One line a pair of lanes, those that lost most first."""
    lines = (
        HandOverDelay(
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
