"""Policies that leave whole layers to the host, for models of which the device holds too little otherwise."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from sim.cost import Setup
from sim.planning.policies.grid import Floats, Ints, PolicyGrid
from sim.planning.policies.locking import most_locked
from sim.problem import NoRoomError, Policy, Problem
from sim.schedule import ExpertPlace, Schedule, Tier

MOST_SIZES = 3
"""Sizes and numbers of micro-batches that are looked at."""


@dataclass(frozen=True, slots=True)
class HostLayerCandidates:
    """Those that fit, one row each."""

    problem: Problem
    schedule: Schedule
    setups: list[Setup]
    considered: int
    nearest: Setup | None = None

    def __len__(self) -> int:
        return len(self.setups)

    def policy(self, row: int) -> Policy:
        """The policy of one row."""
        return self.setups[row].policy

    def setup(self, row: int) -> Setup:
        """The setup of one row."""
        return self.setups[row]

    @property
    def bytes(self) -> Ints:
        """Bytes of each tier. [row, tier]."""
        return np.array([[one.memory.peak_bytes()[tier] for tier in Tier] for one in self.setups], dtype=np.int64)

    @property
    def generated_tokens(self) -> Floats:
        """Of all requests. [row]."""
        return np.array([one.batch.generated_tokens for one in self.setups], dtype=float)


def host_layer_candidates(problem: Problem, schedule: Schedule, grid: PolicyGrid) -> HostLayerCandidates:
    """Of each batch the fewest first layers on the host with which all else fits the device, more of them, and all."""
    found = dict[Policy, Setup]()
    considered = 0
    for policy in _batches(schedule, grid):
        considered += 1
        with suppress(NoRoomError):
            found.update((setup.policy, setup) for setup in _divisions(problem, schedule, policy))
    fitting = [one for one in found.values() if not one.shortages]
    nearest = None if fitting else min(found.values(), key=short_bytes, default=None)
    return HostLayerCandidates(problem, schedule, fitting, considered, nearest)


def short_bytes(setup: Setup) -> int:
    """What it lacks in all memories together."""
    return sum(one.short_bytes for one in setup.shortages)


def _batches(schedule: Schedule, grid: PolicyGrid) -> Iterator[Policy]:
    """Policies of the grid, with the experts of the other layers on the device, or computed on the host."""
    system = schedule.system
    all_on_host = 0.0 if system.others is ExpertPlace.HOST else 1.0
    for growing in grid.thinned(MOST_SIZES).policies(schedule) if system.runs_layers_on_host else ():
        for policy in growing:
            yield replace(policy, experts_on_device=1.0)
            for place in system.prefill_experts:
                yield replace(policy, experts_on_device=0.0, experts_on_host=all_on_host, prefill_experts=place)


def _divisions(problem: Problem, schedule: Schedule, policy: Policy) -> Iterator[Setup]:
    """With the fewest layers on the host that leave room on the device, with more of them, and with all."""
    layers = problem.model.num_layers

    def with_layers(stop: int) -> Setup:
        setup = Setup(problem, schedule, replace(policy, layers_on_host=(0, stop)))
        return most_locked(setup) if problem.hardware.link.locked_only else setup

    def device_is_short(stop: int) -> bool:
        return any(one.tier == Tier.DEVICE for one in with_layers(stop).shortages)

    low, high = 1, layers
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if device_is_short(middle) else (low, middle)
    yield from map(with_layers, sorted({low, (low + layers) // 2, layers}))
