"""Work on all cores: a map over processes that gives results in order, with a bar where someone watches."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def in_processes(
    work: Callable[[_Given], _Made], given: Sequence[_Given], jobs: int | None = None, bar: str = ""
) -> Iterator[_Made]:
    """Yield each result as soon as it and those before it are there; one process per core unless told.

    One item, or one job, is done in this process. With `bar` a terminal shows how far it is, under that name.
    """
    workers = min(jobs or os.cpu_count() or 1, len(given))
    results = map(work, given) if workers <= 1 else _pooled(work, given, workers)
    return iter(_watched(results, len(given), bar) if bar else results)


def _pooled(work: Callable[[_Given], _Made], given: Sequence[_Given], workers: int) -> Iterator[_Made]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(work, given)


def _watched(results: Iterable[_Made], total: int, bar: str) -> Iterable[_Made]:
    from rich.console import Console
    from rich.progress import track

    out = Console(stderr=True)
    return track(results, bar, total, console=out, disable=not out.is_terminal, transient=True)
