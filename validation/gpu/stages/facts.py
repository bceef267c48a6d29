"""Stage 0: what the machine is; how fast its links, its host and its launches are, by the engine's own lanes."""

import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import transformers

from engine.device import Device, LaneContext, host_memory_bytes, usable_count
from engine.memory import HostCopy
from sim.schedule import LaneKind
from validation.gpu.piece import Piece
from validation.gpu.workbench import Workbench, available_host_bytes

SMALLEST_BYTES = 64 * 1024
STEP = 4
"""Each size of a copy is so many times the one before."""

REPEATS = 5
TOGETHER_S = 0.3
MOST_COPIERS = 8
LAUNCHES = 200

NVIDIA_SMI = (
    "name,driver_version,memory.total,pci.bus_id,pcie.link.gen.max,pcie.link.gen.current,pcie.link.width.max,"
    "pcie.link.width.current,clocks.max.sm,power.limit"
)

ONE_WAY = {LaneKind.H2D: "to the device", LaneKind.D2H: "from the device"}
MEMORIES = LOCKED, PAGEABLE, STRIDED = "page-locked", "pageable", "strided"
ROW_BYTES = 1024


def fact_pieces(bench: Workbench) -> Iterator[Piece]:
    """The machine, copies over the link by size and memory, both ways at once, host copies, launches and events."""
    seconds = bench.scale.seconds["facts"]
    yield Piece("machine", seconds, partial(machine_facts, bench))
    for memory in MEMORIES:
        for kind, way in ONE_WAY.items():
            yield Piece(f"copies {way}, {memory}", seconds, partial(_copies, bench, kind, memory))
    yield Piece("copies both ways at once, page-locked", seconds, partial(_both_ways, bench))
    yield Piece("copies in host memory", seconds, partial(_host_copies, bench))
    yield Piece("launches and events", seconds, partial(_latencies, bench))


def machine_facts(bench: Workbench) -> dict[str, Any]:
    """System, cores, memory and versions; what nvidia-smi says of a CUDA device."""
    return {
        "origin": bench.origin,
        "system": platform.platform(),
        "cores": usable_count(),
        "host_bytes": host_memory_bytes(),
        "available_host_bytes": available_host_bytes(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
        | {"transformers": transformers.__version__},
        "nvidia_smi": _nvidia_smi(f"--query-gpu={NVIDIA_SMI}", "--format=csv") if bench.is_cuda else None,
        "topology": _nvidia_smi("topo", "-m") if bench.is_cuda else None,
    }


def _nvidia_smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "nvidia-smi is not there"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout or done.stderr).strip()


def _sizes(bench: Workbench) -> list[int]:
    sizes = [SMALLEST_BYTES]
    while sizes[-1] * STEP <= bench.scale.largest_copy_bytes:
        sizes.append(sizes[-1] * STEP)
    return sizes


def _copies(bench: Workbench, kind: LaneKind, memory: str) -> dict[str, Any]:
    """Bytes per second by size: the median of some copies."""
    found = {}
    sizes = _sizes(bench)
    with (
        _roomy_device(bench) as device,
        _both_sides(device, sizes[-1], memory) as both,
        device.open_lane(kind) as lane,
    ):
        for num_bytes in sizes:
            copy = partial(_copy, kind, memory, num_bytes, *both)
            copy(lane)
            found[str(num_bytes)] = num_bytes / statistics.median(_lane_seconds(lane, copy) for _ in range(REPEATS))
    return {"bytes_per_s": found}


