"""Who holds how many bytes of a memory: current and peak use, and a clear no when it is full."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from traces.errors import InputError


class OutOfMemory(InputError):  # noqa: N818 - what everybody calls it
    """A memory cannot hold what was asked of it: the message names the tensor, its bytes, what is left and the plan."""


class DeviceOutOfMemory(OutOfMemory):
    """The device's memory cannot hold what was asked of it."""


class PinnedOutOfMemory(OutOfMemory):
    """The page-locked host memory that was reserved cannot hold what was asked of it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a memory holds now, and the most that it held."""

    current_bytes: int
    peak_bytes: int


class Ledger:
    """Counts the bytes of one memory, from any thread.

    `plan` is what the run meant to use, in words; an error quotes it so that the user sees where the two part.
    """

    def __init__(self, tier: str, capacity_bytes: int | None, error: type[OutOfMemory] = OutOfMemory) -> None:
        if capacity_bytes is not None and capacity_bytes < 0:
            raise InputError(f"capacity of {tier} = {capacity_bytes} bytes: it cannot be negative")
        self.tier = tier
        self.capacity_bytes = capacity_bytes
        self.plan = ""
        self._error = error
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._current_bytes = 0
        self._peak_bytes = 0
        self._history: list[tuple[int, int]] | None = None

    @property
    def usage(self) -> Usage:
        with self._lock:
            return Usage(self._current_bytes, self._peak_bytes)

    @property
    def holders(self) -> dict[str, int]:
        """Bytes by name."""
        with self._lock:
            return dict(+self._held)

    def charge(self, name: str, num_bytes: int) -> None:
        """Adds to what `name` holds. Raises this ledger's OutOfMemory, having counted nothing, if there is no room."""
        if num_bytes < 0:
            raise InputError(f"{name} = {num_bytes} bytes in {self.tier}: it cannot be negative")
        with self._lock:
            if self.capacity_bytes is not None and self._current_bytes + num_bytes > self.capacity_bytes:
                raise self._error(self._refusal(name, num_bytes, self.capacity_bytes))
            self._held[name] += num_bytes
            self._current_bytes += num_bytes
            self._peak_bytes = max(self._peak_bytes, self._current_bytes)
            self._note()

    def refund(self, name: str, num_bytes: int) -> None:
        """Takes away from what `name` holds. Raises KeyError if it does not hold that much: a bug of the caller."""
        with self._lock:
            held = self._held[name]
            if not 0 <= num_bytes <= held:
                raise KeyError(f"{name} holds {held} bytes in {self.tier}, {num_bytes} cannot be given back")
            self._current_bytes -= num_bytes
            self._held[name] -= num_bytes
            if not self._held[name]:
                del self._held[name]  # those who come and go leave nothing behind
            self._note()

    @contextlib.contextmanager
    def holding(self, name: str, num_bytes: int) -> Iterator[None]:
        """`charge` on entry, `refund` on exit."""
        self.charge(name, num_bytes)
        try:
            yield
        finally:
            self.refund(name, num_bytes)

    def start_history(self) -> None:
        """Notes from now on what is held after each change, and when."""
        with self._lock:
            self._history = []
            self._note()

    def take_history(self) -> list[tuple[int, int]]:
        """(host clock in ns, bytes held) since `start_history`, which it ends."""
        with self._lock:
            history, self._history = self._history, None
            return history or []

    def _note(self) -> None:
        if self._history is not None:
            self._history.append((time.perf_counter_ns(), self._current_bytes))

    def reset_peak(self) -> None:
        """Starts a new peak from what is held now."""
        with self._lock:
            self._peak_bytes = self._current_bytes

    def _refusal(self, name: str, num_bytes: int, capacity_bytes: int) -> str:
        left_bytes = capacity_bytes - self._current_bytes
        plan = f"; the plan: {self.plan}" if self.plan else ""
        return (
            f"{name} needs {num_bytes} bytes of {self.tier}, but {left_bytes} of {capacity_bytes} are left "
            f"({num_bytes - left_bytes} too few){plan}; use smaller micro-batches, a policy that keeps less there, "
            f"or give it more memory"
        )
