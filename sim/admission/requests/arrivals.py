"""When requests arrive: all at once, by chance at a rate, or as a trace says."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from traces.errors import InputError, check_range, shown
from traces.files import is_file, read_objects

POISSON, PER_SECOND = "poisson:", "/s"
FORMS = 'at-once, poisson:RATE/s such as poisson:2/s, or a .jsonl file with {"arrival_s": 1.5} a line'
LEAST_RATE, MOST_RATE = 1e-6, 1e6
LONGEST_S = 1e9
NS_PER_S = 1_000_000_000

_STREAM_OF_DRAWS = 2
"""Keeps the draws of arrivals apart from those of lengths."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Times of arrival: those given, or drawn at a mean rate, or, with neither, 0 for all."""

    rate_per_s: float | None = None
    times_ns: tuple[int, ...] = ()
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `at-once`, `poisson:2/s` or a file of times. Raises InputError with what is allowed."""
        if text == "at-once":
            return cls()
        if text.startswith(POISSON):
            return cls(rate_per_s=_rate(text))
        path = Path(text)
        if path.suffix.lower() != ".jsonl" and not is_file(path):
            raise InputError(f"arrivals {shown(text)}: unknown; give {FORMS}")
        times = [arrival_ns(line.get("arrival_s"), where) for where, line in read_objects(path)]
        if not times:
            raise InputError(f'{path}: is empty; give one arrival a line, such as {{"arrival_s": 1.5}}')
        return cls(times_ns=tuple(sorted(times)), source=str(path))

    def drawn_ns(self, count: int, seed: int) -> list[int]:
        """When each of so many requests arrives, in order. Raises InputError where a file has fewer."""
        if self.rate_per_s is not None:
            gaps_s = np.random.default_rng([seed, _STREAM_OF_DRAWS]).exponential(1 / self.rate_per_s, count)
            return [round(when_s * NS_PER_S) for when_s in np.cumsum(gaps_s).tolist()]
        if not self.times_ns:
            return [0] * count
        if count > len(self.times_ns):
            raise InputError(f"{self.source}: has {len(self.times_ns)} arrivals for {count} requests; ask for fewer")
        return list(self.times_ns[:count])


AT_ONCE = Arrivals()


def arrival_ns(value: object, where: str) -> int:
    """A time in seconds, as a line of a file gives it."""
    return round(check_range(f"{where}: arrival_s", value, 0, LONGEST_S, "seconds from the start") * NS_PER_S)


def _rate(text: str) -> float:
    """The rate in `poisson:2/s`."""
    number = text.removeprefix(POISSON)
    try:
        rate = float(number.removesuffix(PER_SECOND))
    except ValueError:
        rate = math.nan
    if not number.endswith(PER_SECOND) or not LEAST_RATE <= rate <= MOST_RATE:
        raise InputError(f"arrivals {shown(text)}: not a rate; give one a second, such as {POISSON}2{PER_SECOND}")
    return rate
