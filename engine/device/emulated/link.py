"""One direction of an emulated link: real copies that take as long as a stated bandwidth says.

A copy runs in pieces of about a millisecond, each of which begins no sooner than its turn, so that the load on host
memory is as even as on a real link. If the copy itself is slower than the pace, its times say so. All of it is one
compiled call: a copy in Python would wake a thousand times a second, and each time take the interpreter's lock from the
lane that computes.
"""

import math
import sys
import threading
import time
from typing import Any, Final

import numpy as np
import torch
from numba import types

from sim.simulation import jitted
from traces.errors import InputError

PIECE_S = 1e-3
"""Time of one piece of a copy at the link's pace."""

MIN_PIECE_BYTES = 64 * 1024
"""Smaller pieces would cost more in calls than in copying."""

POSIX: Final = sys.platform != "win32"

OUTER_DIMS: Final = 3
"""Dimensions of a copy beyond its contiguous rows."""

SPIN_NS: Final = 60_000
"""The end of a copy is awaited by looking at the clock from here on: a sleep overshoots by about 40 µs."""

_CLOCK: Final = time.CLOCK_MONOTONIC if POSIX else 0
_SECOND_NS: Final = 1_000_000_000

Sizes = tuple[int, int, int]
Rows = tuple[Sizes, Sizes, Sizes, int]
"""Of a copy: sizes and both strides (bytes, `dst` first) of the outer dimensions, and the bytes of a row."""

# Of the C library; every pointer is a number. A moment is its `timespec`: seconds and nanoseconds.
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
_nanosleep: Any = types.ExternalFunction("nanosleep", types.int32(types.intp, types.intp))
_memcpy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.intp))


@jitted
def _wait_until(end_ns: int, spin_ns: int) -> None:
    moment = np.empty(2, np.int64)
    while True:
        _clock_gettime(_CLOCK, moment.ctypes.data)
        left_ns = end_ns - moment[0] * _SECOND_NS - moment[1]
        if left_ns <= 0:
            return
        if left_ns > spin_ns:
            moment[0], moment[1] = (left_ns - spin_ns) // _SECOND_NS, (left_ns - spin_ns) % _SECOND_NS
            _nanosleep(moment.ctypes.data, 0)


@jitted
def _copy_rows(
    dst: int,
    src: int,
    sizes: Sizes,
    dst_strides: Sizes,
    src_strides: Sizes,
    row_bytes: int,
    piece_bytes: int,
    ns_per_byte: float,
    start_ns: int,
) -> None:
    done = due = 0
    for a in range(sizes[0]):
        for b in range(sizes[1]):
            for c in range(sizes[2]):
                to = dst + a * dst_strides[0] + b * dst_strides[1] + c * dst_strides[2]
                origin = src + a * src_strides[0] + b * src_strides[1] + c * src_strides[2]
                at = 0
                while at < row_bytes:
                    if done >= due:
                        _wait_until(start_ns + int(done * ns_per_byte), 0)
                        due += piece_bytes
                    count = min(row_bytes - at, due - done)
                    _memcpy(to + at, origin + at, count)
                    at += count
                    done += count
    _wait_until(start_ns + int(done * ns_per_byte), SPIN_NS)


def copy_paced(dst: torch.Tensor, src: torch.Tensor, bytes_per_s: float, piece_bytes: int) -> None:
    """Copies `src` to `dst`, of one shape and dtype; returns no sooner than `bytes_per_s` allows.

    Pieces of `piece_bytes` begin no sooner than their turn; a layout without rows of bytes is copied in one piece.
    """
    start_ns = _clock_ns()
    rows = rows_of(dst, src)
    if POSIX and rows is not None:
        _copy_rows(dst.data_ptr(), src.data_ptr(), *rows, max(1, piece_bytes), 1e9 / bytes_per_s, start_ns)
        return
    dst.copy_(src)
    while (left_s := src.nbytes / bytes_per_s - (_clock_ns() - start_ns) / 1e9) > 0:
        time.sleep(left_s)


def _clock_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) if POSIX else time.perf_counter_ns()


def rows_of(dst: torch.Tensor, src: torch.Tensor) -> Rows | None:
    """The copy as rows of bytes that lie together on both sides; None if there are none, or too many dimensions."""
    itemsize = src.itemsize
    dims = [  # innermost first: size, stride in dst, stride in src
        (size, to * itemsize, origin * itemsize)
        for size, to, origin in zip(src.shape, dst.stride(), src.stride(), strict=True)
        if size != 1
    ]
    dims.sort(key=lambda dim: (dim[1], dim[2]))
    row_bytes = itemsize
    while dims and dims[0][1] == dims[0][2] == row_bytes:
        row_bytes *= dims.pop(0)[0]
    merged: list[tuple[int, int, int]] = []
    for size, to, origin in dims:
        if merged and (to, origin) == (merged[-1][0] * merged[-1][1], merged[-1][0] * merged[-1][2]):
            merged[-1] = (merged[-1][0] * size, *merged[-1][1:])
        else:
            merged.append((size, to, origin))
    if not src.numel() or row_bytes == itemsize != src.nbytes or len(merged) > OUTER_DIMS:
        return None
    padded = [(1, 0, 0)] * (OUTER_DIMS - len(merged)) + merged[::-1]
    sizes, to_strides, from_strides = zip(*padded, strict=True)
    return sizes, to_strides, from_strides, row_bytes


class PacedLink:
    """Carries one transfer at a time, at one of two rates for two kinds of host memory; None: as fast as it goes."""

    def __init__(self, name: str, bytes_per_s: float | None, pageable_bytes_per_s: float | None = None) -> None:
        for field, value in (("bandwidth", bytes_per_s), ("pageable bandwidth", pageable_bytes_per_s)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} {field} = {value} bytes/s: give more than 0, or None for unthrottled")
        self.name = name
        self.bytes_per_s = bytes_per_s
        self.pageable_bytes_per_s = bytes_per_s if pageable_bytes_per_s is None else pageable_bytes_per_s
        self._lock = threading.Lock()
        if self.bytes_per_s is not None or self.pageable_bytes_per_s is not None:
            copy_paced(torch.empty(1), torch.empty(1), 1e9, 1)  # compiles, or loads what was compiled: seconds

    def transfer(self, dst: torch.Tensor, src: torch.Tensor, pinned: bool) -> None:
        """Copies `src` to `dst`, of one shape and dtype; returns when the last byte is there and its time is over."""
        rate = self.bytes_per_s if pinned else self.pageable_bytes_per_s
        with self._lock:
            if rate is None:
                dst.copy_(src)
            else:
                copy_paced(dst, src, rate, max(MIN_PIECE_BYTES, int(rate * PIECE_S)))
