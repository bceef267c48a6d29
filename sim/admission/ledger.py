"""Blocks of KV cache that are promised: how many at each step from now on."""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

FIRST_HORIZON = 256


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

    def promise(self, needs: Counts) -> None:
        """Set so many blocks apart in each step from this one on."""
        if len(needs) > len(self._promised):
            longer = np.zeros(2 * len(needs), np.int64)
            longer[: len(self._promised)] = self._promised
            self._promised = longer
        self._promised[: len(needs)] += needs

    def release(self, needs: Counts, since: int) -> None:
        """Take back what is left of a promise that was made in step `since`."""
        left = needs[self._now - since :]
        self._promised[: len(left)] -= left
