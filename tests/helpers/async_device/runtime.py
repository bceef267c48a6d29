"""The asynchronous device as a runtime of the engine: `Accelerator(runtime=AsyncRuntime())` is a device on it."""

import contextlib
import functools
from collections.abc import Iterator

import torch

from async_device.interface import private
from async_device.machine import NAME, TOTAL_BYTES, Machine
from async_device.ops import register
from async_device.streams import Event, Stream, choose_stream, chosen_stream
from engine.device.accelerator import MemoryState, Runtime


@functools.cache
def _backend() -> None:
    """Registers the device with torch, once for the process. `torch.accelerator` does not count it as there."""

    class Hooks(private("Hooks")):
        def is_available(self) -> bool:
            return False

        def has_primary_context(self, dev_id: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    private("setup_backend")(NAME, hook=Hooks())
    torch.get_device_module(NAME).is_available = lambda: False
    register()


class AsyncRuntime(Runtime):
    """A machine of its own: one device."""

    device_type = NAME
    vendor = "Python"

    def __init__(self, total_bytes: int = TOTAL_BYTES) -> None:
        _backend()
        self.machine = Machine(total_bytes)

    def device_count(self) -> int:
        return 1

    def device_name(self, device: torch.device) -> str:
        return "asynchronous device of the tests"

    def stream_of(self, device: torch.device, name: str) -> Stream:
        return self.machine.new_stream()

    def default_stream(self, device: torch.device) -> Stream:
        return self.machine.default_stream

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before = chosen_stream()
        choose_stream(stream)
        try:
            yield
        finally:
            choose_stream(before)
            self.machine.races.tell_all()

    def new_event(self) -> Event:
        return Event(self.machine)

    def synchronize(self, device: torch.device) -> None:
        self.machine.synchronize()

    def free_and_total_bytes(self, device: torch.device) -> tuple[int, int]:
        memory = self.machine.memory
        return memory.total_bytes - memory.reserved_bytes, memory.total_bytes

    def memory_state(self, device: torch.device) -> MemoryState:
        memory = self.machine.memory
        held = memory.allocated_bytes, memory.peak_bytes, memory.reserved_bytes, memory.peak_reserved_bytes
        return MemoryState(*held, memory.alloc_retries)

    def reset_peak(self, device: torch.device) -> None:
        self.machine.memory.reset_peak()

    def limit(self, device: torch.device, share: float) -> None:
        self.machine.memory.limit_bytes = int(share * self.machine.memory.total_bytes)

    def empty_cache(self) -> None:
        self.machine.memory.empty_cache()

    def register(self, device: torch.device, address: int, num_bytes: int) -> int:
        if num_bytes > self.machine.lockable_bytes:
            return 2
        self.machine.page_locked[address] = num_bytes
        return 0

    def unregister(self, address: int) -> int:
        return 0 if self.machine.page_locked.pop(address, None) is not None else 1
