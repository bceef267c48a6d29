"""One direction of an emulated link: real copies that take as long as a stated bandwidth says.

A copy runs in pieces of about a millisecond, each of which begins no sooner than its turn, so that the load on host
memory is as even as on a real link. If the copy itself is slower than the pace, its times say so.
"""

import math
import threading

import torch

from engine.device.emulated.paced_copy import copy_paced, prepare
from traces.errors import InputError

PIECE_S = 1e-3
"""Time of one piece of a copy at the link's pace."""

MIN_PIECE_BYTES = 64 * 1024
"""Smaller pieces would cost more in calls than in copying."""


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
        self._lock = threading.Lock()
        if self.bytes_per_s is not None or self.pageable_bytes_per_s is not None:
            prepare()

    def transfer(self, dst: torch.Tensor, src: torch.Tensor, pinned: bool) -> None:
        """Copies `src` to `dst`; returns when the last byte is there and its time is over."""
        if dst.shape != src.shape or dst.dtype != src.dtype:
            shapes = " cannot be copied to ".join(f"{one.dtype} {list(one.shape)}" for one in (src, dst))
            raise ValueError(f"{self.name}: {shapes}: one shape and dtype needed")
        rate = self.bytes_per_s if pinned else self.pageable_bytes_per_s
        with self._lock:
            if rate is None:
                dst.copy_(src)
            else:
                copy_paced(dst, src, rate, max(MIN_PIECE_BYTES, int(rate * PIECE_S)))
