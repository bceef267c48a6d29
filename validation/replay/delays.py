"""Hand-over delays: what a real run loses between tasks, for each pair of lanes, and the makespan with that in it."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sim.schedule import Lane, Task
from sim.simulation import in_turn
from traces.trace import Key, Span


@dataclass(frozen=True, slots=True)
class HandOverDelay:
    """From the moment a task on lane `after` could start, because one on lane `before` had ended, to when it did.

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
            len(delays),
            statistics.median(delays) / 1e9,
            _ninth_decile(delays) / 1e9,
            sum(delays) / 1e9,
        )
        for (before, after), delays in found.items()
    )
    return tuple(sorted(lines, key=lambda line: -line.total_s))


def makespan_with_delays_ns(
    tasks: Iterable[Task], spans: Mapping[Key, Span], found: Mapping[tuple[Lane, Lane], Sequence[int]]
) -> int:
    """The makespan by the law with the median hand-over delay of each pair of lanes between tasks that ran."""
    medians = {pair: round(statistics.median(delays)) for pair, delays in found.items()}

    def delay(before: Task, after: Task) -> int:
        return medians.get((before.lane, after.lane), 0) if after.key in spans else 0

    def end_ns(task: Task, ready_ns: int) -> int:
        return ready_ns + (spans[task.key].duration_ns if task.key in spans else 0)

    return max((turn.end for turn in in_turn(tasks, end_ns, 0, delay=delay)), default=0)


def _ninth_decile(values: Sequence[int]) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * 9 // 10)]
