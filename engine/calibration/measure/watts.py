"""What counters say that device and host draw, idle and at each class of work; nothing where there are no counters."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from engine.calibration.measure.measured import lane_seconds
from engine.calibration.measure.probes import CALIBRATION, MIB, MemoryReader, large_copies, large_copy_bytes
from engine.device import DEVICE, HOST, Device, EnergyCounters, EnergyMeter, counters_of, intra_op_threads, usable_count
from sim.schedule import LaneKind

IDLE, COMPUTE, MEMORY, LINK = "nothing", "matrix products on the device", "copies in device memory", "copies to it"
HOST_COMPUTE, HOST_READ = "matrix products on the host", "reads of host memory"

WARM_S, STEADY_S = 0.3, 0.7
"""Work before it counts, in which clocks and watts settle, and the time that counts."""

SIZE = 4096
"""Of a matrix product."""

AT_ONCE = 8
"""Pieces of work between two waits for the device, which would let it rest."""

Work = Callable[[], int]
"""Does some milliseconds of work; returns the bytes that it moved."""


@dataclass(frozen=True, slots=True)
class Watts:
    """Watts by what was done and by component, the bytes a second that it moved, and limits.

    `counters` says what counted, `missing` why something has none.
    """

    watts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    limits_w: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def measure_watts(device: Device, dtype: torch.dtype, counters: EnergyCounters | None = None) -> Watts:
    """Some seconds of each class of work that a component with a counter does; by default the device's and its host's.

    Without counters nothing is done.
    """
    counters = counters_of(device) if counters is None else counters
    limits: dict[str, float] = {}
    for one in counters.counters:
        if one.limit_w is not None:
            limits[one.component] = limits.get(one.component, 0.0) + one.limit_w
    watts: dict[str, dict[str, float]] = {}
    rates: dict[str, float] = {}
    with EnergyMeter(counters) as meter:
        for name, opened in _works(device, dtype, set(meter.components)):
            with opened as work:
                watts[name], rates[name] = _steady(meter, work)
        there = {name: told for name, told in meter.names.items() if name in meter.components}
        return Watts(watts, rates, limits, there, meter.missing)


def _works(
    device: Device, dtype: torch.dtype, counted: set[str]
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Work]]]:
    """Nothing comes last of the device's: a card's clocks are still up."""
    if DEVICE in counted:
        yield COMPUTE, _products(device, LaneKind.GPU, dtype, device.torch_device)
        yield MEMORY, _copies_there(device)
        yield LINK, _copies_over(device)
    if counted:
        yield IDLE, contextlib.nullcontext(_rest)
    if HOST in counted:
        yield HOST_COMPUTE, _products(device, LaneKind.CPU, torch.float32, torch.device("cpu"))
        yield HOST_READ, _reads()


def _steady(meter: EnergyMeter, work: Work) -> tuple[dict[str, float], float]:
    """Watts by component while work goes on, and its bytes a second."""
    _until(time.perf_counter() + WARM_S, work)
    start_ns = time.perf_counter_ns()
    moved = _until(time.perf_counter() + STEADY_S, work)
    end_ns = time.perf_counter_ns()
    seconds = (end_ns - start_ns) / 1e9
    used = meter.use({"steady": (start_ns, end_ns)}).by_component
    return {name: joules / seconds for name, joules in used.items()}, moved / seconds


def _until(end_s: float, work: Work) -> int:
    moved = work()
    while time.perf_counter() < end_s:
        moved += work()
    return moved


def _rest() -> int:
    time.sleep(0.02)
    return 0


@contextlib.contextmanager
def _products(device: Device, kind: LaneKind, dtype: torch.dtype, place: torch.device) -> Iterator[Work]:
    """Of random numbers: products of numbers that are all alike take less power."""
    generator = torch.Generator().manual_seed(0)
    usual = device.cores.torch_threads(kind)
    threads, size = (device.cpu_threads, SIZE // 4) if kind is LaneKind.CPU else (usual, SIZE)
    with device.open_lane(kind) as lane, intra_op_threads(threads, usual):
        a, b = (torch.randn((size, size), generator=generator).to(place, dtype) for _ in range(2))
        made = torch.empty_like(a)

        def work() -> int:
            lane_seconds(lane, lambda: [torch.mm(a, b, out=made) for _ in range(AT_ONCE)])
            return 0

        yield work


@contextlib.contextmanager
def _copies_there(device: Device) -> Iterator[Work]:
    size = min(device.memory_bytes // 4, 1024 * MIB)
    source, target = (device.allocate(CALIBRATION, (size,), torch.uint8) for _ in range(2))
    try:
        with device.open_lane(LaneKind.GPU) as lane:

            def work() -> int:
                lane_seconds(lane, lambda: [target.copy_(source) for _ in range(AT_ONCE)])
                return 2 * size * AT_ONCE

            yield work
    finally:
        for tensor in (source, target):
            device.free(tensor)


@contextlib.contextmanager
def _copies_over(device: Device) -> Iterator[Work]:
    with large_copies(device, LaneKind.H2D) as seconds, device.open_lane(LaneKind.H2D) as lane:

        def work() -> int:
            seconds(lane)
            return large_copy_bytes(device)

        yield work


@contextlib.contextmanager
def _reads() -> Iterator[Work]:
    with MemoryReader(usable_count()) as reader:
        yield reader.read
