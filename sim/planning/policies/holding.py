"""Setups of the policies whose micro-batches hold a request: those that hold none are no policies for a workload."""

from collections.abc import Iterable, Iterator

from sim.cost import Setup
from sim.problem import NoRoomError, Policy, Problem
from sim.schedule import Schedule


def setups_that_hold_a_request(problem: Problem, schedule: Schedule, policies: Iterable[Policy]) -> Iterator[Setup]:
    """Those of a list, in its order. Room is for prompts of average length, so that a long one may need a larger μ."""
    for policy in policies:
        try:
            yield Setup(problem, schedule, policy)
        except NoRoomError:
            continue
