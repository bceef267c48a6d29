"""How far predictions are from measurements: errors, rankings, regret and spread. All are shares, not percent."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from traces.errors import InputError


def relative_error(predicted: float, measured: float) -> float:
    """(predicted - measured) / measured: above 0, the prediction is too high."""
    return bias([predicted], [measured])


def mape(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean absolute percentage error: each value counts alike, however small it is."""
    _check(predicted, measured)
    return statistics.fmean(abs(p - m) / m for p, m in zip(predicted, measured, strict=True))


def wape(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Weighted absolute percentage error, Σ|p - m| / Σm: each value counts by its size."""
    _check(predicted, measured)
    return sum(abs(p - m) for p, m in zip(predicted, measured, strict=True)) / sum(measured)


def bias(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """(Σp - Σm) / Σm: what is left when errors of both signs cancel; above 0, predictions are too high."""
    _check(predicted, measured)
    return (sum(predicted) - sum(measured)) / sum(measured)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Agreement of two orders: `tau` from -1 (reversed) to 1 (the same), None if no pair can be told apart.

    `pairs` were told apart, `within_noise` were not and do not count.
    """

    tau: float | None
    pairs: int
    within_noise: int


def kendall_tau(
    predicted: Sequence[float], measured: Sequence[float], spread: Sequence[float] | None = None
) -> Ranking:
    """Kendall's rank correlation over the pairs that the measurement tells apart.

    `spread` is the ± of each measured value: a pair whose intervals touch does not count. A pair that is predicted as
    equal counts as half right.
    """
    _check_lengths(predicted, measured)
    widths = [0.0] * len(measured) if spread is None else list(spread)
    _check_lengths(widths, measured)
    score = pairs = noise = 0
    for i, j in combinations(range(len(measured)), 2):
        gap = measured[i] - measured[j]
        if abs(gap) <= widths[i] + widths[j]:
            noise += 1
            continue
        pairs += 1
        if said := predicted[i] - predicted[j]:
            score += 1 if (said > 0) == (gap > 0) else -1
    return Ranking(score / pairs if pairs else None, pairs, noise)


def regret(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Share of the best measured throughput that is lost by taking what is predicted to be best.

    Of several that are predicted to be best, the first is taken.
    """
    _check(predicted, measured)
    chosen = max(range(len(predicted)), key=lambda i: predicted[i])
    return 1 - measured[chosen] / max(measured)


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeats of one measurement in one number, and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half the distance from the lowest to the highest."""
        return (self.high - self.low) / 2


def spread_of(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of repeats. Raises InputError if there are none."""
    if not values:
        raise InputError("spread: no values; a measurement has at least one")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def _check_lengths(predicted: Sequence[float], measured: Sequence[float]) -> None:
    if len(predicted) != len(measured):
        raise InputError(f"{len(predicted)} values for {len(measured)} measured ones: give one each")


def _check(predicted: Sequence[float], measured: Sequence[float]) -> None:
    _check_lengths(predicted, measured)
    if not measured:
        raise InputError("no measured values: an error needs at least one")
    for at, value in enumerate(measured):
        if not value > 0:
            raise InputError(f"measured[{at}] is {value!r}: a relative error needs measured values above 0")
