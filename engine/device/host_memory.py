"""Host memory beside a device: large blocks of it, and what of it is page-locked for the device's own copies."""

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from engine.device.ledger import Ledger, OutOfMemory, PinnedOutOfMemory
from engine.device.threads import usable_count

ALIGNMENT_BYTES = 64
"""Tensors cut from one block start on multiples of this: a cache line, and enough for any dtype and vector load."""

LARGEST_PIECE_BYTES = 64 * 1024**3
"""A driver is asked to page-lock no more than this at a time: some refuse larger ranges."""

FAULT_PIECE_BYTES = 32 * 1024**2
FAULT_THREADS = 8
"""A block is faulted in by up to so many threads, in such pieces: one thread clears a few GB a second."""


def aligned_bytes(num_bytes: int) -> int:
    """What a tensor of `num_bytes` takes of a block: up to the next multiple of ALIGNMENT_BYTES."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def fresh_block(num_bytes: int) -> torch.Tensor:
    """Zeroed bytes of their own pages, all of them there: private, and huge pages where the system has them.

    They go back to the system with the last tensor that looks at them.
    """
    if not num_bytes:
        return torch.empty(0, dtype=torch.uint8)
    if not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(num_bytes, dtype=torch.uint8)
    try:
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OutOfMemory(
            f"{num_bytes} bytes of host memory cannot be had ({error}): use a smaller batch or model, or allow this "
            f"process more memory"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    _fault_in(np.frombuffer(mapping, dtype=np.uint8))
    return torch.frombuffer(mapping, dtype=torch.uint8)


def return_freed_memory() -> None:
    """Gives the system back what the C library keeps of freed memory: weights that moved would be there twice."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _fault_in(content: np.ndarray) -> None:
    def touch(start: int) -> None:
        content[start : start + FAULT_PIECE_BYTES : mmap.PAGESIZE] = 0

    starts = range(0, len(content), FAULT_PIECE_BYTES)
    threads = min(FAULT_THREADS, len(starts), usable_count())
    if threads == 1:
        for start in starts:
            touch(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(touch, starts))


class _Part(NamedTuple):
    """A share of the reserved block that only those who name it may take of."""

    content: torch.Tensor
    ledger: Ledger

    @classmethod
    def of(cls, name: str, content: torch.Tensor) -> "_Part":
        return cls(content, Ledger(f"page-locked memory for {name}", content.numel(), PinnedOutOfMemory))


class PageLocked:
    """Host memory that a device reads and writes by itself.

    `register` page-locks bytes by address and size, or raises; `unregister` undoes one call of it, by address. All
    methods may be called from any thread, but the reserved block is replaced by one.
    """

    def __init__(self, register: Callable[[int, int], None], unregister: Callable[[int], None]) -> None:
        self.ledger = Ledger("pinned host memory", None, PinnedOutOfMemory)
        self._register = register
        self._unregister = unregister
        self._cutting = threading.Lock()
        self._locked: dict[int, tuple[str, torch.Tensor]] = {}  # by address; alive for as long as they are locked
        self._reserved: torch.Tensor | None = None
        self._parts: dict[str, _Part] = {}

    def lock(self, name: str, block: torch.Tensor) -> None:
        """Page-locks the bytes of a host tensor in place. Raises PinnedOutOfMemory, having locked nothing."""
        num_bytes = block.nbytes
        self.ledger.charge(name, num_bytes)
        try:
            self._lock_pieces(block)
        except BaseException:
            self.ledger.refund(name, num_bytes)
            raise
        if num_bytes:
            self._locked[block.data_ptr()] = name, block

    def unlock(self, name: str, block: torch.Tensor) -> None:
        """Undoes `lock` of the same bytes. Raises KeyError for bytes that are not locked under this name."""
        if not block.numel():
            return
        held, locked = self._locked.get(block.data_ptr(), ("", block))
        if (held, locked.nbytes) != (name, block.nbytes):
            raise KeyError(f"{name}: these {block.nbytes} bytes are not page-locked")
        del self._locked[block.data_ptr()]
        self._unlock_pieces(_pieces(block))
        self.ledger.refund(name, block.nbytes)

    def reserve(self, parts: Mapping[str, int]) -> None:
        """Page-locks one block with a part for each name; `empty` cuts tensors from a part.

        One block, because a caching allocator for pinned memory rounds each tensor up to a power of two; parts, so that
        who comes first cannot take what another was promised. Replaces an earlier block, whose tensors must no longer
        be in use.
        """
        self._release()
        total_bytes = sum(map(aligned_bytes, parts.values()))
        if not total_bytes:
            return
        block = fresh_block(total_bytes)
        self._lock_pieces(block)
        self._reserved = block
        contents = block.split([aligned_bytes(num_bytes) for num_bytes in parts.values()])  # type: ignore[no-untyped-call]
        self._parts = {name: _Part.of(name, content) for name, content in zip(parts, contents, strict=True)}

    def empty(self, name: str, shape: Sequence[int], dtype: torch.dtype, part: str) -> torch.Tensor:
        """A new tensor that takes `aligned_bytes` of a part and lives as long. Raises PinnedOutOfMemory."""
        num_bytes = prod(shape) * dtype.itemsize
        content, ledger = self._parts.get(part) or _Part.of(part, torch.empty(0, dtype=torch.uint8))
        with self._cutting:
            start = ledger.usage.current_bytes
            ledger.charge(name, aligned_bytes(num_bytes))
        self.ledger.charge(name, aligned_bytes(num_bytes))
        return content[start : start + num_bytes].view(dtype).view(tuple(shape))

    def close(self) -> None:
        """Locks nothing any more."""
        self._release()
        for name, block in list(self._locked.values()):
            self.unlock(name, block)

    def _release(self) -> None:
        block, self._reserved = self._reserved, None
        for part in self._parts.values():
            for name, num_bytes in part.ledger.holders.items():
                self.ledger.refund(name, num_bytes)
        self._parts.clear()
        if block is not None:
            self._unlock_pieces(_pieces(block))

    def _lock_pieces(self, block: torch.Tensor) -> None:
        done: list[tuple[int, int]] = []
        try:
            for piece in _pieces(block):
                self._register(*piece)
                done.append(piece)
        except BaseException:
            self._unlock_pieces(done)
            raise

    def _unlock_pieces(self, pieces: Sequence[tuple[int, int]]) -> None:
        for address, _ in pieces:
            self._unregister(address)


def _pieces(block: torch.Tensor) -> list[tuple[int, int]]:
    """Address and size of the pieces in which a block is page-locked."""
    first, num_bytes = block.data_ptr(), block.nbytes
    starts = range(0, num_bytes, LARGEST_PIECE_BYTES)
    return [(first + start, min(LARGEST_PIECE_BYTES, num_bytes - start)) for start in starts]
