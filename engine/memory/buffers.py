"""Named buffers on both sides of the link, made at first use and kept: copies find their target without allocating."""

import math
import threading

import torch

from engine.device import Device, LaneContext, Ledger, PinnedOutOfMemory

EXCHANGE = "exchange"
"""The part of page-locked memory for what device and host hand each other in decode."""


class Buffers:
    """The buffers of one batch. A name always means the same memory, in whatever shape it is asked for."""

    def __init__(self, device: Device, host: Ledger) -> None:
        self.device = device
        self._host_ledger = host
        self._lock = threading.Lock()
        self._on_device: dict[str, torch.Tensor] = {}
        self._on_host: dict[str, tuple[torch.Tensor, bool]] = {}
        self._charged: list[tuple[str, int]] = []

    def on_device(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A device buffer. One that must grow is replaced once all lanes have done with it."""
        num_bytes = math.prod(shape) * dtype.itemsize
        buffer = self._on_device.get(name)
        if buffer is None or buffer.numel() < num_bytes:
            if buffer is not None:
                self.device.synchronize()
                self.device.free(buffer)
            buffer = self._on_device[name] = self.device.allocate(name, (max(1, num_bytes),), torch.uint8)
        return buffer[:num_bytes].view(dtype).view(shape)

    def to_host(self, lane: LaneContext, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a device tensor in a host buffer: page-locked if there is room, else pageable."""
        buffer, pinned = self._on_host.get(name, (None, False))
        if buffer is None or buffer.numel() < tensor.nbytes:
            buffer, pinned = self._on_host[name] = self._new_host_buffer(name, max(1, tensor.nbytes))
        host = buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        lane.copy_d2h(host, tensor.contiguous(), pinned=pinned)
        return host

    def host(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A new pageable host tensor that counts as host memory until `close`."""
        num_bytes = math.prod(shape) * dtype.itemsize
        self._host_ledger.charge(name, num_bytes)
        self._charged.append((name, num_bytes))
        return torch.empty(shape, dtype=dtype)

    def let_go(self, tensor: torch.Tensor) -> None:
        """Frees the memory of a device tensor that the model's frames still name but will not read again."""
        storage = tensor.untyped_storage()
        ours = (buffer.untyped_storage().data_ptr() for buffer in self._on_device.values())
        if storage.data_ptr() not in ours and storage.nbytes() == tensor.nbytes:
            storage.resize_(0)

    def close(self) -> None:
        """Gives everything back."""
        for buffer in self._on_device.values():
            self.device.free(buffer)
        for name, num_bytes in self._charged:
            self._host_ledger.refund(name, num_bytes)
        self._on_device.clear()
        self._on_host.clear()
        self._charged.clear()

    def _new_host_buffer(self, name: str, num_bytes: int) -> tuple[torch.Tensor, bool]:
        with self._lock:  # the pinned block is cut by one thread at a time
            try:
                return self.device.pinned_empty(name, (num_bytes,), torch.uint8, EXCHANGE), True
            except PinnedOutOfMemory:
                return self.host(name, (num_bytes,), torch.uint8), False
