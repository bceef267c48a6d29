"""What few tokens use of the experts, drawn: where two places work side by side, the slower one of *each* layer counts.

The mean of a maximum is not the maximum of the means. So each layer of a model gets a draw of what its tokens use in
every place. A pool of many draws is made once for a number of tokens. For any cuts between the places it is sorted by
what the last place gets and cut into as many parts as there are layers, of which each gives its middle draw: a few
layers then have the spread of the whole pool, and one pool for all cuts compares neighbouring policies with little
noise. (The mean of each part would lose the spread of all places but the last.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sim.problem.routing.choice import ExpertChoice, Floats
from sim.problem.routing.use import Use, expected_use

SEED = 12
BANK_TOKENS = 4096
"""Tokens whose choices are drawn; a draw of the pool takes some of these."""
POOL_DRAWS, FEWEST_DRAWS = 2048, 256
"""Draws in a pool: fewer where tokens are many, as each varies less."""
POOL_PAIRS = 1 << 20
"""Pairs of a token and an expert in a pool, about."""
MOST_PAIRS = 4096
"""Pairs above which a draw is its mean. The halves of so many vary by 1 / sqrt(4096) = 1.6 % of their mean, so that the
larger one is 1.2 % above the mean on average: less than a rate can be measured to."""
GOLDEN_RATIO = (5**0.5 - 1) / 2

Counts = NDArray[np.int64]


def drawn_uses(
    popularity: Floats, top_k: int, tokens: float, cuts: Sequence[int], num_draws: int, num_layers: int = 0
) -> list[tuple[Use, ...]]:
    """Draws for the layers of a model of what so many tokens use of the experts between the cuts.

    `cuts` are ranks, from 0 to the number of experts: (0, 3, 8) are the experts 0 to 2 and 3 to 7. Of `num_layers`,
    each takes the next draw, the first one again behind the last (default: as many as draws). The mean over the layers
    is `expected_use`, of each slice. The same arguments give the same draws.
    """
    return list(_drawn_uses(popularity.tobytes(), top_k, tokens, tuple(cuts), num_draws, num_layers or num_draws))


@lru_cache(maxsize=4096)
def _drawn_uses(
    popularity: bytes, top_k: int, tokens: float, cuts: tuple[int, ...], num_draws: int, num_layers: int
) -> tuple[tuple[Use, ...], ...]:
    every = np.frombuffer(popularity)
    sizes = np.diff(cuts)
    means = tuple(expected_use(every, top_k, tokens, first, stop) for first, stop in pairwise(cuts))
    pairs = round(tokens) * top_k
    if not 0 < pairs <= MOST_PAIRS or len(means) == 1:
        return (means,) * num_draws
    pool = _pool(popularity, top_k, round(tokens), max(min(POOL_PAIRS // pairs, POOL_DRAWS), FEWEST_DRAWS, num_draws))
    uses = pool.middle_draws(cuts, num_draws)
    most = np.array([sizes, tokens * np.minimum(sizes, top_k), np.full(len(sizes), tokens)])
    neighbours_differ = np.argsort(np.arange(num_draws) * GOLDEN_RATIO % 1)
    layers_of_each = np.bincount(np.arange(num_layers) % num_draws, minlength=num_draws)
    uses = _with_mean(uses[..., neighbours_differ], np.array(means).T[..., None], most[..., None], layers_of_each)
    layers = uses.transpose(2, 1, 0).tolist()
    return tuple(tuple(map(Use._make, layer)) for layer in layers)


def _with_mean(values: Floats, wanted: Floats, most: Floats, weights: Counts) -> Floats:
    """The values, moved in proportion towards 0 or towards the most they can be until their mean is as wanted."""
    values, wanted = np.clip(values, 0, most), np.minimum(wanted, most)  # rounding may have taken it above
    mean = np.average(values, axis=-1, weights=weights)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        down = values * (wanted / mean)
        up = most - (most - values) * ((most - wanted) / (most - mean))
    return np.where(mean == wanted, values, np.where(mean > wanted, down, up))


def _with_spread(values: Floats, wanted: Floats) -> Floats:
    """The values, nearer to their mean or further from it until their standard deviation is as wanted."""
    mean, spread = values.mean(axis=-1, keepdims=True), values.std(axis=-1, keepdims=True)
    ratio: Floats = np.divide(wanted, spread, where=spread > 0, out=np.ones_like(spread))
    spread_out: Floats = mean + (values - mean) * ratio
    return spread_out


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Many draws of what some tokens use. Both tables are [rank, draw] and count the ranks before that one."""

    touched: NDArray[np.int16]
    pairs: NDArray[np.int16]
    tokens_of_pairs: Floats
    """[pairs]: how many tokens are expected to have one or more of so many pairs, which are any of all pairs."""

    def middle_draws(self, cuts: Sequence[int], num_draws: int) -> Floats:
        """[number of a Use, slice, draw]: the draws in the middle of equal parts of the pool, sorted by the last slice.

        By the experts touched there, then by its pairs; where these are the same, by the slice before, and so on.
        They are spread as the pool is, so they need not be whole.
        """
        cuts = list(cuts)
        touched = np.diff(self.touched[cuts].astype(np.int64), axis=0)
        pairs = np.diff(self.pairs[cuts].astype(np.int64), axis=0)
        order = _order_by(touched[-1], pairs[-1], *touched[-2::-1])
        middles = order[((np.arange(num_draws) + 0.5) * len(order) / num_draws).astype(int)]
        uses = np.array([touched, pairs, self.tokens_of_pairs[pairs]])
        return _with_spread(uses[..., middles], uses.std(axis=-1, keepdims=True))


def _order_by(*counts: Counts) -> NDArray[np.intp]:
    """What sorts by the first counts, and where these are the same by the next: as one number, faster than lexsort."""
    one = np.zeros_like(counts[0])
    for each in counts:
        one = one * (each.max() + 1) + each
    return np.argsort(one, kind="stable")


@lru_cache(maxsize=64)
def _pool(popularity: bytes, top_k: int, tokens: int, num_draws: int) -> Pool:
    bank, random = _bank(popularity, top_k), np.random.default_rng(SEED)
    rounds = -(-num_draws * tokens // BANK_TOKENS)
    picked = np.concatenate([random.permutation(BANK_TOKENS) for _ in range(rounds)])[: num_draws * tokens]
    num_experts = len(popularity) // np.dtype(float).itemsize
    draw = np.repeat(np.arange(num_draws), tokens * top_k)
    places = bank[picked].ravel().astype(np.int64) * num_draws + draw
    pairs = np.bincount(places, minlength=num_experts * num_draws).reshape(num_experts, num_draws)
    return Pool(_before_each(pairs > 0), _before_each(pairs), _tokens_of_pairs(tokens, top_k))


@lru_cache(maxsize=256)
def _bank(popularity: bytes, top_k: int) -> NDArray[np.int16]:
    return ExpertChoice.of(np.frombuffer(popularity), top_k).draw(BANK_TOKENS, np.random.default_rng(SEED))


def _before_each(counts: NDArray[np.generic]) -> NDArray[np.int16]:
    """Sums over all ranks before each one, and over all."""
    sums = np.zeros((len(counts) + 1, counts.shape[1]), np.int16)
    np.cumsum(counts, axis=0, out=sums[1:], dtype=np.int16)
    return sums


def _tokens_of_pairs(tokens: int, top_k: int) -> Floats:
    total = tokens * top_k
    others = total - np.arange(total + 1)
    without = np.prod([np.maximum(others - at, 0) / (total - at) for at in range(top_k)], axis=0)
    found: Floats = tokens * (1.0 - without)
    return found
