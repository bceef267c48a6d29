"""Work on all cores: a map over processes that gives results in order, and processes that end with their parent."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

_LOOKS_S = 0.5  # between two looks of a worker at its parent


def in_processes(work: Callable[[_Given], _Made], given: Sequence[_Given], jobs: int | None = None) -> Iterator[_Made]:
    """Yield each result as soon as it and those before it are there; one process per core unless told.

    One item, or one job, is done in this process. Whoever stops asking leaves no process behind.
    """
    workers = min(jobs or os.cpu_count() or 1, len(given))
    if workers <= 1:
        yield from map(work, given)
        return
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers, initializer=begin_worker) as pool:
        try:
            with uninterrupted():  # workers that start here inherit it
                results = pool.map(work, given)
            yield from results
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for one in multiprocessing.active_children():
                one.terminate()
            raise


def begin_worker() -> None:
    """Leave Ctrl-C to the parent, end at once when asked to, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS_S)
    os._exit(1)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; only the main thread ever gets it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
