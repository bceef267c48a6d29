"""Copies inside host memory by several threads: one alone reaches a fraction of what the memory gives."""

import contextlib
import ctypes
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

from engine.device import aligned_bytes, check_thread_count

SMALL_BYTES = 512 * 1024
"""A thread's share is no smaller: to wake a thread takes as long as to copy so much."""


class HostCopy(contextlib.AbstractContextManager["HostCopy"]):
    """Copies bytes with `threads` threads, the caller's included, which is always the same.

    The helpers start with the first copy, and so inherit what the caller asks of its thread: its cores, its niceness.
    """

    def __init__(self, threads: int) -> None:
        self.threads = check_thread_count("threads of copies", threads)
        self._helpers = ThreadPoolExecutor(threads - 1, "host copy") if threads > 1 else None

    def __call__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copies `source` to `target`: contiguous, in host memory, of the same bytes, and not overlapping."""
        num_bytes = source.nbytes
        if target.nbytes != num_bytes or not (target.is_contiguous() and source.is_contiguous()):
            raise ValueError(
                f"host copy of {num_bytes} to {target.nbytes} bytes: as many are needed, each in one piece"
            )
        to, origin = target.data_ptr(), source.data_ptr()
        shares = min(self.threads, max(1, num_bytes // SMALL_BYTES))
        cuts = [min(aligned_bytes(num_bytes * share // shares), num_bytes) for share in range(shares + 1)]

        def copy(start: int, stop: int) -> None:
            ctypes.memmove(to + start, origin + start, stop - start)  # lets go of Python's lock

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
