"""A device for machines that have none: real tensors, real copies, real overlap, at stated speeds.

Device memory is host memory with accounts. A transfer copies for real and takes as long as the stated bandwidth says,
in the thread of its lane. The GPU lane is a thread with cores of its own. Results are emulated and say so.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch

from engine.device.base import Device, LaneContext, ThreadLane
from engine.device.emulated.link import PacedLink
from engine.device.threads import HostCores, behind_copies, prompt_sleep
from sim.schedule import LaneKind

TOP_PAD_BYTES = 64 * 1024**2
"""The heap grows by so much more than is asked for."""

_MALLOC_OPTIONS = {-4: 0, -1: -1, -2: TOP_PAD_BYTES, -8: 1}
"""M_MMAP_MAX, M_TRIM_THRESHOLD (never), M_TOP_PAD and M_ARENA_MAX in malloc.h of glibc, and what they are set to."""


class EmulatedLane(ThreadLane):
    """A lane that is a thread. If it computes on cores which copies use too, these go first: real ones need no core."""

    def __init__(self, device: "EmulatedDevice", kind: LaneKind) -> None:
        super().__init__(kind, device.cores, device.default_threads)
        self._links = {LaneKind.H2D: device.h2d, LaneKind.D2H: device.d2h}
        self._behind = {LaneKind.CPU, LaneKind.PIN} | ({LaneKind.GPU} if self._cores is None else set())

    def _contexts(self) -> Iterator[contextlib.AbstractContextManager[Any]]:
        yield prompt_sleep()
        if self.kind in self._behind:
            yield behind_copies()
        yield from super()._contexts()

    def _copy(self, dst: torch.Tensor, src: torch.Tensor, direction: LaneKind, pinned: bool) -> None:
        self._links[direction].transfer(dst, src, pinned)


class EmulatedDevice(Device):
    """Host memory that plays device memory, behind a link of stated bandwidths.

    A bandwidth of None is unthrottled; a pageable bandwidth of None equals the pinned one. Each direction carries one
    transfer at a time; both together run at full speed each, as far as the host's memory allows. The process keeps the
    memory that it frees from then on (`keep_freed_memory`).
    """

    def __init__(
        self,
        h2d_bytes_per_s: float | None,
        d2h_bytes_per_s: float | None,
        memory_bytes: int,
        gpu_threads: int | None = 1,
        cpu_threads: int | None = 1,
        *,
        h2d_pageable_bytes_per_s: float | None = None,
        d2h_pageable_bytes_per_s: float | None = None,
    ) -> None:
        cores = HostCores.that_play(gpu_threads, cpu_threads)
        super().__init__("emulated", "emulated device", torch.device("cpu"), memory_bytes, cores)
        keep_freed_memory()
        self.h2d = PacedLink("h2d", h2d_bytes_per_s, h2d_pageable_bytes_per_s)
        self.d2h = PacedLink("d2h", d2h_bytes_per_s, d2h_pageable_bytes_per_s)

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {
            f"{link.name}{kind}_bytes_per_s": rate
            for link in (self.h2d, self.d2h)
            for kind, rate in (("", link.bytes_per_s), ("_pageable", link.pageable_bytes_per_s))
        }

    def open_lane(self, kind: LaneKind) -> LaneContext:
        return EmulatedLane(self, kind)

    def synchronize(self) -> None:
        return

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)  # touches every page: the first copy must not pay for that

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def _register(self, address: int, num_bytes: int) -> None:
        return

    def _unregister(self, address: int) -> None:
        return


def keep_freed_memory() -> None:
    """From now on freed memory stays at hand, as with the caching allocator of a GPU; heaps that threads have stay.

    The C library gives large blocks back to the system, and the next tensor of that size pays for every page anew: on a
    virtual machine that can double the time of an operation. Where the library is not glibc, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS.items():
            mallopt(option, value)
