"""A real accelerator as a device: its memory under a cap, a stream for each lane, page-locked memory as planned.

Lanes on the device give work to their stream and go on; lanes on the host (CPU, PIN, DISK) work in their thread. Device
lanes wait for each other on the device, host lanes block.
"""

from collections.abc import Callable
from typing import Any

import torch

from engine.device.accelerator.clock import DeviceClock
from engine.device.accelerator.runtime import Event, Runtime
from engine.device.accelerator.streams import StreamLane
from engine.device.accelerator.torch_runtime import TorchRuntime
from engine.device.base import Device, LaneContext, ThreadLane
from engine.device.energy import EnergyCounter, gpu_counter
from engine.device.ledger import DeviceOutOfMemory, PinnedOutOfMemory, Usage
from engine.device.threads import HostCores
from sim.schedule import LaneKind
from traces.errors import InputError

STREAM_LANES = (LaneKind.GPU, LaneKind.H2D, LaneKind.D2H, LaneKind.NET)
"""Lanes that are streams."""

OUTSIDE_BYTES = 512 * 1024**2
"""Device memory left to what torch does not count (kernels loaded late, the driver), unless a size is given."""

OVERHEAD_SHARE = 0.05
OVERHEAD_BYTES = 128 * 1024**2
"""Of what torch may take, the part for what no plan names: workspaces of libraries, tensors rounded up to segments of
2 MiB, a pool of them for each stream."""


