"""The best policy of one schedule for a stream: one number after the other is changed as long as that helps."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from sim.admission import BLOCK_TOKENS, MEASURED_BLOCK_TOKENS
from sim.planning.streams.estimate import StreamEstimate, estimated
from sim.planning.streams.flow import Flow
from sim.planning.streams.points import StreamPoint, StreamSetups
from sim.planning.streams.steady import Pace, most_tokens_per_s
from sim.problem import Problem, WeightBits
from sim.schedule import CPU, GPU, ExpertPlace, Lane, Place, Schedule
from sim.simulation import StreamSetup

AXES: dict[str, tuple[float, ...]] = {
    "num_micro_batches": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    "room": (1.0, 0.95, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.1),
    "num_prompts": (1, 2, 3, 4, 6, 8),
    "over_link": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
    "block_tokens": tuple(map(float, MEASURED_BLOCK_TOKENS)),
    "on_host": (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
    "groups": (0, 1, 2, 3, 4, 6, 8, 10, 12),
    "pace": (1.0, 0.9, 1.1, 1.5, 2.0, 4.0, 8.0),
    "resident": (1.0, 0.75, 0.5, 0.0),
}
"""What each number of a point may be. Several neighbours of a value are looked at, and the ends of its axis."""

OF_STEADY_STEPS = frozenset(
    {"num_micro_batches", "num_prompts", "over_link", "block_tokens", "on_host", "groups", "resident"}
)
"""What is better only if steps in the stream's pace are; of the others the ramps have a say."""

ABOUT = 0.995
"""Share of the best steady rate that a point's lanes must allow: layers that are alike count as one of them there."""

FIRST_MICRO_BATCHES = 4
BESIDE_OTHERS: dict[str, Any] = {"num_micro_batches": 16, "over_link": 3 / 16}
"""Where the search begins once more: with micro-batches small enough that a few of them may attend elsewhere."""
GAIN = 1e-3
"""Relative gain below which another point counts as no better."""
MOST_ROUNDS = 4
REACH = {"on_host": 4, "over_link": 9}
USUAL_REACH = 2
"""Values to each side that are looked at beside the ends of an axis."""


@dataclass(slots=True)
class StreamPlan:
    """The best policy that one schedule has for a stream, of those that were looked at."""

    schedule: str
    found: dict[StreamPoint, StreamEstimate] = field(default_factory=dict)
    """All that fit."""
    considered: int = 0
    reason: str = ""
    """Why nothing fits, if nothing does."""

    @property
    def ranked(self) -> list[StreamEstimate]:
        """The best first."""
        return sorted(self.found.values(), key=lambda one: -one.throughput_tokens_per_s)


def best_stream_policy(
    problem: Problem,
    schedule: Schedule,
    flow: Flow,
    *,
    num_prompts: int | None = None,
    prefill_chunk: int | None = None,
    block_tokens: int | None = None,
    weight_bits: WeightBits | None = None,
    kv_bits: float | None = None,
) -> StreamPlan:
    """The best policy of a schedule that mixes; what is given is kept. Nothing is found where not one request fits."""
    given: dict[str, Any] = {"prefill_chunk": prefill_chunk, "weight_bits": weight_bits, "kv_bits": kv_bits}
    search = _Search(problem, schedule, flow, StreamSetups(problem, schedule, flow, **given))
    asked = {"num_prompts": num_prompts, "pace": prefill_chunk, "block_tokens": block_tokens}
    fixed = {name for name, value in asked.items() if value is not None}
    for place in schedule.system.attention:
        start = StreamPoint(FIRST_MICRO_BATCHES, place, num_prompts or 1, block_tokens=block_tokens or BLOCK_TOKENS)
        best = search.climb(start, fixed)
        if best.over_link or search.is_busiest(CPU, best):
            search.climb(replace(start, **BESIDE_OTHERS), fixed)
    return search.plan


