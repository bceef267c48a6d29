"""Spreads from evidence: those under which what was measured is likeliest.

Each number of a machine is off by a factor of its own, the same in all runs on that machine, and each run by one more
that the model has missed, of prefill and of decode; all their logarithms are normal with mean 0. Runs of a machine are
then normal together, with covariance J D Jᵀ + M: J [run, number] holds slopes, D the numbers' variances, M the model's.
A number that is known better is at least as near as one that is known worse: measured, fitted, datasheet, assumed.

Kin of machines are few, so how far numbers of the next one are off is less sure than these tell: spreads of numbers are
as much wider as Student's t, of one degree of freedom less than there are kin, is wider than the normal at LEVEL.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from sim.problem import Basis
from sim.simulation import LEVEL, Spreads
from validation.spreads.evidence import Evidence

Floats = np.ndarray[Any, np.dtype[np.float64]]

WITHIN = 0.01, 1.0
"""Between two measurements of one number, which differ by a hundredth, and knowing it to a factor of e."""
START = 0.1
JITTER = 1e-9
BASES = len(Basis)


def learnt_from(evidence: Sequence[Evidence]) -> Spreads:
    """The likeliest spreads."""
    from scipy.optimize import minimize

    by_machine: dict[tuple[str, bool], list[Evidence]] = defaultdict(list)
    for one in evidence:
        by_machine[one.run.machine, one.run.is_fitted].append(one)
    together = [_Together.of(runs) for runs in by_machine.values()]

    def unlikeliness(logs: Floats) -> float:
        spreads = _spreads(logs)
        return float(sum(one.unlikeliness(spreads) for one in together))

    few = _wider({one.run.kin for one in evidence})
    count = len(fields(Spreads))
    found = minimize(
        unlikeliness, np.full(count, np.log(START)), method="L-BFGS-B", bounds=[tuple(np.log(WITHIN))] * count
    )
    return Spreads(*(_spreads(found.x) * np.where(np.arange(count) < BASES, few, 1.0)).tolist())


def _wider(kin: Collection[str]) -> float:
    """How much wider spreads of numbers are for being learnt from so few kin of machines."""
    from scipy.stats import norm, t

    tail = (1 + LEVEL) / 2
    return float(t.ppf(tail, max(1, len(kin) - 1)) / norm.ppf(tail))


def _spreads(logs: Floats) -> Floats:
    """Of the bases each adds to the variance of the one that is known better; the model's stand alone."""
    parts = np.exp(logs)
    return np.concatenate([np.sqrt(np.cumsum(parts[:BASES] ** 2)), parts[BASES:]])


class _Together:
    """The runs of one machine."""

    def __init__(self, off: Floats, slopes: Floats, bases: list[int], in_prefill: Floats) -> None:
        self._off, self._slopes, self._bases = off, slopes, bases
        self._phases = np.stack([in_prefill, 1 - in_prefill], axis=1) ** 2

    @classmethod
    def of(cls, runs: Sequence[Evidence]) -> "_Together":
        numbers = sorted({number for one in runs for number in one.slopes})
        slopes = np.array([[one.slopes.get(number, 0.0) for number in numbers] for one in runs])
        bases = [list(Basis).index(basis) for _, basis in numbers]
        return cls(np.array([one.off for one in runs]), slopes, bases, np.array([one.in_prefill for one in runs]))

    def unlikeliness(self, spreads: Floats) -> float:
        """The negative logarithm of the likelihood, but for a constant."""
        scaled = self._slopes * spreads[self._bases]
        covariance = scaled @ scaled.T + np.diag(self._phases @ spreads[BASES:] ** 2 + JITTER)
        lower = np.linalg.cholesky(covariance)
        away = np.linalg.solve(lower, self._off)
        return float(away @ away / 2 + np.log(np.diag(lower)).sum())
