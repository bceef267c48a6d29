"""How fast this machine's memory can be read: the limit of attention on the host."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import torch

from engine.device import check_thread_count, intra_op_threads
from traces.errors import InputError

LARGER_THAN_CACHES_BYTES = 256 * 1024**2


class MemoryReader:
    """Reads a block of memory once with `threads` threads, a share each, and nothing else.

    The block must be several times larger than the caches, or they answer instead of the memory.
    """

    def __init__(self, threads: int, num_bytes: int = LARGER_THAN_CACHES_BYTES) -> None:
        if num_bytes < 1:
            raise InputError(f"num_bytes = {num_bytes}: at least 1 is needed")
        self.threads = check_thread_count("threads", threads)
        self._shares = torch.zeros(-(-num_bytes // 4)).chunk(threads)
        self._default_threads = torch.get_num_threads()
        self._workers = ThreadPoolExecutor(threads, "memory reader")
        self.read()  # starts the threads

    def read(self) -> int:
        """Reads the block once; returns its bytes."""
        for _ in self._workers.map(self._read, self._shares):
            pass
        return sum(share.nbytes for share in self._shares)

    def bytes_per_s(self) -> float:
        """What one reading reaches."""
        start_s = time.perf_counter()
        return self.read() / (time.perf_counter() - start_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown()

    def _read(self, share: torch.Tensor) -> None:
        with intra_op_threads(1, self._default_threads):
            share.amax()
