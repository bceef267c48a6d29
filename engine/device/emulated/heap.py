"""Freed memory stays at hand, as it does with the caching allocator of a GPU.

The C library gives large blocks back to the system, and the next tensor of that size pays for every page anew: on a
virtual machine that can double the time of an operation. Where the library is not glibc, nothing changes.
"""

import ctypes
import sys

TOP_PAD_BYTES = 64 * 1024**2
"""The heap grows by so much more than is asked for."""

_OPTIONS = {-4: 0, -1: -1, -2: TOP_PAD_BYTES, -8: 1}
"""M_MMAP_MAX, M_TRIM_THRESHOLD (never), M_TOP_PAD and M_ARENA_MAX in malloc.h of glibc, and what they are set to."""


def keep_freed_memory() -> None:
    """From now on, for the whole process: no block of its own for a large tensor, no page given back, no new heaps.

    Heaps that threads have already stay; call it early.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        for option, value in _OPTIONS.items():
            mallopt(option, value)
