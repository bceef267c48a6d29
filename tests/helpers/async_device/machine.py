"""The machine that plays the device: its streams, its memory, its page-locked host memory, and who had to wait."""

import inspect
import re
import threading
import weakref
from typing import NamedTuple

import torch

from async_device.memory import Memory
from async_device.races import Races
from async_device.streams import LOCK, Event, Stream, chosen_stream

NAME = "late"
"""What torch calls the device."""

_ASKS = re.compile(r"(?<![\w-])(?:transformers|(?<!tests/)engine(?!/device|/lanes))/[\w/]+\.py$")
"""Code that may ask for something to be waited for; a device and the lanes' threads only pass it on."""

TOTAL_BYTES = 8 * 10**9


class HostWait(NamedTuple):
    """A thread had to wait for the device: what for, which lane, and who in the engine or the model's library asked."""

    why: str
    lane: str
    where: str


class Machine:
    """One device. A new one takes the place of the last; tensors of that one stay what they are."""

    current: "Machine"

    def __init__(self, total_bytes: int = TOTAL_BYTES) -> None:
        self.device = torch.device(NAME, 0)
        self.races = Races()
        self.streams: list[Stream] = []
        self.default_stream = self.new_stream()
        self.memory = Memory(self, total_bytes, total_bytes)
        self.tells_early = False  # whether events tell that they were reached to who did not wait for them
        self.events: weakref.WeakSet[Event] = weakref.WeakSet()
        self.waits: list[HostWait] = []
        self.page_locked: dict[int, int] = {}  # bytes by address
        self.lockable_bytes = total_bytes
        Machine.current = self

    def new_stream(self) -> Stream:
        self.streams.append(Stream(self, len(self.streams)))
        return self.streams[-1]

    def current_stream(self) -> Stream:
        """Where this thread's work goes."""
        stream = chosen_stream()
        return self.default_stream if stream is None or stream.machine is not self else stream

    def synchronize(self) -> None:
        with LOCK:
            self.host_waits("device")
            for stream in self.streams:
                stream.run()
                stream.known = stream.issued
            self.races.host_waited_for_all()

    def host_waits(self, why: str) -> None:
        """Notes that the calling thread waits."""
        frame = inspect.currentframe()
        assert frame is not None
        while frame.f_back and not _ASKS.search(frame.f_code.co_filename):
            frame = frame.f_back
        found = _ASKS.search(frame.f_code.co_filename)
        where = f"{found[0] if found else ''}:{frame.f_code.co_name}"
        self.waits.append(HostWait(why, threading.current_thread().name, where))

    def is_page_locked(self, tensor: torch.Tensor) -> bool:
        start = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.itemsize
        return any(first <= start < first + size for first, size in self.page_locked.items())
