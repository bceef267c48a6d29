"""Runtimes that come with torch: `torch.cuda`, which is CUDA and ROCm, and any module that offers the same names."""

import contextlib
import functools
from typing import Any

import torch

from engine.device.accelerator.runtime import Event, MemoryState, Runtime, Stream
from traces.errors import InputError

_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every context

_NEEDS = {
    "Stream": "streams",
    "Event": "events",
    "default_stream": "a default stream",
    "stream": "a choice of stream for a thread",
    "synchronize": "a wait for all streams",
    "memory_stats": "accounts of its memory",
    "mem_get_info": "the memory that is free",
    "empty_cache": "a way to give memory back",
    "reset_peak_memory_stats": "a peak of its memory that starts anew",
    "get_device_properties": "properties",
    "set_per_process_memory_fraction": "a limit of its memory",
    "cudart": "page-locking of host memory that is there",
}
"""What a module of torch must offer, and in words what is missing without."""

_MEMORY_STATE = (
    "allocated_bytes.all.current",
    "allocated_bytes.all.peak",
    "reserved_bytes.all.current",
    "reserved_bytes.all.peak",
    "num_alloc_retries",
)
"""What torch calls the fields of MemoryState, in their order."""


class TorchRuntime(Runtime):
    """The runtime that a module of torch is, `torch.cuda` or one with the same names.

    Raises InputError, naming what is missing, if it does not have them all.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self.vendor = "ROCm" if device_type == "cuda" and torch.version.hip else device_type.upper()
        self._torch: Any = getattr(torch, device_type, None)
        if missing := [words for name, words in _NEEDS.items() if not hasattr(self._torch, name)]:
            raise InputError(
                f"device: torch {torch.__version__} lacks for {device_type}: {', '.join(missing)}; the engine needs "
                f"them, give cuda (or ROCm) or emulated"
            )

    def device_count(self) -> int:
        return int(self._torch.device_count()) if self._torch.is_available() else 0

    def device_name(self, device: torch.device) -> str:
        return str(self._torch.get_device_name(device))

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Torch makes do with float32 where bfloat16 is not there: CUDA devices of compute capability below 8."""
        if dtype is not torch.bfloat16 or not hasattr(self._torch, "is_bf16_supported"):
            return True
        with self._torch.device(device):
            return bool(self._torch.is_bf16_supported(including_emulation=False))

    def pci_address(self, device: torch.device) -> str | None:
        properties = self._torch.get_device_properties(device)
        if not hasattr(properties, "pci_bus_id"):
            return None
        return f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"

    def stream_of(self, device: torch.device, name: str) -> Stream:
        return _stream_of(self.device_type, device, name)

    def default_stream(self, device: torch.device) -> Stream:
        stream: Stream = self._torch.default_stream(device)
        return stream

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Any:
        with self._torch.device(stream.device), self._torch.stream(stream):
            yield

    def new_event(self) -> Event:
        event: Event = self._torch.Event(enable_timing=True, blocking=True)  # attention needs the cores
        return event

    def synchronize(self, device: torch.device) -> None:
        self._torch.synchronize(device)

    def free_and_total_bytes(self, device: torch.device) -> tuple[int, int]:
        free_bytes, total_bytes = self._torch.mem_get_info(device)
        return free_bytes, total_bytes

    def memory_state(self, device: torch.device) -> MemoryState:
        stats = self._torch.memory_stats(device)
        return MemoryState(*(stats.get(name, 0) for name in _MEMORY_STATE))

    def reset_peak(self, device: torch.device) -> None:
        self._torch.reset_peak_memory_stats(device)

    def limit(self, device: torch.device, share: float) -> None:
        self._torch.set_per_process_memory_fraction(share, device)

    def empty_cache(self) -> None:
        self._torch.empty_cache()

    def register(self, device: torch.device, address: int, num_bytes: int) -> int:
        status = int(self._torch.cudart().cudaHostRegister(address, num_bytes, _PORTABLE))
        if status:
            with contextlib.suppress(RuntimeError):  # or the next kernel reports it again, to whom it does not concern
                torch.zeros(1, device=device)
        return status

    def unregister(self, address: int) -> int:
        return int(self._torch.cudart().cudaHostUnregister(address))


@functools.cache
def _stream_of(device_type: str, device: torch.device, name: str) -> Stream:
    stream: Stream = getattr(torch, device_type).Stream(device)
    return stream


def runtime_of(name: str) -> Runtime | None:
    """The runtime of a device by its torch name, or with `auto` of this machine's accelerator; None: it has none.

    Raises InputError for an accelerator that lacks what the engine needs.
    """
    if name != "auto":
        return TorchRuntime(name)
    there = torch.accelerator.current_accelerator(check_available=True)
    return None if there is None else TorchRuntime(there.type)
