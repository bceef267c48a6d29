"""Plain measurements of memories, links and matrix products, each on the lane of a device that does such work."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from engine.calibration.measure.measured import Measured, lane_seconds, repeated
from engine.device import Device, LaneContext, aligned_bytes, check_thread_count, intra_op_threads, usable_count
from engine.memory import HostCopy
from sim.schedule import LaneKind
from traces.errors import InputError

MIB = 1024**2
LARGER_THAN_CACHES_BYTES = 256 * MIB
A_THREADS_BYTES = 64 * MIB
"""What each of many threads reads at least: to wake 16 of them takes 2 ms, in which 256 MiB were half read."""
LARGE_COPY_BYTES = 32 * MIB
SHARE_OF_DEVICE = 8
"""A copy takes no more than one of so many parts of the device's memory."""
SMALL_COPY_BYTES = 4096
CALIBRATION = "calibration"
"""What a probe's buffers are called, and the part of page-locked memory that they come from."""

REPEATS = 9
FEW_REPEATS = 3
TOGETHER_S = 0.4
"""How long both directions of the link are kept busy at once."""

ENOUGH_S = 0.05
"""A matrix product is enlarged until it takes about so long: shorter ones do not show the peak."""

MIN_GEMM, MAX_GEMM = 512, 8192


@dataclass(frozen=True, slots=True)
class LinkProbe:
    """Rates in bytes/s and the time of a copy that is too small to need any bandwidth, in seconds."""

    h2d: Measured
    d2h: Measured
    h2d_pageable: Measured
    d2h_pageable: Measured
    together: Measured
    latency: Measured


@dataclass(frozen=True, slots=True)
class Probes:
    """Everything that is measured without a model. Rates in bytes/s or FLOP/s."""

    link: LinkProbe
    host_copy: Measured
    host_read: Measured
    device_read: Measured
    device_peak: Measured
    host_peak: Measured


def probe(device: Device, dtype: torch.dtype, repeats: int = REPEATS) -> Probes:
    """Measure a device and its host. `dtype` is what the model computes in."""
    with ThreadPoolExecutor(1) as apart:  # whatever a lane of the host asks of its thread ends with it
        host_peak = apart.submit(_gemm, device, LaneKind.CPU, torch.float32, torch.device("cpu"), repeats).result()
    return Probes(
        link=_link(device, repeats),
        host_copy=_host_copy(device.pin_threads, repeats),
        host_read=_host_read(usable_count(), repeats),
        device_read=_device_read(device, repeats),
        device_peak=_gemm(device, LaneKind.GPU, dtype, device.torch_device, repeats),
        host_peak=host_peak,
    )


def _link(device: Device, repeats: int) -> LinkProbe:
    rates = {
        f"{kind.lower()}{'' if pinned else '_pageable'}": _one_way(device, kind, pinned, repeats)
        for kind in (LaneKind.H2D, LaneKind.D2H)
        for pinned in (True, False)
    }
    device.reserve_pinned({CALIBRATION: SMALL_COPY_BYTES})
    with device.open_lane(LaneKind.H2D) as lane, _copy(device, LaneKind.H2D, SMALL_COPY_BYTES) as seconds:
        latency = repeated(partial(seconds, lane), f"copies of {SMALL_COPY_BYTES} bytes to the device", repeats)
    return LinkProbe(**rates, together=_both_ways(device), latency=latency)


@contextlib.contextmanager
def _copy(
    device: Device, kind: LaneKind, num_bytes: int, *, pinned: bool = True
) -> Iterator[Callable[[LaneContext], float]]:
    """Buffers on both sides of the link; yields what copies once between them and tells how long it took."""
    on_device = device.allocate(CALIBRATION, (num_bytes,), torch.uint8)
    if pinned:
        on_host = device.pinned_empty(CALIBRATION, (num_bytes,), torch.uint8, CALIBRATION)
    else:
        on_host = torch.zeros(num_bytes, dtype=torch.uint8)

    def seconds(lane: LaneContext) -> float:
        if kind is LaneKind.H2D:
            return lane_seconds(lane, lambda: lane.copy_h2d(on_device, on_host, pinned=pinned))
        return lane_seconds(lane, lambda: lane.copy_d2h(on_host, on_device, pinned=pinned))

    try:
        yield seconds
    finally:
        device.free(on_device)


@contextlib.contextmanager
def large_copies(device: Device, kind: LaneKind) -> Iterator[Callable[[LaneContext], float]]:
    """Yields what copies once, page-locked, as much as shows the rate of the link, and tells how long it took."""
    size = large_copy_bytes(device)
    device.reserve_pinned({CALIBRATION: size})
    try:
        with _copy(device, kind, size) as seconds:
            yield seconds
    finally:
        device.reserve_pinned({})


