"""The simulator's law without contention, as a plain loop: end = max(lane free, ends of dependencies) + duration.

The end of a dependency on another lane counts `hand_over_ns` later. It is the oracle that the SimPy simulator must meet
to the nanosecond when nothing is shared, and a fast estimate.
"""

from collections.abc import Callable, Iterable

from sim.schedule import Lane, Task


def task_ends(tasks: Iterable[Task], duration_ns: Callable[[Task], int], hand_over_ns: int = 0) -> dict[int, int]:
    """End of every task by id, in nanoseconds; of dependencies that are not among the tasks all know from time 0 on."""
    free: dict[Lane, int] = {}
    ends: dict[int, int] = {}
    lanes: dict[int, Lane] = {}
    for task in tasks:
        start = free.get(task.lane, 0)
        for dep in task.deps:
            if dep in ends:
                end = ends[dep] if lanes[dep] == task.lane else ends[dep] + hand_over_ns
                start = max(start, end)
        free[task.lane] = ends[task.id] = start + duration_ns(task)
        lanes[task.id] = task.lane
    return ends
