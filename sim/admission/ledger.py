"""Blocks of KV cache that are promised: how many at each step from now on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

FIRST_HORIZON = 256


@dataclass(slots=True)
class Promise:
    """Blocks set apart in each step from `since` on, for one request, or for several until the last of them leaves."""

    needs: Counts
    since: int
    """The step of the first chunk."""
    holders: int


class KvLedger:
    """Promises of blocks, step by step. A request's promise is what it holds in each step from its first one on."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._promised = np.zeros(FIRST_HORIZON, np.int64)
        self._now = 0

    @property
    def held(self) -> int:
        """Blocks of this step."""
        return int(self._promised[0])

    @property
    def is_exceeded(self) -> bool:
        """Whether this step needs more than there are."""
        return self.held > self._num_blocks

    def advance(self) -> None:
        """The next step begins."""
        self._promised[:-1] = self._promised[1:]
        self._promised[-1] = 0
        self._now += 1

    def fits(self, needs: Counts) -> bool:
        """Whether so many blocks are free in each step from this one on."""
        shared = self._promised[: len(needs)]
        return bool((needs[: len(shared)] + shared <= self._num_blocks).all() and (needs <= self._num_blocks).all())

    def promise(self, needs: Counts, holders: int = 1) -> Promise:
        """Set so many blocks apart in each step from this one on, until so many requests have left."""
        if len(needs) > len(self._promised):
            longer = np.zeros(2 * len(needs), np.int64)
            longer[: len(self._promised)] = self._promised
            self._promised = longer
        self._promised[: len(needs)] += needs
        return Promise(needs, self._now, holders)

    def leave(self, promise: Promise) -> None:
        """One of its requests leaves; with the last one, what is left of the promise is free."""
        promise.holders -= 1
        if not promise.holders:
            left = promise.needs[self._now - promise.since :]
            self._promised[: len(left)] -= left
