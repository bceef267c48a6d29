"""All that a real device asks of its vendor's library: streams, events, memory, page-locking.

Whoever implements `Runtime` runs the engine's stream code as it is. torch does for CUDA and ROCm (`torch_runtime.py`);
the tests do in Python.
"""

import contextlib
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch


class Event(Protocol):
    """A point on a stream that tells when it was reached: a `torch.Event` with timing."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to another; negative if the other came first."""
        ...


class Stream(Protocol):
    """Work in order, done behind the host's back: a `torch.Stream`."""

    @property
    def device(self) -> torch.device: ...

    def record_event(self, event: Any) -> Any: ...

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class MemoryState(NamedTuple):
    """What torch's allocator holds on a device: bytes of tensors and of the segments they lie in, now and at most.

    `alloc_retries` counts how often it had to give back its cache and ask again: each stops the whole device.
    """

    allocated_bytes: int
    peak_bytes: int
    reserved_bytes: int
    peak_reserved_bytes: int
    alloc_retries: int


class Runtime(ABC):
    """One kind of accelerator. `device_type` is torch's name of it, `vendor` the one that people use."""

    device_type: str
    vendor: str

    @abstractmethod
    def device_count(self) -> int: ...

    @abstractmethod
    def device_name(self, device: torch.device) -> str:
        """The product's name."""

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the device computes in numbers of this type."""
        return True

    # streams ----------------------------------------------------------------------------------------------------------

    def pci_address(self, device: torch.device) -> str | None:
        """Where the device is on the host's PCI bus, as Linux writes it; None where that is not known."""
        return None

    @abstractmethod
    def stream_of(self, device: torch.device, name: str) -> Stream:
        """The stream of that name, the same each time: libraries keep memory for each that they ever worked on."""

    @abstractmethod
    def default_stream(self, device: torch.device) -> Stream:
        """The stream of threads that never chose one."""

    @abstractmethod
    def on(self, stream: Stream) -> contextlib.AbstractContextManager[Any]:
        """While entered, what this thread computes goes to the stream."""

    @abstractmethod
    def new_event(self) -> Event:
        """An event with timing; who waits for it sleeps."""

    @abstractmethod
    def synchronize(self, device: torch.device) -> None:
        """Blocks until all streams have done what they were given. Raises if any of it failed."""

    # memory -----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def free_and_total_bytes(self, device: torch.device) -> tuple[int, int]:
        """What the whole device has, whoever uses it."""

    @abstractmethod
    def memory_state(self, device: torch.device) -> MemoryState: ...

    @abstractmethod
    def reset_peak(self, device: torch.device) -> None:
        """Starts new peaks from what is held now."""

    @abstractmethod
    def limit(self, device: torch.device, share: float) -> None:
        """Torch may take no more than this share of the device's memory: torch.OutOfMemoryError beyond it."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Gives back what is reserved but not in use."""

    @abstractmethod
    def register(self, device: torch.device, address: int, num_bytes: int) -> int:
        """Page-locks host memory that is there. Returns 0, or the runtime's code of an error."""

    @abstractmethod
    def unregister(self, address: int) -> int:
        """Undoes `register`. Returns 0, or the runtime's code of an error."""
