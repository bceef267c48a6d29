"""One direction of an emulated link: real copies that take as long as a stated bandwidth says.

A copy runs in pieces of about a millisecond, each of which begins no sooner than its turn, so that the load on host
memory is as even as on a real link. If the copy itself is slower than the pace, its times say so and
`LinkUse` counts what it was late.
"""

import math
import threading
import time
from dataclasses import dataclass

import torch

from engine.device.emulated.paced_copy import copy_paced, prepare
from traces.errors import InputError

PIECE_S = 1e-3
"""Time of one piece of a copy at the link's pace."""

MIN_PIECE_BYTES = 64 * 1024
"""Smaller pieces would cost more in calls than in copying."""


@dataclass(slots=True)
class LinkUse:
    """What one direction of a link carried. `late_s`: how much longer than its pace allows that took."""

    transfers: int = 0
    bytes: int = 0
    busy_s: float = 0.0
    late_s: float = 0.0


class PacedLink:
    """Carries one transfer at a time at `bytes_per_s`, or at `pageable_bytes_per_s` from or to pageable memory.

    None: as fast as the copy goes.
    """

    def __init__(self, name: str, bytes_per_s: float | None, pageable_bytes_per_s: float | None = None) -> None:
        for field, value in (("bandwidth", bytes_per_s), ("pageable bandwidth", pageable_bytes_per_s)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} {field} = {value} bytes/s: give more than 0, or None for unthrottled")
        self.name = name
        self.bytes_per_s = bytes_per_s
        self.pageable_bytes_per_s = bytes_per_s if pageable_bytes_per_s is None else pageable_bytes_per_s
        self.use = LinkUse()
        self._lock = threading.Lock()
        if self.bytes_per_s is not None or self.pageable_bytes_per_s is not None:
            prepare()

    def transfer(self, dst: torch.Tensor, src: torch.Tensor, pinned: bool) -> None:
        """Copies `src` to `dst`; returns when the last byte is there and its time is over."""
        start_s = time.perf_counter()
        if not self._lock.acquire(blocking=False):
            self._lock.acquire()
            start_s = time.perf_counter()
        try:
            rate = self.bytes_per_s if pinned else self.pageable_bytes_per_s
            due_s = self._copy(dst, src, rate)
            busy_s = time.perf_counter() - start_s
            self._count(src.nbytes, busy_s, 0.0 if rate is None else busy_s - due_s)
        finally:
            self._lock.release()

    def _copy(self, dst: torch.Tensor, src: torch.Tensor, rate: float | None) -> float:
        """Copies at `rate`; returns how long that should take."""
        if dst.shape != src.shape or dst.dtype != src.dtype:
            raise ValueError(f"{self.name}: {_told(src)} cannot be copied to {_told(dst)}: one shape and dtype needed")
        if rate is None:
            dst.copy_(src)
            return 0.0
        copy_paced(dst, src, rate, max(MIN_PIECE_BYTES, int(rate * PIECE_S)))
        return src.nbytes / rate

    def _count(self, num_bytes: int, busy_s: float, late_s: float) -> None:
        self.use.transfers += 1
        self.use.bytes += num_bytes
        self.use.busy_s += busy_s
        self.use.late_s += max(0.0, late_s)


def _told(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
