"""How many tokens requests generate before they end: all that they may, or as many as a distribution says."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from traces.errors import InputError, check_range, nearest

LOGNORMAL = "lognormal"
FORMS = f"constant, or {LOGNORMAL}:MEAN,SIGMA such as {LOGNORMAL}:100,0.8"
MOST_SIGMA = 5.0
MOST_MEAN = 1e6

_STREAM_OF_DRAWS = 1
"""Keeps the draws of lengths apart from those of arrivals."""


@dataclass(frozen=True, slots=True)
class GenerationLengths:
    """Lengths that are all alike (`sigma` is None), or lognormal about a mean, cut where a request may not go on."""

    mean_tokens: float = 0.0
    sigma: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `constant` or `lognormal:100,0.8`. Raises InputError with what is allowed."""
        law, _, numbers = text.partition(":")
        if text == "constant":
            return cls()
        mean, comma, sigma = numbers.partition(",")
        if law != LOGNORMAL or not comma:
            raise InputError(f"gen-lens {text!r}: unknown{nearest(law, ('constant', LOGNORMAL))}; give {FORMS}")
        mean_tokens = check_range(f"gen-lens {text!r}: MEAN", _number(mean), 1, MOST_MEAN)
        return cls(mean_tokens, check_range(f"gen-lens {text!r}: SIGMA", _number(sigma), 0, MOST_SIGMA))

    def drawn(self, most: int, count: int, seed: int) -> list[int]:
        """Of so many requests that may generate `most` tokens each, how many each does."""
        if self.sigma is None:
            return [most] * count
        location = math.log(self.mean_tokens) - self.sigma**2 / 2
        draws = np.random.default_rng([seed, _STREAM_OF_DRAWS]).lognormal(location, self.sigma, count)
        found: list[int] = np.clip(np.rint(draws), 1, most).astype(int).tolist()
        return found


CONSTANT = GenerationLengths()


def _number(text: str) -> float:
    """The number in a text; one that is in no range where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