def _both_ways(bench: Workbench) -> dict[str, Any]:
    """Bytes per second of each direction while both are busy."""
    num_bytes, begin = _sizes(bench)[-1], threading.Barrier(len(ONE_WAY))

    def rate(device: Device, kind: LaneKind, sides: tuple[torch.Tensor, torch.Tensor]) -> float:
        copy, taken = partial(_copy, kind, LOCKED, num_bytes, *sides), list[float]()
        with device.open_lane(kind) as lane:
            copy(lane)
            begin.wait()
            until = time.perf_counter() + TOGETHER_S
            while time.perf_counter() < until or not taken:
                taken.append(_lane_seconds(lane, copy))
        return num_bytes / statistics.median(taken)

    with _roomy_device(bench) as device, ExitStack() as stack, ThreadPoolExecutor(len(ONE_WAY)) as pool:
        sides = [stack.enter_context(_both_sides(device, num_bytes, LOCKED)) for _ in ONE_WAY]
        rates = list(pool.map(partial(rate, device), ONE_WAY, sides))
    return {"bytes": num_bytes, "bytes_per_s": dict(zip(ONE_WAY.values(), rates, strict=True))}


def _host_copies(bench: Workbench) -> dict[str, Any]:
    """Bytes per second of 1 to MOST_COPIERS threads that copy host memory as the engine's staging does."""
    num_bytes = bench.scale.largest_copy_bytes
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(2))
    found, threads = {}, 1
    while threads <= MOST_COPIERS:
        with HostCopy(threads) as copy:
            copy(target, source)
            taken = [_host_seconds(partial(copy, target, source)) for _ in range(REPEATS)]
        found[str(threads)] = num_bytes / statistics.median(taken)
        threads *= 2
    return {"bytes": num_bytes, "bytes_per_s": found}


def _latencies(bench: Workbench) -> dict[str, Any]:
    """Seconds: the host's part of a launch, launches in a row on the lane, a mark, and a launch that is awaited."""
    with _roomy_device(bench) as device, device.open_lane(LaneKind.GPU) as lane:
        one = torch.zeros(1, device=device.torch_device)

        def launches() -> None:
            for _ in range(LAUNCHES):
                one.add_(1)

        def marks() -> None:
            for _ in range(LAUNCHES):
                lane.mark()

        def awaited() -> None:
            for _ in range(LAUNCHES):
                one.add_(1)
                lane.mark().wait()

        launches()
        awaited()
        by_host = _host_seconds(launches)
        lane.mark().wait()
        found = {
            "launch_on_host_s": by_host,
            "launch_on_lane_s": _lane_seconds(lane, lambda _: launches()),
            "mark_s": _host_seconds(marks),
            "launch_and_wait_s": _host_seconds(awaited),
        }
    return {name: seconds / LAUNCHES for name, seconds in found.items()}


def _roomy_device(bench: Workbench) -> Device:
    return bench.device(max(4 * bench.scale.largest_copy_bytes, 64 * 1024**2))


@contextmanager
def _both_sides(device: Device, num_bytes: int, memory: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A block of the device's memory, and one of the host's of twice the size, page-locked unless it is pageable."""
    on_device, on_host = device.allocate("facts", (num_bytes,), torch.uint8), device.host_block(2 * num_bytes)
    if memory != PAGEABLE:
        device.lock("facts", on_host)
    try:
        yield on_device, on_host
    finally:
        device.synchronize()
        device.free(on_device)
        if memory != PAGEABLE:
            device.unlock("facts", on_host)


def _copy(
    kind: LaneKind, memory: str, num_bytes: int, device_side: torch.Tensor, host_side: torch.Tensor, lane: LaneContext
) -> None:
    """One copy on a lane. Strided: rows of host memory of which every other half is left out."""
    rows, width = num_bytes // ROW_BYTES, ROW_BYTES * (2 if memory == STRIDED else 1)
    on_device = device_side[:num_bytes].view(rows, ROW_BYTES)
    on_host = host_side[: rows * width].view(rows, width)[:, :ROW_BYTES]
    if kind is LaneKind.H2D:
        lane.copy_h2d(on_device, on_host, pinned=memory != PAGEABLE)
    else:
        lane.copy_d2h(on_host, on_device, pinned=memory != PAGEABLE)


def _lane_seconds(lane: LaneContext, work: Callable[[LaneContext], object]) -> float:
    start = lane.mark()
    work(lane)
    return (lane.mark().time_ns - start.time_ns) / 1e9


def _host_seconds(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s
