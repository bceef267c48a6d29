"""Freed memory stays at hand, as it does with the caching allocator of a GPU.

The C library gives large blocks back to the system, and the next tensor of that size pays for every page anew: on a
virtual machine that can double the time of an operation. Where the library is not glibc, nothing changes.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc

NEVER = -1
TOP_PAD_BYTES = 64 * 1024**2
"""The heap grows by so much more than is asked for."""


def keep_freed_memory() -> None:
    """From now on, for the whole process: no block of its own for a large tensor, no page given back, no new heaps.

    Heaps that threads have already stay; call it early.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, NEVER),
        (_M_TOP_PAD, TOP_PAD_BYTES),
        (_M_ARENA_MAX, 1),
    ):
        mallopt(option, value)
