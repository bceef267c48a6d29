"""Plain measurements of memories, links and matrix products, each on the lane of a device that does such work."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engine.calibration.measure.measured import Measured, repeated
from engine.calibration.measure.memory_bandwidth import MemoryReader
from engine.device import ALIGNMENT_BYTES, Device, LaneContext, intra_op_threads
from sim.schedule import LaneKind

MIB = 1024**2
LARGE_COPY_BYTES = 32 * MIB
SHARE_OF_DEVICE = 8
"""A copy takes no more than one of so many parts of the device's memory."""
SMALL_COPY_BYTES = 4096
REPEATS = 9
FEW_REPEATS = 3
TOGETHER_S = 0.4
"""How long both directions of the link are kept busy at once."""

ENOUGH_S = 0.05
"""A matrix product is enlarged until it takes about so long: shorter ones do not show the peak."""

MAX_GEMM = 8192


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


def probe(
    device: Device,
    dtype: torch.dtype,
    device_threads: int,
    host_threads: int,
    host_cores: int,
    repeats: int = REPEATS,
) -> Probes:
    """Measure a device and its host. `dtype` is what the model computes in; cores and threads are those of lanes."""
    with ThreadPoolExecutor(1) as apart:  # whatever a lane of the host asks of its thread ends with it
        host = apart.submit(
            _probe_gemm, device, LaneKind.CPU, torch.float32, torch.device("cpu"), repeats, host_threads
        ).result()
    return Probes(
        link=_probe_link(device, repeats),
        host_copy=_probe_host_copy(repeats),
        host_read=_probe_reading(host_cores, repeats),
        device_read=_probe_device_memory(device, device_threads, repeats),
        device_peak=_probe_gemm(device, LaneKind.GPU, dtype, device.torch_device, repeats),
        host_peak=host,
    )


# link ---------------------------------------------------------------------------------------------------------


def _probe_link(device: Device, repeats: int) -> LinkProbe:
    rates = {
        (kind, pinned): _probe_copies(device, kind, pinned, repeats)
        for kind in (LaneKind.H2D, LaneKind.D2H)
        for pinned in (True, False)
    }
    with device.open_lane(LaneKind.H2D) as lane:
        small = _Copy(device, LaneKind.H2D, SMALL_COPY_BYTES, pinned=True)
        latency = repeated(lambda: small.seconds(lane), f"copies of {SMALL_COPY_BYTES} bytes to the device", repeats)
        small.close()
    return LinkProbe(
        h2d=rates[LaneKind.H2D, True],
        d2h=rates[LaneKind.D2H, True],
        h2d_pageable=rates[LaneKind.H2D, False],
        d2h_pageable=rates[LaneKind.D2H, False],
        together=_probe_both_ways(device),
        latency=latency,
    )


class _Copy:
    """Buffers on both sides of the link, and a copy between them."""

    def __init__(self, device: Device, kind: LaneKind, num_bytes: int, *, pinned: bool) -> None:
        self._device, self._pinned = device, pinned
        self.num_bytes = num_bytes
        self.on_device = device.allocate("calibration", (num_bytes,), torch.uint8)
        if pinned:
            self.on_host = device.pinned_empty("calibration", (num_bytes,), torch.uint8)
        else:
            self.on_host = torch.zeros(num_bytes, dtype=torch.uint8)
        self._to_device = kind is LaneKind.H2D

    def seconds(self, lane: LaneContext) -> float:
        """Copy once, on the lane of this thread."""
        start = lane.mark()
        if self._to_device:
            lane.copy_h2d(self.on_device, self.on_host, pinned=self._pinned)
        else:
            lane.copy_d2h(self.on_host, self.on_device, pinned=self._pinned)
        end = lane.mark()
        return (end.time_ns - start.time_ns) / 1e9

    def rate(self, lane: LaneContext) -> float:
        return self.num_bytes / self.seconds(lane)

    def close(self) -> None:
        self._device.free(self.on_device)