def overhead_bytes(cap_bytes: int) -> int:
    """What of so many bytes a plan must leave; of a small cap no more than half."""
    return min(cap_bytes // 2, int(cap_bytes * OVERHEAD_SHARE) + OVERHEAD_BYTES)


class Accelerator(Device):
    """One accelerator. `memory_bytes` limits what torch may take of it; None: what is free, less OUTSIDE_BYTES.

    The accounts hold that less `overhead_bytes`. Raises InputError if there is no such device or it has less memory
    than asked for.
    """

    def __init__(
        self,
        memory_bytes: int | None = None,
        index: int = 0,
        cpu_threads: int | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._runtime = runtime or TorchRuntime("cuda")
        torch_device = _device(self._runtime, index)
        self._runtime.empty_cache()  # what torch keeps of freed memory would come on top of the cap
        self._total_bytes, self._cap_bytes = _usable_bytes(self._runtime, torch_device, memory_bytes)
        origin = f"real GPU ({self._runtime.device_name(torch_device)})"
        planned_bytes = self._cap_bytes - overhead_bytes(self._cap_bytes)
        cores = HostCores.beside(self._runtime.pci_address(torch_device), cpu_threads)
        super().__init__(self._runtime.device_type, origin, torch_device, planned_bytes, cores)
        before = self._runtime.memory_state(torch_device)
        self._foreign_bytes, self._foreign_retries = before.allocated_bytes, before.alloc_retries
        self._limit(self._cap_bytes + before.reserved_bytes)
        self._runtime.reset_peak(torch_device)
        self.streams = {kind: self._runtime.stream_of(torch_device, kind) for kind in STREAM_LANES}
        """The stream of each lane on the device."""
        self._idle_stream = self._runtime.stream_of(torch_device, "idle")
        self.clock = DeviceClock(self._record_idle)
        self._closed = False

    def supports(self, dtype: torch.dtype) -> bool:
        return self._runtime.supports(self.torch_device, dtype)

    @property
    def facts(self) -> dict[str, Any]:
        state = self._runtime.memory_state(self.torch_device)
        cap = {"vendor": self._runtime.vendor, "cap_bytes": self._cap_bytes}
        took = {
            "peak_reserved_bytes": state.peak_reserved_bytes,
            "alloc_retries": state.alloc_retries - self._foreign_retries,
        }
        return super().facts | cap | took

    def energy_counter(self) -> EnergyCounter:
        place = self._runtime.pci_address(self.torch_device)
        return gpu_counter(self._runtime.vendor, self.torch_device.index, place)

    @property
    def usage(self) -> Usage:
        """What torch holds on the device since this object was made, activations included, now and at its peak."""
        state = self._runtime.memory_state(self.torch_device)
        current, peak = (held - self._foreign_bytes for held in (state.allocated_bytes, state.peak_bytes))
        return Usage(max(0, current), max(0, peak))

    def reset_peak(self) -> None:
        super().reset_peak()
        self._runtime.reset_peak(self.torch_device)
        self._foreign_retries = self._runtime.memory_state(self.torch_device).alloc_retries

    def open_lane(self, kind: LaneKind) -> LaneContext:
        if kind in STREAM_LANES:
            stream = self.streams[kind]
            stream.wait_stream(self._runtime.default_stream(self.torch_device))  # what was set up is there
            return StreamLane(kind, stream, self._runtime, self.clock, self.cores, self.default_threads, self._full)
        return ThreadLane(kind, self.cores, self.default_threads)

    def free(self, tensor: torch.Tensor) -> None:
        """As for every device; waits for all lanes, because the memory may be handed out again at once."""
        self._runtime.synchronize(self.torch_device)
        super().free(tensor)

    def synchronize(self) -> None:
        self._runtime.synchronize(self.torch_device)
        self.clock.tick(at_once=True)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._runtime.synchronize(self.torch_device)  # raises if a kernel failed
        finally:
            try:
                super().close()
            finally:
                self._limit(self._total_bytes)
                self._runtime.empty_cache()

    def _full(self, error: torch.OutOfMemoryError) -> DeviceOutOfMemory:
        """What torch's error means for the run."""
        free_bytes, total_bytes = self._runtime.free_and_total_bytes(self.torch_device)
        plan = f"; the plan: {self.memory.plan}" if self.memory.plan else ""
        return DeviceOutOfMemory(
            f"device memory is full: {self.usage.current_bytes} of {self._cap_bytes} bytes are in use, {free_bytes} "
            f"of {total_bytes} are free on {self.origin}{plan}; use smaller micro-batches or a policy that keeps less "
            f"there, or end what else uses the device ({str(error).splitlines()[0]})"
        )

    def _limit(self, num_bytes: int) -> None:
        self._runtime.limit(self.torch_device, min(1.0, num_bytes / self._total_bytes))

    def _record_idle(self) -> Event:
        event = self._runtime.new_event()
        self._idle_stream.record_event(event)
        return event

    def _charged(self, name: str, num_bytes: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        try:
            return super()._charged(name, num_bytes, make)
        except torch.OutOfMemoryError as error:
            raise self._full(error) from error

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.torch_device)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.torch_device)

    def _register(self, address: int, num_bytes: int) -> None:
        if status := self._runtime.register(self.torch_device, address, num_bytes):
            raise PinnedOutOfMemory(
                f"{num_bytes} bytes of host memory cannot be page-locked ({self._runtime.vendor} error {status}): use "
                f"smaller pages or micro-batches, a policy that pins less, or allow this process more locked memory"
            )

    def _unregister(self, address: int) -> None:
        self._runtime.synchronize(self.torch_device)  # nothing may still be copying from or to it
        if status := self._runtime.unregister(address):
            raise RuntimeError(f"page-locked memory cannot be released: {self._runtime.vendor} error {status}")


def _device(runtime: Runtime, index: int) -> torch.device:
    count = runtime.device_count()
    if not 0 <= index < count:
        raise InputError(
            f"device: {runtime.device_type}:{index} is not there, torch {torch.__version__} sees {count} "
            f"{runtime.vendor} devices: use the emulated device, or install a torch build for your GPU"
        )
    return torch.device(runtime.device_type, index)


def _usable_bytes(runtime: Runtime, device: torch.device, asked_bytes: int | None) -> tuple[int, int]:
    """All of the device's memory, and what of it is ours."""
    free_bytes, total_bytes = runtime.free_and_total_bytes(device)
    if asked_bytes is None:
        return total_bytes, max(1, free_bytes - OUTSIDE_BYTES)
    if asked_bytes > free_bytes:
        raise InputError(
            f"device memory = {asked_bytes} bytes: {device} has {free_bytes} of {total_bytes} free, give at most those"
        )
    if asked_bytes < 2:
        raise InputError(f"device memory = {asked_bytes} bytes: at least 2 are needed")
    return total_bytes, asked_bytes
