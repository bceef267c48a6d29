"""What tokens need of the experts of a range of ranks, on average."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sim.problem.routing.choice import ExpertChoice, Floats


class Use(NamedTuple):
    """What some tokens use of a range of experts: expected numbers, so they need not be whole."""

    touched: float
    """Different experts that at least one token uses: whose weights are read."""
    pairs: float
    """Pairs of a token and an expert that it uses: what is computed."""
    tokens: float
    """Tokens that use at least one of them: whose hidden states are needed there."""


def expected_use(popularity: Floats, top_k: int, tokens: float, first: int, stop: int) -> Use:
    """What so many tokens are expected to use of the experts of ranks `first` to `stop` - 1.

    `popularity` is of all ranks. Tokens choose independently of each other.
    """
    return _expected_use(popularity.tobytes(), top_k, tokens, first, stop)


@lru_cache(maxsize=1 << 14)
def _expected_use(popularity: bytes, top_k: int, tokens: float, first: int, stop: int) -> Use:
    every = np.frombuffer(popularity)
    part = every[first:stop]
    if not len(part) or tokens <= 0:
        return Use(0.0, 0.0, 0.0)
    touched = len(part) - float(((1.0 - part) ** tokens).sum())
    return Use(touched, tokens * float(part.sum()), tokens * ExpertChoice.of(every, top_k).uses_any(first, stop))
