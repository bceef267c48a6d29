"""Copies inside host memory by several threads: one alone reaches a fraction of what the memory gives."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from engine.device import ALIGNMENT_BYTES, check_thread_count

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""As what numbers of so many bytes are copied."""

SMALL_BYTES = 512 * 1024
"""A thread's share is no smaller: to wake a thread takes as long as to copy so much."""


class HostCopy(contextlib.AbstractContextManager["HostCopy"]):
    """Copies with `threads` threads, the caller's included, which is always the same.

    The helpers start with the first copy, and so inherit what the caller asks of its thread: its cores, unless `cores`
    are given, and its niceness.
    """

    def __init__(self, threads: int, cores: frozenset[int] | None = None) -> None:
        self.threads = check_thread_count("threads of copies", threads)
        settle = None if cores is None else functools.partial(os.sched_setaffinity, 0, cores)
        self._helpers = ThreadPoolExecutor(threads - 1, "host copy", settle) if threads > 1 else None

    def __call__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copies `source` to `target`: in host memory, of one shape and dtype, and not overlapping."""
        if target.shape != source.shape or target.dtype != source.dtype:
            shapes = " cannot be copied to ".join(f"{one.dtype} {list(one.shape)}" for one in (source, target))
            raise ValueError(f"host copy: {shapes}: one shape and dtype needed")
        if target.is_contiguous() and source.is_contiguous():
            to, origin, num_bytes = target.data_ptr(), source.data_ptr(), source.nbytes

            def copy(start: int, stop: int) -> None:
                ctypes.memmove(to + start, origin + start, stop - start)  # lets go of Python's lock

            self._share_out(copy, num_bytes, ALIGNMENT_BYTES, num_bytes // SMALL_BYTES)
        else:  # NumPy copies in the calling thread alone and lets go of the lock; it has no bfloat16
            rows, into = (one.view(BITS[one.itemsize]).numpy() for one in (source, target))
            rows_copied = len(rows)

            def copy_rows(start: int, stop: int) -> None:
                np.copyto(into[start:stop], rows[start:stop])

            self._share_out(copy_rows, rows_copied, 1, min(rows_copied, source.nbytes // SMALL_BYTES))

    def _share_out(self, copy: Callable[[int, int], None], end: int, unit: int, most_shares: int) -> None:
        """Has all threads copy shares of [0, end), which are cut at multiples of `unit`."""
        shares = max(1, min(self.threads, most_shares))
        cuts = [min(-(-end * share // (shares * unit)) * unit, end) for share in range(shares + 1)]
        first, *others = pairwise(cuts)
        helping = [self._helpers.submit(copy, *other) for other in others] if self._helpers else []
        try:
            copy(*first)
        finally:
            for helper in helping:
                helper.result()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the helpers."""
        if self._helpers is not None:
            self._helpers.shutdown()
