"""The threads of the CPU lane, among which work on the host is shared out."""

import _thread
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from engine.device import check_thread_count
from engine.host.bits import Array
from engine.host.turns import turns_at

Work = Callable[[Array], bool]
"""One call of compiled code, by any thread: takes pieces while there are some; says whether all of them are done."""

PIECES_PER_THREAD = 4
"""Pieces of work that threads take turns at, so that one that is held up does not hold up the rest."""

WORTH_A_THREAD_BYTES = 1 << 18
"""What a thread must have to read. To wake it and to call the work takes it 40 µs, in which others read as much."""


WAIT_S = 2e-5
"""How long a thread that has looked in vain for others to be done lets go: the one at work may need its core."""


class HostThreads:
    """So many threads, the caller's included, which sleep while there is nothing to do. Used from one thread."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = check_thread_count("cpu_threads", threads)
        self._helpers: list[threading.Thread] = []
        self._wake: list[_thread.LockType] = []  # of each helper; free: it was woken, and has not noticed yet
        self._work: Callable[[], bool] | None = _rest
        self._error: BaseException | None = None

    def share_out(self, work: Work, phases: Sequence[int], num_bytes: int) -> None:
        """Has threads work off `phases` of so many items, one phase after the other.

        As many threads as the bytes are worth that the work reads. A helper that comes late finds nothing left, and
        nobody waits for it; whoever has begun a piece is waited for. Raises what a helper raised.
        """
        helpers = min(self.threads - 1, num_bytes // WORTH_A_THREAD_BYTES)
        turns = turns_at(phases, (helpers + 1) * PIECES_PER_THREAD if helpers else 1)
        self._call_for(helpers, partial(work, turns))
        try:
            while not work(turns):
                if self._error is not None:
                    raise self._error
                time.sleep(WAIT_S)
        finally:
            self._work, self._error = _rest, None

    def _call_for(self, helpers: int, work: Callable[[], bool]) -> None:
        self._work = work
        while len(self._helpers) < helpers:
            wake = _thread.allocate_lock()
            wake.acquire()
            helper = threading.Thread(target=self._help, args=(wake,), name=f"host {len(self._helpers)}", daemon=True)
            helper.start()
            self._helpers.append(helper)
            self._wake.append(wake)
        for wake in self._wake[:helpers]:
            if wake.locked():
                wake.release()

    def _help(self, wake: "_thread.LockType") -> None:
        while True:
            wake.acquire()
            work = self._work
            if work is None:
                return
            try:
                while not work() and self._work is work:  # of a phase that others are at, it waits for the next one
                    time.sleep(WAIT_S)
            except BaseException as error:
                self._error = error
            del work  # it holds on to what was worked at

    def close(self) -> None:
        """Ends the threads."""
        self._call_for(0, _rest)
        self._work = None
        for wake in self._wake:
            if wake.locked():
                wake.release()
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()
        self._wake.clear()
        self._work = _rest


def _rest() -> bool:
    """What there is to do between two pieces of work."""
    return True
