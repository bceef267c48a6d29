"""Policies that may still be on the front of two values, of which one is to be large and the other small."""

import numpy as np

from sim.planning.policies import Floats, Ints


class OpenRows:
    """Rows of a space by what they can reach at best, as long as nothing that was met is as good in both.

    What is met closes the rows that are not more than `tolerance` better in either: what is left out of the front is
    as good as a point of it, to so much.
    """

    def __init__(self, rates: Floats, joules: Floats, tolerance: float) -> None:
        self._rates, self._joules, self._tolerance = rates, joules, tolerance
        self._rows: Ints = np.arange(len(rates))

    def __len__(self) -> int:
        return len(self._rows)

    def next(self) -> int:
        """The row that uses least for its rate, at best; it is open no more."""
        at = int(np.argmin(self._joules[self._rows] / self._rates[self._rows]))
        row = int(self._rows[at])
        self._rows = np.delete(self._rows, at)
        return row

    def meet(self, rate: float, joules: float) -> None:
        """Close all rows that cannot be better than this."""
        more = 1 + self._tolerance
        better = (self._rates[self._rows] > rate * more) | (self._joules[self._rows] * more < joules)
        self._rows = self._rows[better]
