"""A CUDA device: a stream per lane, events between them, page-locked memory of exactly the size that was planned.

Lanes on the device give work to their stream and go on; lanes on the host (CPU, PIN, DISK) work in their thread. Device
lanes wait for each other on the device, host lanes block.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.device.base import Device, LaneContext, Mark, ThreadLane
from engine.device.clock import DeviceClock
from engine.device.ledger import DeviceOutOfMemory, PinnedOutOfMemory, Usage
from engine.device.threads import check_thread_count
from sim.schedule import LaneKind
from traces.errors import InputError

STREAM_LANES = (LaneKind.GPU, LaneKind.H2D, LaneKind.D2H, LaneKind.NET)
"""Lanes that are CUDA streams."""

LIBRARY_BYTES = 512 * 1024**2
"""Device memory left to CUDA libraries (workspaces, modules loaded late) unless a size is given."""

_HOST_REGISTER_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every CUDA context


class CudaMark(Mark):
    """An event on a lane's stream."""

    __slots__ = ("_anchor", "_clock", "_time_ns", "event")

    def __init__(self, stream: torch.cuda.Stream, clock: DeviceClock) -> None:
        self._clock = clock
        self._anchor = clock.tick()
        self._time_ns: int | None = None
        self.event = torch.cuda.Event(  # type: ignore[no-untyped-call]
            enable_timing=True,
            blocking=True,  # who waits sleeps: attention needs the cores
        )
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()

    @property
    def time_ns(self) -> int:
        if self._time_ns is None:
            self.wait()
            self._time_ns = self._clock.host_ns(self.event, self._anchor)
        return self._time_ns


class StreamLane(LaneContext):
    """A lane that is a CUDA stream."""

    def __init__(self, device: "CudaDevice", kind: LaneKind, stream: torch.cuda.Stream) -> None:
        super().__init__(kind, 1, device.default_threads)
        self.stream = stream
        self._device = device

    def _contexts(self) -> Iterator[contextlib.AbstractContextManager[Any]]:
        threads, inference = super()._contexts()
        yield from (threads, torch.cuda.device(self.stream.device), torch.cuda.stream(self.stream), inference)

    def __exit__(self, kind: object = None, error: object = None, *trace: object) -> None:
        torch.cuda.default_stream(self.stream.device).wait_stream(self.stream)  # what follows finds the results
        super().__exit__()
        if isinstance(error, torch.OutOfMemoryError):  # of the model's own code
            raise self._device.full(error) from error

    def mark(self) -> Mark:
        return CudaMark(self.stream, self._device.clock)

    def wait(self, mark: Mark) -> None:
        if isinstance(mark, CudaMark):
            self.stream.wait_event(mark.event)
        else:
            mark.wait()

    def _copy(self, dst: torch.Tensor, src: torch.Tensor, direction: LaneKind, pinned: bool) -> None:
        """Blocks this thread unless the host's side is page-locked and in one piece.

        (Otherwise torch goes through a temporary of its own, which it must not read before the copy has ended.)
        """
        host, on_device = (src, dst) if direction is LaneKind.H2D else (dst, src)
        dst.copy_(src, non_blocking=pinned and host.is_contiguous())
        on_device.record_stream(self.stream)  # its memory is not handed out again before the copy has ended


