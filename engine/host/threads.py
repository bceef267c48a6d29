"""The threads of the CPU lane, among which work on the host is shared out."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from engine.device import check_thread_count

Jobs = Iterator[tuple[int, int]]
"""The first item of a piece of work, and the one behind its last."""

JOBS_PER_THREAD = 4
"""Pieces of work that threads take turns at, so that one that is held up does not hold up the rest."""


class HostThreads:
    """So many threads, the caller's included, which sleep while there is nothing to do. Used from one thread."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = check_thread_count("cpu_threads", threads)
        self._helpers = ThreadPoolExecutor(threads - 1, "host") if threads > 1 else None

    def share_out(self, work: Callable[[Jobs], None], items: int) -> None:
        """Has all threads work off `items`, in pieces of about one length that they take turns at."""
        pieces = self.threads * JOBS_PER_THREAD if self._helpers else 1
        cuts = sorted({items * piece // pieces for piece in range(pieces + 1)})
        jobs = iter(list(itertools.pairwise(cuts)))  # list iterators hand out each entry once
        helping = [self._helpers.submit(work, jobs) for _ in range(self.threads - 1)] if self._helpers else []
        try:
            work(jobs)
        finally:
            for helper in helping:
                helper.result()

    def close(self) -> None:
        """Ends the threads."""
        if self._helpers is not None:
            self._helpers.shutdown()
