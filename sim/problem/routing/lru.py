"""How many of the experts that tokens use a cache of the last used ones holds already."""

from functools import lru_cache

import numpy as np

from sim.problem.routing.choice import Floats

HALVINGS = 60


def lru_hit_rate(popularity: Floats, tokens: float, slots: int) -> float:
    """The share of the experts that `tokens` tokens of a step touch which a layer's cache holds when the step begins.

    The cache has `slots` slots for experts and drops those that were used longest ago. Che's approximation: the cache
    holds what the last T steps touched, and T is so long that they touch as many experts as there are slots. Where all
    experts are alike this is slots / E.
    """
    if slots <= 0 or tokens <= 0:
        return 0.0
    if slots >= len(popularity):
        return 1.0
    return _hit_rate(popularity.tobytes(), tokens, slots)


@lru_cache(maxsize=4096)
def _hit_rate(popularity: bytes, tokens: float, slots: int) -> float:
    untouched = (1.0 - np.frombuffer(popularity)) ** tokens
    shorter, longer = 0.0, 1.0
    while _held(untouched, longer).sum() < slots and longer < 1e12:
        longer *= 2
    for _ in range(HALVINGS):
        middle = (shorter + longer) / 2
        shorter, longer = (shorter, middle) if _held(untouched, middle).sum() >= slots else (middle, longer)
    touched = 1.0 - untouched
    return float(touched @ _held(untouched, longer) / touched.sum())


def _held(untouched: Floats, steps: float) -> Floats:
    """Per expert, the probability that the last steps touched it; of a part of a step, that part of what it touches."""
    whole = np.floor(steps)
    part = steps - whole
    held: Floats = 1.0 - untouched**whole * (1.0 - part * (1.0 - untouched))
    return held
