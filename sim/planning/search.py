"""Best-first search: candidates simulated in the order of their bounds, until no bound beats the best."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from sim.cost import Setup
from sim.planning.bounds import least_seconds
from sim.planning.candidates import TIERS, Candidates, Floats
from sim.problem import Policy
from sim.schedule import Tier
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One simulated policy, and what it could reach at best."""

    prediction: Prediction
    bound_tokens_per_s: float

    @property
    def setup(self) -> Setup:
        return self.prediction.setup

    @property
    def schedule(self) -> str:
        return self.prediction.schedule

    @property
    def throughput_tokens_per_s(self) -> float:
        return self.prediction.throughput_tokens_per_s

    @property
    def token_s(self) -> float:
        return self.prediction.token_s

    @property
    def device_bytes(self) -> int:
        return self.prediction.memory_peak_bytes[Tier.DEVICE]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schedule": self.schedule,
            "policy": self.setup.policy.to_dict(),
            "num_requests": self.setup.batch.num_requests,
            "throughput_tokens_per_s": self.throughput_tokens_per_s,
            "bound_tokens_per_s": self.bound_tokens_per_s,
            "seconds_per_token": self.token_s,
            "prefill_s": self.prediction.prefill_s,
            "decode_s": self.prediction.decode_s,
            "bottleneck": self.prediction.bottleneck,
            "memory_peak_bytes": self.setup.memory.peak_bytes(),
        }


class Search:
    """Candidates simulated so far, and what of the spaces looked through is still open."""

    def __init__(self, objective: Objective, tolerance: float, most: int | None) -> None:
        self._objective, self._tolerance, self._most = objective, tolerance, most
        self._found: dict[Policy, Candidate] = {}
        self.considered = self.feasible = self.unsettled = 0

    @property
    def best(self) -> Candidate:
        return self.ranked[0]

    @property
    def ranked(self) -> list[Candidate]:
        """All simulated candidates, the best first."""
        return ranked(self._found.values(), self._objective)

    def look_through(self, found: Candidates, at_least: int) -> None:
        """Simulate what may be better than the best so far."""
        self.considered += found.considered
        self.feasible += len(found)
        if not len(found):
            return
        rows = _Rows(found)
        self._best_first(rows, rows.tokens_per_s, lambda one: one.throughput_tokens_per_s, at_least)
        if self._objective is Objective.LATENCY:
            self._best_first(rows, 1 / rows.token_s, lambda one: 1 / one.token_s, at_least)
            least = min(one.token_s for one in self._found.values()) * (1 + SAME_LATENCY)
            among = np.where(rows.token_s <= least, rows.tokens_per_s, -1.0)
            self._best_first(rows, among, lambda one: one.throughput_tokens_per_s if one.token_s <= least else 0.0, 1)
        if self._objective is Objective.MEMORY:
            floor = self._floor()
            among = np.where(rows.tokens_per_s >= floor, 1 / rows.device_bytes, -1.0)
            self._best_first(rows, among, lambda one: (one.throughput_tokens_per_s >= floor) / one.device_bytes, 1)

    def _floor(self) -> float:
        return ENOUGH_THROUGHPUT * max(one.throughput_tokens_per_s for one in self._found.values())

    def _best_first(self, rows: "_Rows", bounds: Floats, value: Callable[[Candidate], float], at_least: int) -> None:
        """Simulate rows in the order of their bounds until none beats the best value; bounds below 0 are out."""
        best = max(map(value, self._found.values()), default=0.0)
        order = np.argsort(-bounds, kind="stable")
        different: set[Policy] = set()
        for done, row in enumerate(order):
            if bounds[row] <= 0 or (bounds[row] <= best * (1 + self._tolerance) and len(different) >= at_least):
                break
            if self._most is not None and len(self._found) >= self._most:
                self.unsettled += int((bounds[order[done:]] > best * (1 + self._tolerance)).sum())
                break
            one = self._simulated(rows, int(row))
            different.add(in_essence(one.setup.policy))
            best = max(best, value(one))

    def _simulated(self, rows: "_Rows", row: int) -> Candidate:
        policy = rows.space.policy(row)
        known = self._found.get(policy)
        if known is None:
            prediction = predict(rows.space.setup(row), compiled=True)
            known = self._found[policy] = Candidate(prediction, float(rows.tokens_per_s[row]))
        return known


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


class _Rows:
    """The bounds of a space."""

    def __init__(self, found: Candidates) -> None:
        self.space = found
        total_s, decode_s = least_seconds(found)
        tokens = found.of_batches([setup.batch.generated_tokens for setup in found.batch_setups])
        steps = found.problem.workload.gen_len - 1
        self.tokens_per_s: Floats = tokens / total_s
        self.token_s: Floats = decode_s / steps if steps else total_s
        self.device_bytes: Floats = found.bytes[:, TIERS.index(Tier.DEVICE)].astype(float)


def in_essence(policy: Policy) -> Policy:
    """The policy without its pages and page-locked weights: equal for two that are about the same."""
    return replace(policy, pages=None, pin_weights=False)