class _Search:
    def __init__(self, problem: Problem, schedule: Schedule, flow: Flow, setups: StreamSetups) -> None:
        self.plan = StreamPlan(schedule.name)
        self._schedule, self._flow, self._setups = schedule, flow, setups
        self._num_experts = problem.model.num_experts
        self._rates: dict[StreamPoint, float] = {}

    def climb(self, start: StreamPoint, fixed: set[str]) -> StreamPoint:
        """From a point uphill, an axis at a time, until no neighbour is better: the last one."""
        best = start
        self._rate(start, 0.0)
        for _ in range(MOST_ROUNDS):
            before = best
            for name in self._axes(fixed):
                for near in self._near(best, name) if self._says_something(best, name) else ():
                    if self._rate(near, self._least(best, name)) > self._rates[best] * (1 + GAIN):
                        best = near
            if best == before:
                break
        return best

    def _least(self, best: StreamPoint, name: str) -> float:
        """What a point must be able to give in its pace to be looked at, if it differs from the best in this."""
        known = self.plan.found.get(best)
        return ABOUT * known.steady_tokens_per_s if known is not None and name in OF_STEADY_STEPS else 0.0

    def _may_give(self, setup: StreamSetup, least: float) -> bool:
        """Whether a setup's lanes allow so much in its pace, or it has none: all are in before the first one ends."""
        if Pace.of(setup, self._flow).coming < self._flow.decode_steps:
            return True
        return most_tokens_per_s(setup, self._flow) >= least

    def _rate(self, point: StreamPoint, least: float) -> float:
        """Tokens a second; 0 where the point does not fit, or cannot give so much in its pace."""
        if point not in self._rates:
            self.plan.considered += 1
            setup = self._setups.at(point)
            self._rates[point] = 0.0
            if setup is None:
                self.plan.reason = self.plan.reason or self._setups.reason
            elif not least or self._may_give(setup, least):
                found = self.plan.found[point] = estimated(point, setup, self._flow)
                self._rates[point] = found.throughput_tokens_per_s
        return self._rates[point]

    def _says_something(self, point: StreamPoint, name: str) -> bool:
        """Attention of some moves to the device if the CPU is the busiest, and blocks are small if the GPU is not."""
        if name == "over_link":
            can = point.attention is Place.CPU and self._schedule.system.mixes_attention
            return can and (point.over_link > 0 or self.is_busiest(CPU, point))
        return name != "block_tokens" or point.block_tokens != BLOCK_TOKENS or not self.is_busiest(GPU, point)

    def is_busiest(self, lane: Lane, point: StreamPoint) -> bool:
        """Whether a lane works most under a point that fits."""
        return point in self.plan.found and self.plan.found[point].bottleneck == str(lane)

    def _axes(self, fixed: set[str]) -> Iterator[str]:
        system = self._schedule.system
        unused = set(fixed)
        if not system.experts & ExpertPlace.HOST:
            unused.add("on_host")
        if not system.splits_experts:
            unused.add("groups")
        return (name for name in AXES if name not in unused)

    def _near(self, point: StreamPoint, name: str) -> Iterator[StreamPoint]:
        """Points that differ in one number: some to each side, and both ends."""
        mine = getattr(point, name)
        values = sorted({mine, *(one for one in AXES[name] if one <= self._most(point, name))})
        kind, at = type(mine), values.index(mine)
        reach = REACH.get(name, USUAL_REACH)
        near = values[max(0, at - reach) : at + reach + 1]
        if name == "over_link":
            near = [round(one * point.num_micro_batches) / point.num_micro_batches for one in near]
        for value in dict.fromkeys((*near, values[0], values[-1])):
            if value != mine:
                yield replace(point, **{name: kind(value)})

    def _most(self, point: StreamPoint, name: str) -> float:
        """The largest value of an axis that says something."""
        if name == "groups":
            return point.num_micro_batches + point.num_prompts - 1
        return self._num_experts if name == "on_host" else max(AXES[name])
