"""Best-first search: candidates simulated in the order of their bounds, until no bound beats the best."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np

from sim.cost import Setup
from sim.planning.bounds import lanes_tokens_per_s, least_seconds
from sim.planning.policies import TIERS, Floats, Space, attending_beside
from sim.problem import Policy
from sim.schedule import CPU, Place, Tier
from sim.simulation import Prediction, predict

TOLERANCE = 1e-3
"""Relative gain below which a candidate is not simulated: the interpolation of decode steps is accepted up to it."""

SAME_LATENCY = 0.01
"""Decode steps that are longer than the shortest by at most so much count as equally short."""

ENOUGH_THROUGHPUT = 0.95
"""Share of the best throughput that the policy of least device memory must reach."""


class Objective(StrEnum):
    """What the best policy is best at."""

    THROUGHPUT = "throughput"  # tokens per second of the whole generation
    LATENCY = "latency"  # seconds of a decode step, the time between two tokens of a request; then throughput
    MEMORY = "memory"  # bytes on the device, among policies that reach ENOUGH_THROUGHPUT of the best throughput


MEANING = {
    Objective.THROUGHPUT: "most generated tokens a second of all requests, over prefill and decode",
    Objective.LATENCY: f"the shortest decode step, to {SAME_LATENCY:.0%}; among those, the most tokens a second",
    Objective.MEMORY: f"the fewest bytes on the device that reach {ENOUGH_THROUGHPUT:.0%} of the best throughput",
}
"""What each objective asks for, in words."""


@dataclass(frozen=True, slots=True)
class Candidate(Prediction):
    """One simulated policy, and what it could reach at best."""

    bound_tokens_per_s: float

    @classmethod
    def of(cls, setup: Setup, bound: float) -> Self:
        """Simulate a setup. Raises InputError if it does not fit."""
        found = predict(setup, compiled=True)
        return cls(**{one.name: getattr(found, one.name) for one in fields(found)}, bound_tokens_per_s=bound)

    @property
    def device_bytes(self) -> int:
        return self.memory_peak_bytes[Tier.DEVICE]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schedule": self.schedule,
            "policy": self.policy.to_dict(),
            "num_requests": self.num_requests,
            "throughput_tokens_per_s": self.throughput_tokens_per_s,
            "bound_tokens_per_s": self.bound_tokens_per_s,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "time_to_first_token_s": self.time_to_first_token_s,
            "seconds_per_token": self.seconds_per_token,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "bottleneck": self.bottleneck,
            "memory_peak_bytes": self.memory_peak_bytes,
        }


@dataclass(slots=True)
class Plan:
    """The best policy that one schedule has on the grid, and how thoroughly it was looked for."""

    objective: Objective
    tolerance: float = TOLERANCE
    most_simulations: int | None = None
    found: dict[Policy, Candidate] = field(default_factory=dict)
    """All simulated candidates."""
    considered: int = 0
    """Points of the grid whose memory was looked at."""
    feasible: int = 0
    """Those that fit all memories; each has been bounded."""
    unsettled: int = 0
    """Candidates that a limit left out although their bound beats the best."""

    @property
    def best(self) -> Candidate:
        return self.ranked[0]

    @property
    def ranked(self) -> list[Candidate]:
        """All simulated candidates, the best first."""
        return ranked(self.found.values(), self.objective)

    @property
    def simulated(self) -> int:
        """Candidates that were simulated."""
        return len(self.found)

    def look_through(self, space: Space, at_least: int) -> None:
        """Simulate what may be better than the best so far."""
        self.considered += space.considered
        self.feasible += len(space)
        if not len(space):
            return
        rates, token_s = at_best(space)
        self._best_first(space, rates, rates, lambda one: one.throughput_tokens_per_s, at_least)
        if self.objective is Objective.LATENCY:
            self._best_first(space, rates, 1 / token_s, lambda one: 1 / one.token_s, at_least)
            least = min(one.token_s for one in self.found.values()) * (1 + SAME_LATENCY)
            among = np.where(token_s <= least, rates, -1.0)
            self._best_first(space, rates, among, lambda one: one.throughput_tokens_per_s * (one.token_s <= least), 1)
        if self.objective is Objective.MEMORY:
            floor = ENOUGH_THROUGHPUT * max(one.throughput_tokens_per_s for one in self.found.values())
            among = np.where(rates >= floor, 1 / space.bytes[:, TIERS.index(Tier.DEVICE)], -1.0)
            self._best_first(
                space, rates, among, lambda one: (one.throughput_tokens_per_s >= floor) / one.device_bytes, 1
            )

    def look_beside_the_cpu(self) -> None:
        """Simulate the best policy with attention of some micro-batches on the device, if the CPU is what it waits for.

        Their number goes up and down in steps that halve, as long as that gives a better policy.
        """
        start = self.best
        if start.decode.bottleneck != str(CPU) or start.policy.attention is not Place.CPU:
            return
        n = start.setup.shape.num_micro_batches
        step = -(-n // 4)
        while step:
            count = self.best.setup.shape.attending_on_device
            if not any(self._better_with(start, near) for near in (count + step, count - step) if 0 < near <= n):
                step //= 2

    def _better_with(self, start: Candidate, count: int) -> bool:
        setup = attending_beside(start.setup, count)
        if setup is None or setup.policy in self.found:
            return False
        self.considered += 1
        self.feasible += 1
        self.found[setup.policy] = Candidate.of(setup, lanes_tokens_per_s(setup))
        return self.best.policy == setup.policy

    def _best_first(
        self, space: Space, rates: Floats, bounds: Floats, value: Callable[[Candidate], float], at_least: int
    ) -> None:
        """Simulate rows in the order of their bounds until none beats the best value; bounds below 0 are out."""
        best = max(map(value, self.found.values()), default=0.0)
        order = np.argsort(-bounds, kind="stable")
        different: set[Policy] = set()
        for done, row in enumerate(order.tolist()):
            enough = best * (1 + self.tolerance)
            if bounds[row] <= 0 or (bounds[row] <= enough and len(different) >= at_least):
                break
            if self.most_simulations is not None and len(self.found) >= self.most_simulations:
                self.unsettled += int((bounds[order[done:]] > enough).sum())
                break
            policy = space.policy(row)
            if policy not in self.found:
                self.found[policy] = Candidate.of(space.setup(row), float(rates[row]))
            different.add(in_essence(policy))
            best = max(best, value(self.found[policy]))


def ranked(found: Iterable[Candidate], objective: Objective) -> list[Candidate]:
    """Candidates of one or several schedules, the best first."""
    by_throughput = sorted(found, key=lambda one: -one.throughput_tokens_per_s)
    if objective is Objective.LATENCY:
        least = min(one.token_s for one in by_throughput) * (1 + SAME_LATENCY)
        return sorted(by_throughput, key=lambda one: max(one.token_s, least))
    if objective is Objective.MEMORY:
        floor = ENOUGH_THROUGHPUT * by_throughput[0].throughput_tokens_per_s
        return sorted(by_throughput, key=lambda one: (one.throughput_tokens_per_s < floor, one.device_bytes))
    return by_throughput


def at_best(space: Space) -> tuple[Floats, Floats]:
    """What each policy of a space cannot beat: its tokens a second, and its seconds of a decode step. [row]."""
    total_s, decode_s = least_seconds(space)
    steps = space.problem.workload.gen_len - 1
    return space.generated_tokens / total_s, decode_s / steps if steps else total_s


def in_essence(policy: Policy) -> Policy:
    """The policy without its pages and page-locked weights: equal for two that are about the same."""
    return replace(policy, pages=None, pin_weights=0.0)
