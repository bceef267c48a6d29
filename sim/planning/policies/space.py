"""Policies as rows: what the search needs of them, whatever decides where a schedule has its experts."""

from typing import Protocol

from sim.cost import Setup
from sim.planning.policies.candidates import candidates_as_one
from sim.planning.policies.grid import Floats, Ints, PolicyGrid
from sim.planning.policies.split import split_candidates
from sim.problem import Policy, Problem
from sim.schedule import Schedule


class Space(Protocol):
    """All policies of a schedule that fit, one row each."""

    @property
    def problem(self) -> Problem: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def bytes(self) -> Ints: ...
    @property
    def considered(self) -> int: ...
    @property
    def nearest(self) -> Setup | None: ...
    @property
    def generated_tokens(self) -> Floats: ...
    def __len__(self) -> int: ...
    def policy(self, row: int) -> Policy: ...
    def setup(self, row: int) -> Setup: ...


def candidates_of(problem: Problem, schedule: Schedule, grid: PolicyGrid) -> Space:
    """Every policy on the grid that fits all memories. Empty, with the nearest lack, if none does."""
    if schedule.system.splits_experts:
        return split_candidates(problem, schedule, grid)
    return candidates_as_one(problem, schedule, grid)
