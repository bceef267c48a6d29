"""What a lane asks of its thread: its helpers in torch, its cores, how promptly it wakes, and who goes first.

`torch.set_num_threads` (OpenMP builds, torch 2.13) sets the calling thread's count and, beside it, the count that a
thread gets when it first uses torch. That first use overwrites what the thread itself had set before: a lane that
begins with `set_num_threads(1)` silently computes with whatever another lane set last. `torch.get_num_threads` counts
as a first use, so it comes first here. A lane with n > 1 threads has n - 1 helpers of its own, which spin in OpenMP's
barriers and so take cores from other lanes; a lane with one thread has none.
"""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from traces.errors import InputError

Cores = frozenset[int]
Context = contextlib.AbstractContextManager[None]

_PR_SET_TIMERSLACK = 29  # linux/prctl.h; 0 restores the default

BEHIND: Final = 5
"""By how much lanes that compute on a core which copies share are nicer than the process: a copy that is due goes
first, and work goes on at a third of its weight. Without it a copy of half a millisecond took two beside others."""


@contextlib.contextmanager
def for_now(put: Callable[[Any], object], inside: Any, afterwards: Any) -> Iterator[None]:
    """While entered, what `put` sets is `inside`; then it is `afterwards`."""
    put(inside)
    try:
        yield
    finally:
        put(afterwards)


def intra_op_threads(count: int, default: int) -> Context:
    """In this thread torch uses `count` threads per operation; threads made afterwards start with `default` again."""
    torch.get_num_threads()
    return for_now(torch.set_num_threads, count, default)


def cores_apart(count: int, others: int) -> tuple[Cores, Cores] | None:
    """`count` of the cores that this process may use, and the rest, at least `others`.

    None if there are too few, or no way to ask.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (frozenset(cores[:count]), frozenset(cores[count:])) if len(cores) >= count + others else None


def on_cores(cores: Cores | None) -> Context:
    """Keeps the calling thread, and those that it starts, on these cores; None: wherever the system lets them."""
    if cores is None:
        return contextlib.nullcontext()
    return for_now(lambda those: os.sched_setaffinity(0, those), cores, os.sched_getaffinity(0))


def prompt_sleep() -> Context:
    """In this thread sleeps end as soon as they can; Linux otherwise adds 50 µs to save power."""
    if not sys.platform.startswith("linux"):
        return contextlib.nullcontext()
    prctl = ctypes.CDLL(None).prctl
    return for_now(lambda slack_ns: prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0), 1, 0)


def behind_copies() -> Context:
    """Lets others go first that share a core with this thread; where that cannot be undone, for as long as it lives.

    Only Linux has a niceness for each thread. The main thread is left alone: its niceness may not come down again.
    """
    thread = threading.get_native_id()
    if not sys.platform.startswith("linux") or threading.current_thread() is threading.main_thread():
        return contextlib.nullcontext()

    def be(niceness: int) -> None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)

    usual, before = (os.getpriority(os.PRIO_PROCESS, one) for one in (os.getpid(), thread))
    return for_now(be, usual + BEHIND, before)


def check_thread_count(name: str, count: int) -> int:
    """The count itself. Raises InputError if it is below 1."""
    if count < 1:
        raise InputError(f"{name} = {count}: at least 1 is needed")
    return count
