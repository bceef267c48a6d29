"""A number that was measured several times: its median, its spread, and what was done to get it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from engine.device import LaneContext
from sim.problem import Basis, Quantity


@dataclass(frozen=True, slots=True)
class Measured:
    """Median and quartiles of repeated measurements, in the SI base unit."""

    median: float
    low: float
    high: float
    count: int
    what: str

    @classmethod
    def of(cls, values: Sequence[float], what: str) -> Self:
        """Summarise the values; one value is its own quartiles."""
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(statistics.median(values), low, high, len(values), what)

    def quantity(self, unit: str, scale: float = 1.0) -> Quantity:
        """The median as a measured quantity; the source names the measurement and its quartiles."""
        digits = f"{self.low / scale:.4g} to {self.high / scale:.4g} {unit}"
        source = f"{self.what}; median of {self.count}, quartiles {digits}"
        return Quantity(self.median / scale, unit, Basis.MEASURED, source)


def repeated(measure: Callable[[], float], what: str, repeats: int) -> Measured:
    """Take a measurement `repeats` times, after one that does not count."""
    measure()
    return Measured.of([measure() for _ in range(repeats)], what)


def lane_seconds(lane: LaneContext, work: Callable[[], object]) -> float:
    """How long the lane of this thread takes for what `work` gives it."""
    start = lane.mark()
    work()
    return (lane.mark().time_ns - start.time_ns) / 1e9
