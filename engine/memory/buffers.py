"""Named buffers on both sides of the link, made at first use and kept: copies find their target without allocating."""

import math
import threading

import torch

from engine.device import Device, LaneContext
from engine.memory.host_blocks import HostBlock


class Buffers:
    """The buffers of one batch, for any lane. A name means the same memory, in whatever shape it is asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._on_device: dict[str, torch.Tensor] = {}

    def on_device(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, room_bytes: int = 0) -> torch.Tensor:
        """A device buffer. Give the most that it will come to hold: to grow, it waits for all lanes."""
        num_bytes = math.prod(shape) * dtype.itemsize
        buffer = self._on_device.get(name)
        if buffer is None or buffer.numel() < num_bytes:
            if buffer is not None:
                self._device.synchronize()
                with self._lock:
                    del self._on_device[name]
                self._device.free(buffer)
            buffer = self._device.allocate(name, (max(1, num_bytes, room_bytes),), torch.uint8)
            with self._lock:
                self._on_device[name] = buffer
        return buffer[:num_bytes].view(dtype).view(shape)

    def to_host(self, lane: LaneContext, block: HostBlock, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a device tensor in a host block, in one piece: in the order that the tensor has in memory."""
        strides = tensor.stride()
        order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
        dense = tensor.permute(order).contiguous()  # no copy, unless the tensor has gaps
        host = block.view(tuple(dense.shape), dense.dtype)
        lane.copy_d2h(host, dense, pinned=block.locked)
        lane.keep(tensor)
        return host.permute([order.index(dim) for dim in range(tensor.dim())])

    def let_go(self, tensor: torch.Tensor) -> None:
        """Frees the memory of a device tensor that the model's frames still name but will not read again."""
        storage = tensor.untyped_storage()
        with self._lock:
            ours = {buffer.untyped_storage().data_ptr() for buffer in self._on_device.values()}
        if storage.data_ptr() not in ours and storage.nbytes() == tensor.nbytes:
            storage.resize_(0)

    def close(self) -> None:
        """Gives the device's memory back; the host's stays for the next batch."""
        for buffer in self._on_device.values():
            self._device.free(buffer)
        self._on_device.clear()