class CudaDevice(Device):
    """One CUDA device. `memory_bytes` limits what torch may take of it; None: what is free, less LIBRARY_BYTES.

    Raises InputError if there is no such device or it has less memory than asked for.
    """

    def __init__(self, memory_bytes: int | None = None, index: int = 0, cpu_threads: int | None = None) -> None:
        _check_index(index)
        torch_device = torch.device("cuda", index)
        name = torch.cuda.get_device_name(torch_device)
        self._total_bytes, memory_bytes = _usable_bytes(torch_device, memory_bytes)
        super().__init__("cuda", f"real GPU ({name})", torch_device, memory_bytes)
        self.cpu_threads = check_thread_count("cpu_threads", cpu_threads or max(1, (os.cpu_count() or 1) - 2))
        self._foreign_bytes = torch.cuda.memory_allocated(torch_device)
        self._limit(memory_bytes + torch.cuda.memory_reserved(torch_device))
        torch.cuda.reset_peak_memory_stats(torch_device)
        # Made once: torch hands out streams from a small pool, so later ones would be these again.
        self._streams = {kind: _stream(torch_device) for kind in STREAM_LANES}
        self._idle_stream = _stream(torch_device)
        self.clock = DeviceClock(self._record_idle)
        self._closed = False

    @property
    def usage(self) -> Usage:
        """What torch holds on the device since this object was made, activations included, now and at its peak."""
        current_bytes = torch.cuda.memory_allocated(self.torch_device) - self._foreign_bytes
        peak_bytes = torch.cuda.max_memory_allocated(self.torch_device) - self._foreign_bytes
        return Usage(max(0, current_bytes), max(0, peak_bytes))

    def open_lane(self, kind: LaneKind) -> LaneContext:
        if kind in STREAM_LANES:
            stream = self._streams[kind]
            stream.wait_stream(torch.cuda.default_stream(self.torch_device))  # what was set up is there
            return StreamLane(self, kind, stream)
        return ThreadLane(kind, self.cpu_threads if kind is LaneKind.CPU else 1, self.default_threads)

    def free(self, tensor: torch.Tensor) -> None:
        """As for every device; waits for all lanes, because the memory may be handed out again at once."""
        torch.cuda.synchronize(self.torch_device)
        super().free(tensor)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)
        self.clock.tick(at_once=True)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            torch.cuda.synchronize(self.torch_device)  # raises if a kernel failed
        finally:
            super().close()
            self._limit(self._total_bytes)
            torch.cuda.empty_cache()

    def full(self, error: torch.OutOfMemoryError) -> DeviceOutOfMemory:
        """What torch's error means for the run."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.torch_device)
        plan = f"; the plan: {self.memory.plan}" if self.memory.plan else ""
        return DeviceOutOfMemory(
            f"device memory is full: {self.usage.current_bytes} of {self.memory_bytes} bytes are in use, {free_bytes} "
            f"of {total_bytes} are free on {self.origin}{plan}; use smaller micro-batches or a policy that keeps less "
            f"there, or end what else uses the device ({str(error).splitlines()[0]})"
        )

    def _limit(self, num_bytes: int) -> None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / self._total_bytes), self.torch_device)

    def _record_idle(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._idle_stream)
        return event

    def _charged(self, name: str, num_bytes: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        try:
            return super()._charged(name, num_bytes, make)
        except torch.OutOfMemoryError as error:
            raise self.full(error) from error

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.torch_device)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.torch_device)

    def _register(self, address: int, num_bytes: int) -> None:
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        status = int(cudart.cudaHostRegister(address, num_bytes, _HOST_REGISTER_PORTABLE))
        if status:
            with contextlib.suppress(RuntimeError):  # or the next kernel reports it again, to whom it does not concern
                torch.zeros(1, device=self.torch_device)
            raise PinnedOutOfMemory(
                f"{num_bytes} bytes of host memory cannot be page-locked (CUDA error {status}): use smaller pages or "
                f"micro-batches, a policy that pins less, or allow this process more locked memory"
            )

    def _unregister(self, address: int) -> None:
        torch.cuda.synchronize(self.torch_device)  # nothing may still be copying from or to it
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        status = int(cudart.cudaHostUnregister(address))
        if status:
            raise RuntimeError(f"page-locked memory cannot be released: CUDA error {status}")


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _check_index(index: int) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not 0 <= index < count:
        raise InputError(
            f"device: cuda:{index} is not there, torch {torch.__version__} sees {count} CUDA devices: use the emulated "
            f"device, or install a torch build for your GPU"
        )


def _usable_bytes(device: torch.device, asked_bytes: int | None) -> tuple[int, int]:
    """All of the device's memory, and what of it is ours."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    if asked_bytes is None:
        return total_bytes, max(1, free_bytes - LIBRARY_BYTES)
    if asked_bytes > free_bytes:
        raise InputError(
            f"device memory = {asked_bytes} bytes: {device} has {free_bytes} of {total_bytes} free, give at most those"
        )
    return total_bytes, asked_bytes
