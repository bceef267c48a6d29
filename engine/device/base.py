"""What a device is to the executor: memory with accounts, and lanes that work in order.

Each lane is used in a thread of its own. A lane's work may be asynchronous (a stream), so order between lanes is kept
by marks: `mark()` names the point after all that a lane was given so far, `wait(mark)` holds back what a lane is given
from now on. All times are on the host clock, `time.perf_counter_ns`.
"""

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import torch

from engine.device.energy import EnergyCounter, NoCounterError
from engine.device.host_memory import PageLocked, fresh_block
from engine.device.ledger import DeviceOutOfMemory, Ledger, Usage
from engine.device.threads import HostCores, for_now, intra_op_threads, on_cores
from sim.schedule import LaneKind
from traces.errors import InputError


class Mark(ABC):
    """A point in a lane's work, reached when all that the lane was given before it is done.

    `of_device`: the time is from a clock of the device, which errs by a fraction of a millisecond: two marks of one
    lane may come out in the wrong order.
    """

    of_device = False

    @abstractmethod
    def wait(self) -> None:
        """Blocks the calling thread until the point is reached."""

    @abstractmethod
    def settle(self) -> bool:
        """If the point is reached by now, notes when and lets go of all else. Says whether it was; never blocks."""

    @property
    @abstractmethod
    def time_ns(self) -> int:
        """When the point was reached, on the host clock; blocks until it is."""


class LaneContext(ABC):
    """One lane, as a context manager: enter it in the thread that does its work, and use it only there.

    Inside, grad mode is off (`torch.inference_mode`), and the thread has the lane's thread count and stream.
    """

    def __init__(self, kind: LaneKind, cores: HostCores, default_threads: int) -> None:
        self.kind = kind
        self._cores = cores.cores_of(kind)
        self._threads = cores.torch_threads(kind), default_threads
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for context in self._contexts():
            self._entered.enter_context(context)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    @abstractmethod
    def mark(self) -> Mark:
        """The point after all work given to this lane so far."""

    def begin(self, before: Mark, deps: Sequence[Mark]) -> Mark:
        """Where a task starts that nothing holds back; `before` ended the previous one, `deps` were waited for."""
        return self.mark()

    @abstractmethod
    def wait(self, mark: Mark) -> None:
        """Work given to this lane from now on starts after `mark`. May return before the mark is reached."""

    def copy_h2d(self, dst: torch.Tensor, src: torch.Tensor, *, pinned: bool = True) -> None:
        """Copies host memory to the device; `pinned`: `src` is page-locked, so that the copy needs no relay.

        Both tensors have one shape and dtype, and stay alive and unchanged until a mark taken later is reached.
        """
        self._checked_copy(dst, src, LaneKind.H2D, pinned)

    def copy_d2h(self, dst: torch.Tensor, src: torch.Tensor, *, pinned: bool = True) -> None:
        """Copies device memory to the host. `pinned`: `dst` is page-locked. Otherwise as `copy_h2d`."""
        self._checked_copy(dst, src, LaneKind.D2H, pinned)

    def keep(self, *tensors: torch.Tensor) -> None:
        """Keeps what else this lane's work so far reads alive until a mark taken later is reached."""
        return

    def _checked_copy(self, dst: torch.Tensor, src: torch.Tensor, direction: LaneKind, pinned: bool) -> None:
        if dst.shape != src.shape or dst.dtype != src.dtype:
            shapes = " cannot be copied to ".join(f"{one.dtype} {list(one.shape)}" for one in (src, dst))
            raise ValueError(f"{direction.lower()}: {shapes}: one shape and dtype needed")
        self._copy(dst, src, direction, pinned)

    def _contexts(self) -> Iterator[contextlib.AbstractContextManager[Any]]:
        """What the lane's thread is inside of while it works, outermost first."""
        yield on_cores(self._cores)
        yield intra_op_threads(*self._threads)
        yield torch.inference_mode()

    def _copy(self, dst: torch.Tensor, src: torch.Tensor, direction: LaneKind, pinned: bool) -> None:
        raise RuntimeError(f"lane {self.kind} has no link to the device")


class HostMark(Mark):
    """A point that is reached already: a thread has done its work when it says so."""

    __slots__ = ("_time_ns",)

    def __init__(self) -> None:
        self._time_ns = time.perf_counter_ns()

    def wait(self) -> None:
        return

    def settle(self) -> bool:
        return True

    @property
    def time_ns(self) -> int:
        return self._time_ns


class ThreadLane(LaneContext):
    """A lane that is a thread: its work is done when the call that does it returns. It has no link to copy over."""

    def mark(self) -> Mark:
        return HostMark()

    def begin(self, before: Mark, deps: Sequence[Mark]) -> Mark:
        """A thread is at work from one task to the next: what it does between two is part of the second."""
        points = [mark for mark in (before, *deps) if isinstance(mark, HostMark)]
        return max(points, key=lambda mark: mark.time_ns) if len(points) == 1 + len(deps) else self.mark()

    def wait(self, mark: Mark) -> None:
        mark.wait()


