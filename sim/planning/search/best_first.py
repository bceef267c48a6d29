"""Best-first search: candidates simulated in the order of their bounds, until no bound beats the best."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sim.planning.bounds import lanes_tokens_per_s, least_joules_per_token, least_seconds
from sim.planning.policies import TIERS, Floats, Space, attending_beside
from sim.planning.search.candidate import Candidate, in_essence
from sim.planning.search.objectives import ENOUGH_THROUGHPUT, SAME_ENERGY, SAME_LATENCY, Objective, ranked
from sim.planning.search.open_rows import OpenRows
from sim.problem import Policy
from sim.schedule import CPU, Place, Tier

TOLERANCE = 1e-3
"""Relative gain below which a candidate is not simulated: the interpolation of decode steps is accepted up to it."""

FRONT_TOLERANCE = 0.01
"""The same along the front: what is left out is in no value so much better than a point of it that is as good in the
other."""

PARTS_OF_ATTENTION = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of the micro-batches that attend on the device beside others on the CPU, where the front is looked for."""


@dataclass(slots=True)
class Plan:
    """The best policy that one schedule has on the grid, and how thoroughly it was looked for."""

    objective: Objective
    tolerance: float = TOLERANCE
    most_simulations: int | None = None
    most_joules: float | None = None
    """Joules a token that the best may use at most."""
    along_front: bool = False
    """Whether to look for what is best in both, tokens a second and joules a token, too."""
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
        return ranked(self.found.values(), self.objective, self.most_joules)

    def fastest(self) -> Candidate:
        """Of all that were simulated."""
        return max(self.found.values(), key=lambda one: one.throughput_tokens_per_s)

    def thriftiest(self) -> Candidate:
        """That of the fewest joules a token."""
        return min(self.found.values(), key=lambda one: one.joules_per_token)

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
        joules = least_joules_per_token(space, rates) if self._asks_joules else rates
        if self.objective is Objective.ENERGY or self.most_joules is not None:
            self._look_at_joules(space, rates, joules, at_least)
        else:
            self._look_at_times(space, rates, token_s, at_least)
        if self.along_front:
            self._look_along_front(space, rates, joules)

    @property
    def _asks_joules(self) -> bool:
        return self.objective is Objective.ENERGY or self.most_joules is not None or self.along_front

    def _look_at_times(self, space: Space, rates: Floats, token_s: Floats, at_least: int) -> None:
        """What is fastest, has the shortest steps, or is fast enough with the fewest bytes."""
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

    def _look_at_joules(self, space: Space, rates: Floats, joules: Floats, at_least: int) -> None:
        """The fewest joules a token, and the fastest of those about as thrifty; or the fastest within a limit."""
        most = self.most_joules
        if most is not None:
            self._fastest_within(space, rates, joules, most, at_least)
        if most is None or all(one.joules_per_token > most for one in self.found.values()):
            self._best_first(space, rates, 1 / joules, lambda one: 1 / one.joules_per_token, at_least)
        if self.objective is Objective.ENERGY:
            self._fastest_within(space, rates, joules, self.thriftiest().joules_per_token * (1 + SAME_ENERGY), 1)

    def _fastest_within(self, space: Space, rates: Floats, joules: Floats, most: float, at_least: int) -> None:
        among = np.where(joules <= most, rates, -1.0)
        self._best_first(
            space, rates, among, lambda one: one.throughput_tokens_per_s * (one.joules_per_token <= most), at_least
        )

    def _look_along_front(self, space: Space, rates: Floats, joules: Floats) -> None:
        """Simulate what may be better in speed or joules than all that is found and as good in the other."""
        rest = OpenRows(rates, joules, FRONT_TOLERANCE)
        for one in self.found.values():
            rest.meet(one.throughput_tokens_per_s, one.joules_per_token)
        while len(rest):
            if self.most_simulations is not None and len(self.found) >= self.most_simulations:
                self.unsettled += len(rest)
                break
            one = self._simulated(space, rest.next(), rates)
            rest.meet(one.throughput_tokens_per_s, one.joules_per_token)

    def _simulated(self, space: Space, row: int, rates: Floats) -> Candidate:
        policy = space.policy(row)
        if policy not in self.found:
            self.found[policy] = Candidate.of(space.setup(row), float(rates[row]), with_joules=self._asks_joules)
        return self.found[policy]

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

    def look_from_cpu_to_device(self) -> None:
        """For the front: the fastest with attention on the CPU, with some parts of the micro-batches on the device."""
        on_cpu = [one for one in self.found.values() if one.policy.attention is Place.CPU]
        if on_cpu:
            start = max(on_cpu, key=lambda one: one.throughput_tokens_per_s)
            n = start.setup.shape.num_micro_batches
            for count in sorted({round(part * n) for part in PARTS_OF_ATTENTION} - {0}):
                self._better_with(start, count)

    def _better_with(self, start: Candidate, count: int) -> bool:
        setup = attending_beside(start.setup, count)
        if setup is None or setup.policy in self.found:
            return False
        self.considered += 1
        self.feasible += 1
        self.found[setup.policy] = Candidate.of(setup, lanes_tokens_per_s(setup), with_joules=self._asks_joules)
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
            one = self._simulated(space, row, rates)
            different.add(in_essence(one.policy))
            best = max(best, value(one))


def at_best(space: Space) -> tuple[Floats, Floats]:
    """What each policy of a space cannot beat: its tokens a second, and its seconds of a decode step. [row]."""
    total_s, decode_s = least_seconds(space)
    steps = space.problem.workload.gen_len - 1
    return space.generated_tokens / total_s, decode_s / steps if steps else total_s
