"""What tokens need of the experts of a range of ranks, on average."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sim.problem.routing.choice import ExpertChoice, Floats

LEAST_CHANCE = 1e-9
"""Of having yet another tile, from which on none counts."""


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


def expected_padding(popularity: Floats, tokens: float, first: int, stop: int, tile: int) -> float:
    """Rows of tiles over the pairs in them, for the experts of ranks `first` to `stop` - 1: 1 if tiles are full.

    Each expert's tokens fill tiles of so many; what is left of its last tile is computed all the same.
    """
    if tile == 1 or tokens <= 0:
        return 1.0
    part = [float(one) for one in popularity[first:stop] if one > 0]
    pairs = tokens * sum(part)
    return max(1.0, tile * sum(_expected_tiles(tokens, one, tile) for one in part) / pairs) if pairs else 1.0


@lru_cache(maxsize=1 << 14)
def _expected_tiles(tokens: float, share: float, tile: int) -> float:
    """Tiles of an expert that each token uses with this probability: the sum of P(it has more than 0, 1, 2 … tiles)."""
    mean = tokens * share
    spread = math.sqrt(max(mean * (1.0 - share), 1e-12))
    if spread > tile:  # as much of the last tile is filled as not
        return mean / tile + (tile - 1) / (2 * tile)
    tiles, full = 1.0 - math.pow(1.0 - share, tokens), tile
    while (more := 0.5 * math.erfc((full + 0.5 - mean) / (spread * math.sqrt(2.0)))) > LEAST_CHANCE:
        tiles, full = tiles + more, full + tile
    return tiles
