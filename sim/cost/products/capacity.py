"""Experts in shapes that are fixed when a program is compiled: each computes its capacity, whatever tokens ask of it.

A capacity is so many times the even share of tokens, and never more than all of them: an expert that has room for all
drops none. What comes beyond it is dropped: the token goes on without that expert, which changes the model's outputs.
"""

import math

import numpy as np
from numpy.typing import NDArray


def expert_capacity(tokens: float, top_k: int, num_experts: int, ratio: float) -> int:
    """Rows that each of a layer's experts computes, where so many tokens choose `top_k` of them each."""
    return math.ceil(min(tokens, ratio * tokens * top_k / num_experts))


def dropped_share(popularity: NDArray[np.float64], tokens: int, capacity: int) -> float:
    """Of all pairs of a token and an expert, what is expected beyond the experts' capacity.

    `popularity` says how likely each expert is among a token's; tokens choose independently of each other.
    """
    if not 0 < capacity < tokens:
        return 0.0
    above = np.arange(capacity + 1, tokens + 1, dtype=float)
    log_factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, tokens + 1)))))
    ways = log_factorials[tokens] - log_factorials[capacity + 1 :] - log_factorials[tokens - capacity - 1 :: -1]
    likely = np.clip(popularity, 1e-12, 1 - 1e-12)[:, None]
    chances = np.exp(ways + above * np.log(likely) + (tokens - above) * np.log1p(-likely))
    return float((chances * (above - capacity)).sum() / (tokens * popularity.sum()))
