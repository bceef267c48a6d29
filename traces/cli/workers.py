"""Work on all cores: a map over processes that gives results in order."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def in_processes(work: Callable[[_Given], _Made], given: Sequence[_Given], jobs: int | None = None) -> Iterator[_Made]:
    """Yield each result as soon as it and those before it are there; one process per core unless told.

    One item, or one job, is done in this process.
    """
    workers = min(jobs or os.cpu_count() or 1, len(given))
    if workers <= 1:
        yield from map(work, given)
        return
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(work, given)
