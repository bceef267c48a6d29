"""Draws of independent normal numbers that are the same on every machine and in every version: nothing is random."""

from collections.abc import Sequence
from hashlib import sha256
from statistics import NormalDist
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


def stratified(names: Sequence[str], count: int) -> Floats:
    """Standard normal numbers [draw, name]: of each name one from each of `count` equally likely strata.

    A few dozen are then as even as hundreds that are drawn at random. The order depends on the name alone, so
    that two machines or schedules which share an unknown share its draws.
    """
    middle_of = [NormalDist().inv_cdf((at + 0.5) / count) for at in range(count)]
    columns = [[middle_of[at] for at in _order(name, count)] for name in names]
    return np.array(columns).reshape(len(names), count).T


def _order(name: str, count: int) -> list[int]:
    return sorted(range(count), key=lambda at: sha256(f"{name} {at}".encode()).digest())