class Device(ABC):
    """An accelerator, real or emulated: one memory of a stated size, and lanes.

    `name` is what a user calls it; `origin` is what a trace of it must say: `emulated device` or `real GPU (name)`.
    """

    def __init__(self, name: str, origin: str, torch_device: torch.device, memory_bytes: int, cores: HostCores) -> None:
        if memory_bytes < 1:
            raise InputError(f"device memory = {memory_bytes} bytes: at least 1 is needed")
        self.name = name
        self.origin = origin
        self.torch_device = torch_device
        self.cores = cores
        self.default_threads = torch.get_num_threads()
        self.memory = Ledger("device memory", memory_bytes, DeviceOutOfMemory)
        self._page_locked = PageLocked(self._register, self._unregister)
        self._allocated: dict[int, tuple[str, int]] = {}  # data pointer -> name, bytes

    @property
    def gpu_threads(self) -> int | None:
        """Threads that play the device, where the host does."""
        return self.cores.playing

    @property
    def cpu_threads(self) -> int:
        """Threads of attention on the host."""
        return self.cores.attention

    @property
    def pin_threads(self) -> int:
        """Threads that copy weights into staging."""
        return self.cores.staging

    def for_run(self, decoding: Collection[LaneKind]) -> contextlib.AbstractContextManager[None]:
        """While entered, cores are shared out for a run in whose decode only these lanes have work."""
        return for_now(lambda cores: setattr(self, "cores", cores), self.cores.for_run(decoding), self.cores)

    def hold_cores(self) -> None:
        """From now on every run has the same cores: what is measured of one holds of the others."""
        self.cores = self.cores.held()

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether the device computes in numbers of this type, instead of making do with others."""
        return True

    @property
    def memory_bytes(self) -> int:
        """Capacity of the device's memory."""
        assert self.memory.capacity_bytes is not None
        return self.memory.capacity_bytes

    @property
    def facts(self) -> dict[str, Any]:
        """What a trace keeps of the device: its name, its size, and the cores and speeds that it was given."""
        return {"name": self.name, "memory_bytes": self.memory_bytes, **self.cores.facts}

    def energy_counter(self) -> EnergyCounter:
        """What counts the joules of this device and of no other. Raises NoCounterError, which says why nothing does."""
        raise NoCounterError("the host's cores play the device: its joules are among theirs")

    def allocate(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A new tensor in device memory. Raises DeviceOutOfMemory if there is no room."""
        return self._charged(name, math.prod(shape) * dtype.itemsize, lambda: self._empty(tuple(shape), dtype))

    def place(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The host tensor `tensor`, in device memory: for what stays there for the whole run.

        An emulated device takes over the tensor as it is, without a copy; a real one copies it. `free` gives the
        bytes back. Raises DeviceOutOfMemory if there is no room.
        """
        if tensor.data_ptr() in self._allocated:  # tied parameters
            return tensor
        return self._charged(name, tensor.nbytes, lambda: self._placed(tensor))

    def _charged(self, name: str, num_bytes: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.memory.charge(name, num_bytes)
        try:
            tensor = make()
        except BaseException:
            self.memory.refund(name, num_bytes)
            raise
        self._allocated[tensor.data_ptr()] = (name, num_bytes)
        return tensor

    def free(self, tensor: torch.Tensor) -> None:
        """Gives back the bytes of a tensor from `allocate` or `place`, or of a view that starts where it does.

        The memory itself goes when the last reference to it does. Raises KeyError for a tensor from elsewhere.
        """
        name, num_bytes = self._allocated.pop(tensor.data_ptr())
        self.memory.refund(name, num_bytes)

    @property
    def usage(self) -> Usage:
        """Device memory in use, now and at its peak."""
        return self.memory.usage

    def reset_peak(self) -> None:
        """Starts a new peak from what is held now."""
        self.memory.reset_peak()

    @property
    def pinned(self) -> Ledger:
        """The accounts of page-locked host memory: what was locked in place, and what was cut from the reserve."""
        return self._page_locked.ledger

    def host_block(self, num_bytes: int) -> torch.Tensor:
        """New zeroed bytes of host memory, pageable: as `fresh_block` makes them."""
        return fresh_block(num_bytes)

    def lock(self, name: str, block: torch.Tensor) -> None:
        """Page-locks the bytes of a host tensor in place. Raises PinnedOutOfMemory, having locked nothing."""
        self._page_locked.lock(name, block)

    def unlock(self, name: str, block: torch.Tensor) -> None:
        """Undoes `lock` of the same bytes; nothing may be copying from or to them."""
        self._page_locked.unlock(name, block)

    def reserve_pinned(self, parts: Mapping[str, int]) -> None:
        """Page-locks one block with a part of so many bytes for each name, in place of an earlier one."""
        self._page_locked.reserve(parts)

    def pinned_empty(self, name: str, shape: Sequence[int], dtype: torch.dtype, part: str) -> torch.Tensor:
        """A new tensor that takes `aligned_bytes` of a reserved part and lives as long. Raises PinnedOutOfMemory."""
        return self._page_locked.empty(name, shape, dtype, part)

    @abstractmethod
    def open_lane(self, kind: LaneKind) -> LaneContext:
        """A new lane of this device: one thread enters it and works with it."""

    @abstractmethod
    def synchronize(self) -> None:
        """Blocks until all lanes have done what they were given."""

    def close(self) -> None:
        """Gives back all memory. Nothing on the device can be used afterwards; closing twice is harmless."""
        for name, num_bytes in self._allocated.values():
            self.memory.refund(name, num_bytes)
        self._allocated.clear()
        self._page_locked.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor in device memory."""

    @abstractmethod
    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A host tensor's content in device memory."""

    @abstractmethod
    def _register(self, address: int, num_bytes: int) -> None:
        """Page-locks host memory. Raises PinnedOutOfMemory."""

    @abstractmethod
    def _unregister(self, address: int) -> None:
        """Undoes `_register`, once no copy uses the memory any more."""
