"""The simulator's law without contention, as a plain loop: end = max(lane free, ends of dependencies) + duration.

It is the oracle that the SimPy simulator must meet to the nanosecond when nothing is shared, and a fast estimate.
"""

from collections.abc import Callable, Iterable

from sim.schedule.task import Lane, Task


def task_ends(tasks: Iterable[Task], duration_ns: Callable[[Task], int]) -> dict[int, int]:
    """End of every task by id, in nanoseconds; dependencies that are not among the tasks ended before time 0."""
    free: dict[Lane, int] = {}
    ends: dict[int, int] = {}
    for task in tasks:
        start = free.get(task.lane, 0)
        for dep in task.deps:
            end = ends.get(dep, 0)
            start = max(start, end)
        free[task.lane] = ends[task.id] = start + duration_ns(task)
    return ends