def _large(device: Device) -> int:
    return min(LARGE_COPY_BYTES, device.memory_bytes // SHARE_OF_DEVICE)


def _probe_copies(device: Device, kind: LaneKind, pinned: bool, repeats: int) -> Measured:
    size = _large(device)
    device.reserve_pinned(size + ALIGNMENT_BYTES if pinned else 0)
    memory, way = "page-locked" if pinned else "pageable", "to" if kind is LaneKind.H2D else "from"
    what = f"copies of {size / MIB:.3g} MiB {way} the device, {memory} host memory"
    with device.open_lane(kind) as lane:
        copy = _Copy(device, kind, size, pinned=pinned)
        measured = repeated(lambda: copy.rate(lane), what, repeats)
        copy.close()
    device.reserve_pinned(SMALL_COPY_BYTES)
    return measured


def _probe_both_ways(device: Device) -> Measured:
    """Bytes per second of both directions together while both are busy."""
    size = _large(device)
    device.reserve_pinned(2 * (size + ALIGNMENT_BYTES))
    rates: dict[LaneKind, list[float]] = {LaneKind.H2D: [], LaneKind.D2H: []}
    copies = {kind: _Copy(device, kind, size, pinned=True) for kind in rates}
    begin = threading.Barrier(2)

    def work(kind: LaneKind) -> None:
        with device.open_lane(kind) as lane:
            copies[kind].seconds(lane)
            begin.wait()
            until = time.perf_counter() + TOGETHER_S
            while time.perf_counter() < until or len(rates[kind]) < 2:
                rates[kind].append(copies[kind].rate(lane))

    threads = [threading.Thread(target=work, args=(kind,)) for kind in rates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for copy in copies.values():
        copy.close()
    device.reserve_pinned(0)
    sums = [h2d + d2h for h2d, d2h in zip(*rates.values(), strict=False)]
    return Measured.of(sums, f"copies of {size / MIB:.3g} MiB in both directions at once")


# memories -----------------------------------------------------------------------------------------------------


def _probe_host_copy(repeats: int) -> Measured:
    """One core copies host memory to host memory, as the thread does that fills pinned staging."""
    source, target = (torch.zeros(LARGE_COPY_BYTES, dtype=torch.uint8) for _ in range(2))

    def rate() -> float:
        start_s = time.perf_counter()
        target.copy_(source)
        return LARGE_COPY_BYTES / (time.perf_counter() - start_s)

    with intra_op_threads(1, torch.get_num_threads()):
        return repeated(rate, f"one thread copies {LARGE_COPY_BYTES // MIB} MiB in host memory", repeats)


def _probe_reading(threads: int, repeats: int) -> Measured:
    with MemoryReader(threads) as reader:
        return repeated(reader.bytes_per_s, f"{threads} threads read host memory", repeats)


def _probe_device_memory(device: Device, threads: int, repeats: int) -> Measured:
    if device.torch_device.type == "cpu":
        return _probe_reading(threads, repeats)
    size = min(device.memory_bytes // 4, 1024 * MIB)
    source, target = (device.allocate("calibration", (size,), torch.uint8) for _ in range(2))
    with device.open_lane(LaneKind.GPU) as lane:
        seconds = _timed(lane, lambda: target.copy_(source))
        measured = repeated(lambda: 2 * size / seconds(), f"copies of {size // MIB} MiB in device memory", repeats)
    for tensor in (source, target):
        device.free(tensor)
    return measured


# matrix products ----------------------------------------------------------------------------------------------


def _probe_gemm(
    device: Device, kind: LaneKind, dtype: torch.dtype, place: torch.device, repeats: int, threads: int | None = None
) -> Measured:
    """FLOP/s of square matrix products that are large enough to show the peak."""
    size = 512
    with device.open_lane(kind) as lane:
        while True:
            a, b = (torch.ones((size, size), dtype=dtype, device=place) for _ in range(2))
            seconds = _timed(lane, lambda a=a, b=b: torch.mm(a, b))  # type: ignore[misc]
            seconds()
            if seconds() >= ENOUGH_S or size >= MAX_GEMM:
                break
            size *= 2
        name = str(dtype).removeprefix("torch.")
        on = f" on {threads} threads" if threads else ""
        return repeated(lambda: 2 * size**3 / seconds(), f"{name} matrix products of {size} x {size}{on}", repeats)


def _timed(lane: LaneContext, work: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        start = lane.mark()
        work()
        end = lane.mark()
        return (end.time_ns - start.time_ns) / 1e9

    return seconds
