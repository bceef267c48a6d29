"""The device's memory: blocks of the host's, kept in a pool for each stream, poisoned when they are freed.

As in torch's allocator, a block goes back to the pool of the stream that asked for it as soon as its tensor dies, and
the next tensor of that stream may have it at once.
"""

import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from async_device.interface import private
from async_device.streams import LOCK, Stream

if TYPE_CHECKING:
    from async_device.machine import Machine

SEGMENT_BYTES = 512
POISON = 0x7F

BLOCKS: dict[int, "Block"] = {}
"""Every block there is, by address, whoever's."""


@dataclass(eq=False)
class Block:
    """Host memory that plays device memory, and the stream whose pool it belongs to."""

    content: torch.Tensor
    stream: Stream
    num_bytes: int = 0  # that were asked for
    holder: object = None  # whoever has it now; None: it is free
    known: dict[int, int] = field(default_factory=dict)  # what the thread knew to be done that freed it


@dataclass
class Memory:
    """What a device holds: bytes of tensors and of blocks, now and at most, and how much the blocks may take."""

    machine: "Machine"
    total_bytes: int
    limit_bytes: int
    allocated_bytes: int = 0
    peak_bytes: int = 0
    reserved_bytes: int = 0
    peak_reserved_bytes: int = 0
    alloc_retries: int = 0
    """Never by itself: nothing is kept back here."""
    pools: defaultdict[tuple[int, int], list[Block]] = field(default_factory=lambda: defaultdict(list))

    def storage(self, num_bytes: int) -> Any:
        """A storage of so many bytes. Its block is free again when nothing refers to the storage any more."""
        holder = object()
        with LOCK:
            block = self._block(max(SEGMENT_BYTES, -(-num_bytes // SEGMENT_BYTES) * SEGMENT_BYTES))
            block.num_bytes, block.holder = num_bytes, holder
            self.allocated_bytes += num_bytes
            self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        storage = private("storage_at")(block.content.data_ptr(), self.machine.device, num_bytes)
        weakref.finalize(storage, self._free, block, holder).atexit = False
        return storage

    def drop(self, address: int) -> None:
        """Frees a block although a storage refers to it still: what is read there from now on is poison."""
        block = BLOCKS[address]
        self._free(block, block.holder)

    def reset_peak(self) -> None:
        with LOCK:
            self.peak_bytes, self.peak_reserved_bytes = self.allocated_bytes, self.reserved_bytes

    def empty_cache(self) -> None:
        """Gives back what no tensor has. (Its addresses are never used again, so that no history is mixed up.)"""
        with LOCK:
            self.reserved_bytes -= sum(block.content.numel() for pool in self.pools.values() for block in pool)
            self.pools.clear()

    def _block(self, size: int) -> Block:
        stream = self.machine.current_stream()
        pool = self.pools[stream.number, size]
        if pool:
            block = pool.pop()
            self.machine.races.ordered_after(stream, block.known)
        else:
            if self.reserved_bytes + size > self.limit_bytes:
                raise torch.OutOfMemoryError(f"out of memory: {size} bytes asked for, {self.limit_bytes} allowed")
            with torch.inference_mode(False):
                block = Block(torch.full((size,), POISON, dtype=torch.uint8), stream)
            BLOCKS[block.content.data_ptr()] = block
            self.reserved_bytes += size
            self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block

    def _free(self, block: Block, holder: object) -> None:
        with LOCK:
            if block.holder is not holder:
                return  # dropped before
            block.holder, block.known = None, self.machine.races.knows()
            self.allocated_bytes -= block.num_bytes
            block.stream.put(lambda: block.content.fill_(POISON))
            self.pools[block.stream.number, block.content.numel()].append(block)


def new_tensor(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, stride: tuple[int, ...]) -> torch.Tensor:
    """An uninitialised tensor of this layout."""
    reach = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    storage = memory.storage(reach * dtype.itemsize)
    tensor: torch.Tensor = private("create_empty_tensor")(list(shape), dtype)
    set_storage(tensor, storage, shape, stride)
    return tensor


def set_storage(tensor: torch.Tensor, storage: Any, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    set_.redispatch(private("DispatchKeySet")(private("DispatchKey").CPU), tensor, storage, 0, shape, stride)


def in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor that the host computes with."""
    if tensor.numel() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    content = BLOCKS[tensor.untyped_storage().data_ptr()].content.untyped_storage()
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(content, tensor.storage_offset(), tensor.shape, tensor.stride())
