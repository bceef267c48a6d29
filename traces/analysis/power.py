"""What each part of a machine drew in a run, from the samples of its counter of power."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from traces.trace import NONE, POWER, Trace

Watts = list[tuple[int, float]]
"""(nanoseconds, watts from there on)."""


@dataclass(frozen=True, slots=True)
class PowerUse:
    """One part of a machine, on one device or the host, from the counter's first sample to its last."""

    part: str
    rank: int
    joules: float
    mean_w: float
    peak_w: float

    @property
    def name(self) -> str:
        """As people call it: `device`, and `device:1` of another device."""
        return f"{self.part}:{self.rank}" if self.rank > 0 else self.part

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"joules": self.joules, "mean_w": self.mean_w, "peak_w": self.peak_w}


def power_of(trace: Trace) -> tuple[PowerUse, ...]:
    """All parts whose power the trace holds: those of devices by rank, then those of the host."""
    parts = sorted(power_series(trace).items(), key=lambda of: (of[0][1] == NONE, of[0][1]))
    return tuple(_use(part, rank, samples) for (part, rank), samples in parts if len(samples) > 1)


def power_series(trace: Trace) -> dict[tuple[str, int], Watts]:
    """By part and rank, its samples in time order."""
    found = defaultdict[tuple[str, int], Watts](list)
    for counter in sorted((one for one in trace.counters if one.name == POWER), key=lambda one: one.time_ns):
        for part, watts in counter.values.items():
            found[part, counter.rank].append((counter.time_ns, watts))
    return dict(found)


def _use(part: str, rank: int, samples: Watts) -> PowerUse:
    span_s = (samples[-1][0] - samples[0][0]) / 1e9
    joules = sum(watts * seconds for watts, seconds in _held(samples))
    return PowerUse(part, rank, joules, joules / span_s if span_s else 0.0, max(watts for _, watts in samples))


def _held(samples: Watts) -> Iterator[tuple[float, float]]:
    """Watts, and for how long."""
    for (begin, watts), (end, _) in pairwise(samples):
        yield watts, (end - begin) / 1e9
