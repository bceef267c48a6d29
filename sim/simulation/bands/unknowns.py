"""What is not known exactly of a machine: its numbers, those together that are one piece of knowledge."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sim.problem import Basis, Dimension, Hardware, Quantity

NOT_SIMULATED = ("optimizer.", "disk.", "link.peak", "power.")
"""Numbers that no simulated time follows from, by the beginnings of their names."""

PEAKS = {
    "device.peak": ("device.", ".compute"),
    "device_memory.bandwidth": ("device.", ".memory"),
    "host.peak": ("host.", ".compute"),
    "host_memory.bandwidth": ("host.", ".memory"),
}
"""Each peak, and how the names of the shares of it begin and end that classes of work reach."""

COPIES = ("link.h2d", "link.d2h", "pin")
"""Rates that the host's memory has to keep up with."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Numbers that are right or wrong together, because one value was written to all of them from one source."""

    paths: tuple[str, ...]
    basis: Basis

    @property
    def name(self) -> str:
        return self.paths[0]

    def __str__(self) -> str:
        return f"{self.name} (and {len(self.paths) - 1} alike)" if len(self.paths) > 1 else self.name


def unknowns_of(machine: Hardware) -> tuple[Unknown, ...]:
    """All that a time depends on. Sizes of memories are left out: what fits is another question than how fast it is."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for path, number in machine.quantities():
        if number and number.unit not in Dimension.SIZE.units and not path.startswith(NOT_SIMULATED):
            alike.setdefault((number.basis, number.value, number.unit, number.source), []).append(path)
    return tuple(Unknown(tuple(paths), machine.value(paths[0]).basis) for paths in alike.values())


def varied(machine: Hardware, unknowns: Sequence[Unknown], factors: Sequence[float]) -> Hardware:
    """The machine with the numbers of each unknown multiplied by its factor, as far as a machine can be so.

    No copy gets faster than its link or the host's memory. A share that is better known than its peak was found from
    what work takes: where the peak is another, the share of it is, too, and the work takes as long.
    """
    numbers = dict(machine.quantities())
    drawn = {path: factor for one, factor in zip(unknowns, factors, strict=True) for path in one.paths}
    for peak in PEAKS.keys() & drawn.keys():
        shares = [path for path in _shares_of(peak, numbers) if _better(numbers[path].basis, numbers[peak].basis)]
        drawn[peak] = max([drawn[peak], *(float(numbers[path]) for path in shares)])
        drawn |= {path: drawn.get(path, 1.0) / drawn[peak] for path in shares}
    host = math.inf  # an emulated device's copies may stay in caches
    if machine.emulation is None:
        host = numbers["host_memory.bandwidth"] * drawn.get("host_memory.bandwidth", 1.0)
    most = {path: _most(numbers[path], path, numbers["link.peak"], host) for path in drawn}
    return machine.multiplied({path: min(factor, most[path]) for path, factor in drawn.items()})


def _shares_of(peak: str, paths: Iterable[str]) -> Iterator[str]:
    begin, end = PEAKS[peak]
    return (path for path in paths if path.startswith(begin) and path.endswith(end))


def _better(basis: Basis, other: Basis) -> bool:
    return list(Basis).index(basis) < list(Basis).index(other)


def _most(number: Quantity, path: str, link_peak: float, host_bytes_per_s: float) -> float:
    """The largest factor that a number allows: of the rates of a link, what is left to its peak and to the host's."""
    most = host_bytes_per_s / number if path in COPIES else math.inf
    if not path.startswith("link.") or number.unit not in Dimension.RATE.units:
        return most
    directions = 2 if path == "link.duplex" else 1
    return min(most, max(1.0, directions * link_peak / number))
