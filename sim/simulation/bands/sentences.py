"""What is told of bands: how sure the speed is, what to measure first, and whether the order of schedules is sure."""

from collections.abc import Iterator, Mapping

from sim.simulation.bands.band import Band, Share
from sim.simulation.bands.spreads import LEVEL

WITHIN = f"{LEVEL:.0%} within"
"""The heading above bands."""

TOLD = 3
"""Shares that a sentence names."""


def in_sentences(bands: Mapping[str, Band]) -> Iterator[str]:
    """Of the bands of schedules, the best first: why the first is so wide, and whether the others may be faster."""
    name, band = next(iter(bands.items()))
    shares = ", ".join(_share(one) for one in band.shares[:TOLD])
    within = band.throughput_tokens_per_s
    yield f"Of runs that are predicted so {LEVEL:.0%} lie within {within} tokens/s; the width is due to {shares}."
    if (first := band.first_to_measure) is not None:
        yield f"Measure {first.name} first: {first.measure_with}"
    else:
        yield "No number of the machine is worth measuring for it: what is left is the model's own error."
    if len(bands) > 1:
        yield f"{name} is the fastest of these schedules on {stays_best(bands):.0%} of the machines that were drawn."


def stays_best(bands: Mapping[str, Band]) -> float:
    """On what share of the machines that were drawn the first of these is at least as fast as all others."""
    drawn = zip(*(one.drawn_tokens_per_s for one in bands.values()), strict=True)
    wins = [speeds[0] >= max(speeds) for speeds in drawn]
    return wins.count(True) / len(wins)


def _share(one: Share) -> str:
    known = f" ({one.basis})" if one.basis else ""
    return f"{one.name}{known} {one.share:.0%}"
