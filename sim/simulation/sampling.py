"""Which decode steps are simulated, and what is made of those between.

A generation has as many decode steps as tokens, and they differ only in the length of the KV cache. Every cost is the
larger of functions linear in that length, and a makespan is a maximum of sums of costs: convex in it. So a few steps
are simulated exactly, each behind the step before it, and those between are interpolated, with more steps simulated
where the curve bends until a midpoint is met within `TOLERANCE`. The last step, which fetches nothing for a next one,
and the one before it stand alone. `exact` simulates all of them and adds them up instead.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from sim.cost import Setup
from sim.schedule import Lane
from sim.simulation.simulator import StepUse
from traces.analysis import LaneUse

TOLERANCE = 1e-3
"""Relative gap between a simulated midpoint and the interpolation that is accepted."""

WARM_UP_LAYERS = 4
"""Layers at least that are simulated, as whole steps, before a step that others are interpolated from: two weight slots
and two staging buffers let lanes run ahead of each other by so much, and the step is to find them in their pace."""

END = 3
"""Steps kept up to the last: the last two, and the one that the interpolation ends with."""

AFTER = 1
"""Steps simulated behind a step that is kept: what they start early shares the pools with its last tasks."""


Simulate = Callable[[int, int], list[StepUse]]
"""One setup on one path, with SimPy or compiled: steps `first` to `stop` - 1, the generation beginning with `first`."""


@dataclass(slots=True)
class StepTotals:
    """Nanoseconds of a stretch of the run and what the lanes did in it; a linear space, so that steps interpolate."""

    span_ns: float = 0.0
    lanes: dict[Lane, LaneUse] = field(default_factory=dict)

    def add(self, other: "StepTotals", weight: float = 1.0) -> None:
        """Accumulate a weighted stretch."""
        self.span_ns += weight * other.span_ns
        for lane, use in other.lanes.items():
            if lane not in self.lanes:
                self.lanes[lane] = LaneUse(lane)
            self.lanes[lane].add(use, weight)


class StepShare(NamedTuple):
    """A simulated step, how long it took, and for how many steps it stands: 0 is prefill, which stands for itself."""

    step: int
    span_ns: float
    weight: float


@dataclass(frozen=True, slots=True)
class SampledGeneration:
    """Prefill and decode of one setup, and what was simulated to know them."""

    prefill: StepTotals
    decode: StepTotals
    simulated_tasks: int
    simulated_steps: list[int]
    spans_ns: Mapping[int, float]
    """Of these steps."""
    chords: Sequence[tuple[int, int]]
    """Steps of which those between, and the second itself, were interpolated."""
    weights: Mapping[int, float]
    """Of simulated steps, for how many steps each stands."""

    @property
    def shares(self) -> tuple[StepShare, ...]:
        """The steps that all others are made of."""
        return tuple(StepShare(step, self.spans_ns[step], weight) for step, weight in self.weights.items())

    def ends_ns(self) -> list[float]:
        """When each step ends, from the start of prefill, which is step 0."""
        spans = dict(self.spans_ns)
        for low, high in self.chords:
            first, slope = self.spans_ns[low], (self.spans_ns[high] - self.spans_ns[low]) / (high - low)
            spans.update((step, first + (step - low) * slope) for step in range(low + 1, high + 1))
        return list(accumulate(spans[step] for step in range(len(spans))))


class _Sampler:
    """Simulates the steps that are asked for."""

    def __init__(self, setup: Setup, simulate: Simulate) -> None:
        self._last_step = setup.last_step
        self._simulate = simulate
        self.warm_up = -(-WARM_UP_LAYERS // setup.shape.num_layers)
        self.start = 2 + self.warm_up
        """Steps kept from the beginning: prefill and decode steps until one is like those that follow."""
        self.simulated_tasks = 0
        self.steps: dict[int, StepTotals] = {}

    def simulate(self, first: int, stop: int) -> None:
        """Simulate steps `first` to `stop` - 1; keep those behind the warm-up that others, or nothing, come after."""
        uses = self._simulate(first, stop)
        if stop > self._last_step:  # the generation is over when its last copies are
            uses[-1].end_ns = max(use.drained_ns for use in uses)
        before = 0
        begin = 0 if first == 0 else first + self.warm_up
        end = stop if stop > self._last_step else stop - AFTER
        for step, use in zip(range(first, stop), uses, strict=True):
            self.simulated_tasks += use.num_tasks
            if begin <= step < end:
                self.steps[step] = StepTotals(use.end_ns - before, use.lanes)
            before = use.end_ns

    def at(self, step: int) -> StepTotals:
        """One decode step between the steps around it."""
        if step not in self.steps:
            self.simulate(max(0, step - self.warm_up), step + 1 + AFTER)
        return self.steps[step]


def sample(setup: Setup, simulate: Simulate, *, exact: bool = False, tolerance: float = TOLERANCE) -> SampledGeneration:
    """The whole generation of a setup from the steps that `simulate` is asked for, all of them if `exact`."""
    sampler, decode, last = _Sampler(setup, simulate), StepTotals(), setup.last_step
    chords: list[tuple[int, int]] = []
    if exact or last < 2 * (sampler.start + END):
        sampler.simulate(0, last + 1)
        alone: Iterable[int] = range(1, last + 1)
    else:
        sampler.simulate(0, sampler.start + AFTER)
        sampler.simulate(last + 1 - END - sampler.warm_up, last + 1)
        _interpolate(sampler.at, (sampler.start - 1, last + 1 - END), decode, chords, tolerance)
        alone = [*range(1, sampler.start), *range(last + 2 - END, last + 1)]
    weights = defaultdict[int, float](float, {0: 1.0})
    for low, high in chords:
        for end, weight in zip((low, high), chord_weights(high - low), strict=True):
            weights[end] += weight
    for step in alone:
        decode.add(sampler.at(step))
        weights[step] += 1.0
    spans = {step: one.span_ns for step, one in sorted(sampler.steps.items())}
    return SampledGeneration(sampler.steps[0], decode, sampler.simulated_tasks, list(spans), spans, chords, weights)


def _interpolate(
    at: Callable[[int], StepTotals],
    ends: tuple[int, int],
    total: StepTotals,
    chords: list[tuple[int, int]],
    tolerance: float,
) -> None:
    """Add the steps behind the first end to the total, by the chord if the midpoint lies on it, else by halves."""
    low, high = ends
    if low == high:
        return
    middle = (low + high) // 2
    if middle > low:
        share = (middle - low) / (high - low)
        chord = (1 - share) * at(low).span_ns + share * at(high).span_ns
        if abs(at(middle).span_ns - chord) > tolerance * chord:
            _interpolate(at, (low, middle), total, chords, tolerance)
            _interpolate(at, (middle, high), total, chords, tolerance)
            return
    steps = high - low
    chords.append(ends)
    for end, weight in zip(ends, chord_weights(steps), strict=True):
        total.add(at(end), weight)


def chord_weights(steps: int) -> tuple[float, float]:
    """For how many steps each end of a chord over so many stands, of those behind the first: its weights, summed."""
    return (steps - 1) / 2, (steps + 1) / 2