def large_copy_bytes(device: Device) -> int:
    """Where the host does not play the device, a copy is too large for its caches, faster than its memory."""
    most = LARGER_THAN_CACHES_BYTES if device.gpu_threads is None else LARGE_COPY_BYTES
    return min(most, device.memory_bytes // SHARE_OF_DEVICE)


def _one_way(device: Device, kind: LaneKind, pinned: bool, repeats: int) -> Measured:
    size = large_copy_bytes(device)
    device.reserve_pinned({CALIBRATION: size if pinned else 0})
    memory, way = "page-locked" if pinned else "pageable", "to" if kind is LaneKind.H2D else "from"
    what = f"copies of {size / MIB:.3g} MiB {way} the device, {memory} host memory"
    with device.open_lane(kind) as lane, _copy(device, kind, size, pinned=pinned) as seconds:
        return repeated(lambda: size / seconds(lane), what, repeats)


def _both_ways(device: Device) -> Measured:
    """Bytes per second of both directions together while both are busy."""
    size, kinds, begin = large_copy_bytes(device), (LaneKind.H2D, LaneKind.D2H), threading.Barrier(2)
    device.reserve_pinned({CALIBRATION: 2 * aligned_bytes(size)})

    def rates(kind: LaneKind, seconds: Callable[[LaneContext], float]) -> list[float]:
        found: list[float] = []
        with device.open_lane(kind) as lane:
            seconds(lane)
            begin.wait()
            until = time.perf_counter() + TOGETHER_S
            while time.perf_counter() < until or len(found) < 2:
                found.append(size / seconds(lane))
        return found

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        copies = [stack.enter_context(_copy(device, kind, size)) for kind in kinds]
        sums = [h2d + d2h for h2d, d2h in zip(*pool.map(rates, kinds, copies), strict=False)]
    device.reserve_pinned({})
    return Measured.of(sums, f"copies of {size / MIB:.3g} MiB in both directions at once")


def _host_copy(threads: int, repeats: int) -> Measured:
    """Host memory is copied to host memory as by the threads that fill pinned staging."""
    size = LARGER_THAN_CACHES_BYTES
    source, target = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))

    def rate() -> float:
        start_s = time.perf_counter()
        copy(target, source)
        return size / (time.perf_counter() - start_s)

    with HostCopy(threads) as copy:
        return repeated(rate, f"copies of {size // MIB} MiB in host memory by {threads} threads", repeats)


class MemoryReader(contextlib.AbstractContextManager["MemoryReader"]):
    """Reads a block of memory once with `threads` threads, a share each, and nothing else.

    The block must be several times larger than the caches, or they answer instead of the memory.
    """

    def __init__(self, threads: int, num_bytes: int = LARGER_THAN_CACHES_BYTES) -> None:
        if num_bytes < 1:
            raise InputError(f"num_bytes = {num_bytes}: at least 1 is needed")
        self.threads = check_thread_count("threads", threads)
        self._shares = torch.zeros(-(-num_bytes // 4)).chunk(threads)
        self._default_threads = torch.get_num_threads()
        self._workers = ThreadPoolExecutor(threads, "memory reader")
        self.read()  # starts the threads

    def read(self) -> int:
        """Reads the block once; returns its bytes."""
        return sum(self._workers.map(self._read, self._shares))

    def bytes_per_s(self) -> float:
        """What one reading reaches."""
        start_s = time.perf_counter()
        return self.read() / (time.perf_counter() - start_s)

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown()

    def _read(self, share: torch.Tensor) -> int:
        with intra_op_threads(1, self._default_threads):
            share.amax()
        return share.nbytes


def _host_read(threads: int, repeats: int) -> Measured:
    with MemoryReader(threads, max(LARGER_THAN_CACHES_BYTES, threads * A_THREADS_BYTES)) as reader:
        return repeated(reader.bytes_per_s, f"{threads} threads read host memory", repeats)


def _device_read(device: Device, repeats: int) -> Measured:
    if device.gpu_threads is not None:  # the host plays the device
        return _host_read(device.gpu_threads, repeats)
    size = min(device.memory_bytes // 4, 1024 * MIB)
    source, target = (device.allocate(CALIBRATION, (size,), torch.uint8) for _ in range(2))
    what = f"copies of {size // MIB} MiB in device memory"
    with device.open_lane(LaneKind.GPU) as lane:
        measured = repeated(lambda: 2 * size / lane_seconds(lane, lambda: target.copy_(source)), what, repeats)
    for tensor in (source, target):
        device.free(tensor)
    return measured


def _bytes_of(size: int, dtype: torch.dtype) -> int:
    """Of both factors and their product."""
    return 3 * size**2 * dtype.itemsize


def _gemm(device: Device, kind: LaneKind, dtype: torch.dtype, place: torch.device, repeats: int) -> Measured:
    """FLOP/s of square matrix products that are large enough to show the peak.

    Of random numbers: products of numbers that are all alike take less power, and a device that needs less runs faster.
    """
    room_bytes = math.inf if kind is LaneKind.CPU else device.memory_bytes // SHARE_OF_DEVICE

    def seconds(size: int) -> Callable[[], float]:
        generator = torch.Generator().manual_seed(size)
        a, b = (torch.randn((size, size), generator=generator).to(place, dtype) for _ in range(2))
        return lambda: lane_seconds(lane, lambda: torch.mm(a, b))

    size = MIN_GEMM
    usual = device.cores.torch_threads(kind)
    threads = device.cpu_threads if kind is LaneKind.CPU else usual
    with device.open_lane(kind) as lane, intra_op_threads(threads, usual):
        product = seconds(size)
        while (product(), product())[1] < ENOUGH_S and size < MAX_GEMM and _bytes_of(2 * size, dtype) <= room_bytes:
            size *= 2
            product = seconds(size)
        on = f" on {threads} threads" if kind is LaneKind.CPU else ""
        what = f"{str(dtype).removeprefix('torch.')} matrix products of {size} x {size}{on}"
        return repeated(lambda: 2 * size**3 / product(), what, repeats)
