"""Host memory by name, kept from batch to batch: to page-lock it and to fault it in takes long."""

import math
import threading
from collections import defaultdict
from typing import NamedTuple

import torch

from engine.device import Device, Ledger, PinnedOutOfMemory


class HostBlock(NamedTuple):
    """Bytes of host memory, page-locked or not."""

    content: torch.Tensor
    locked: bool

    def view(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The first bytes as a contiguous tensor."""
        return self.content[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


class HostBlocks:
    """Blocks of one run, for any thread. `part` is what the memory plan calls a block's use.

    Page-locked ones are cut from the device's reserve where the part has one, else locked on their own; where the
    system refuses that, they are pageable, and `bytes_by_part` says so.
    """

    def __init__(self, device: Device, host: Ledger) -> None:
        self._device = device
        self._host = host
        self._lock = threading.Lock()
        self._reserved: dict[tuple[str, str], HostBlock] = {}
        self._own: dict[tuple[str, str], HostBlock] = {}

    def take(self, part: str, name: str, num_bytes: int, *, locked: bool) -> HostBlock:
        """The block of that name, with room for so many bytes; its content is whatever was left there."""
        with self._lock:
            key = part, name
            for kept in (self._own, self._reserved):
                if key in kept and kept[key].content.numel() >= num_bytes:
                    return kept[key]
            if key in self._own:
                self._let_go(*key)
            if locked and key not in self._reserved:
                try:
                    content = self._device.pinned_empty(name, (num_bytes,), torch.uint8, part)
                except PinnedOutOfMemory:
                    pass
                else:
                    return self._reserved.setdefault(key, HostBlock(content, True))
            return self._own.setdefault(key, self._new(part, num_bytes, locked))

    def bytes_by_part(self) -> dict[str, dict[str, int]]:
        """What was taken, by part of the memory plan and by kind: `locked` or `pageable`."""
        found: defaultdict[str, dict[str, int]] = defaultdict(lambda: {"locked": 0, "pageable": 0})
        with self._lock:
            for (part, _), block in [*self._own.items(), *self._reserved.items()]:
                found[str(part)]["locked" if block.locked else "pageable"] += block.content.numel()
        return dict(found)

    def close(self) -> None:
        """Gives everything back, but for the reserve, which is the device's."""
        with self._lock:
            for key in list(self._own):
                self._let_go(*key)
            self._reserved.clear()

    def _new(self, part: str, num_bytes: int, locked: bool) -> HostBlock:
        content = self._device.host_block(num_bytes)
        if locked:
            try:
                self._device.lock(part, content)
            except PinnedOutOfMemory:
                locked = False
        if not locked:
            self._host.charge(part, num_bytes)
        return HostBlock(content, locked)

    def _let_go(self, part: str, name: str) -> None:
        block = self._own.pop((part, name))
        if block.locked:
            self._device.unlock(part, block.content)
        else:
            self._host.refund(part, block.content.numel())
