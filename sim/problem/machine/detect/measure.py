"""What a few seconds measure of a machine, without a model: DRAM, the host's matrices, a disk, and a device's link."""

import contextlib
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.problem.machine.quantity import Basis, Quantity

Array = NDArray[np.float32]

MIB = 1024**2
BUFFER_BYTES = 256 * MIB
"""Several times the caches of most machines; more where a file says that they are larger."""
TIMES_CACHES = 4
ENOUGH_S = 0.3
"""For which each is repeated, and at least `REPEATS` times; the median counts."""
REPEATS = 5
DISK_BYTES = 256 * MIB
DISK_BLOCK_BYTES = 4 * MIB
MATRIX = 1024


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate in SI units, the median of some, and what was done."""

    value: float
    unit: str
    what: str

    def quantity(self) -> dict[str, object]:
        """As a machine's file has it."""
        scale = Quantity(1.0, self.unit)
        return Quantity(float(f"{self.value / scale:.4g}"), self.unit, Basis.MEASURED, self.what).to_dict()


def measured(cores: int, caches_bytes: int, folder: Path | None) -> Iterator[tuple[str, Rate]]:
    """Each number of the machine that can be measured here, by its dotted name."""
    size = max(BUFFER_BYTES, TIMES_CACHES * caches_bytes)
    with Threads(cores, size) as memory:
        yield "host_memory.bandwidth", memory.reading()
    with Threads(1, BUFFER_BYTES) as memory:
        yield "pin", memory.copying()
    yield "host.peak", matrix_rate(cores)
    with contextlib.suppress(OSError):
        yield "disk.bandwidth", disk_rate(folder or Path(tempfile.gettempdir()))
    yield from rates_of_link()


class Threads(contextlib.AbstractContextManager["Threads"]):
    """Threads that read or copy a buffer larger than the caches, a share each."""

    def __init__(self, count: int, num_bytes: int) -> None:
        self._count, self._size = count, num_bytes
        self._shares = np.array_split(_plain_pages(num_bytes), count)
        self._workers = ThreadPoolExecutor(count, "memory")

    def reading(self) -> Rate:
        """All shares are read once, and nothing else."""
        value = _median_rate(lambda: [*self._workers.map(np.max, self._shares)], self._size)
        return Rate(value, "GB/s", f"detect: {self._count} threads read {self._size // MIB} MiB, the median")

    def copying(self) -> Rate:
        """All shares are copied once into memory that is there."""
        targets = np.array_split(_plain_pages(self._size), self._count)
        value = _median_rate(lambda: [*self._workers.map(np.copyto, targets, self._shares)], self._size)
        return Rate(value, "GB/s", f"detect: {self._count} threads copy {self._size // MIB} MiB, the median")

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown()


def _plain_pages(num_bytes: int) -> Array:
    """Memory in pages as tensors have them: numpy asks for larger ones, which are read up to a third faster."""
    content = np.frombuffer(mmap.mmap(-1, num_bytes), dtype=np.float32)
    content[:] = 1.0
    return content


def _median_rate(work: Callable[[], object], amount: float) -> float:
    return statistics.median(_rates(work, amount))


def _rates(work: Callable[[], object], amount: float) -> list[float]:
    """Amounts per second of work, done until there is enough of it; the first time only warms up."""
    work()
    found, until = list[float](), time.perf_counter() + ENOUGH_S
    while len(found) < REPEATS or time.perf_counter() < until:
        start_s = time.perf_counter()
        work()
        found.append(amount / (time.perf_counter() - start_s))
    return found


def matrix_rate(cores: int) -> Rate:
    """Products of square fp32 matrices by the library that numpy has, the fastest of some: a roof, not a usual rate."""
    one = np.ones((MATRIX, MATRIX), dtype=np.float32)
    target = np.empty_like(one)
    value = max(_rates(lambda: np.matmul(one, one, out=target), 2.0 * MATRIX**3))
    what = f"detect: numpy's product of fp32 matrices, {MATRIX} x {MATRIX}, on {cores} cores, the fastest"
    return Rate(value, "TFLOPS", what)


def disk_rate(folder: Path) -> Rate:
    """A new file read past the system's cache, and removed. Raises OSError where the folder's disk cannot do that."""
    if not hasattr(os, "O_DIRECT"):
        raise OSError("no direct reads here")
    with tempfile.NamedTemporaryFile(dir=folder, prefix="cgopipe-detect-") as file:
        block = np.random.default_rng(0).bytes(DISK_BLOCK_BYTES)
        for _ in range(DISK_BYTES // DISK_BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        handle = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, DISK_BLOCK_BYTES) as buffer:
                start_s = time.perf_counter()
                read = 0
                while count := os.preadv(handle, [buffer], read):
                    read += count
                took_s = time.perf_counter() - start_s
        finally:
            os.close(handle)
    return Rate(read / took_s, "GB/s", f"detect: {read // MIB} MiB of a new file in {folder}, read past the cache")


def rates_of_link() -> Iterator[tuple[str, Rate]]:
    """Copies of page-locked and pageable memory, where torch is there and has a device; else none."""
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        return
    on_device = torch.empty(BUFFER_BYTES, dtype=torch.uint8, device="cuda")
    for suffix, locked in (("", True), ("_pageable", False)):
        on_host = torch.zeros(BUFFER_BYTES, dtype=torch.uint8, pin_memory=locked)
        ways: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {
            "h2d": (on_device, on_host),
            "d2h": (on_host, on_device),
        }
        for way, (target, source) in ways.items():

            def copy(target: torch.Tensor = target, source: torch.Tensor = source) -> None:
                target.copy_(source, non_blocking=True)
                torch.cuda.synchronize()

            memory = "page-locked" if locked else "pageable"
            what = f"detect: torch {torch.__version__} copies {BUFFER_BYTES // MIB} MiB, {memory} host memory"
            yield f"link.{way}{suffix}", Rate(_median_rate(copy, BUFFER_BYTES), "GB/s", what)
