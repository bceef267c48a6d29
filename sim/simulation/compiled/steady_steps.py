"""Steady steps on the compiled path of which each costs something else: those of a stream, which carry what comes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sim.cost import Cost, CostModel
from sim.schedule import PipelineShape, Schedule
from sim.simulation.compiled.cost_table import task_kinds
from sim.simulation.compiled.dependencies import STEP, Array
from sim.simulation.compiled.event_loop import COST, Costs, run_events
from sim.simulation.compiled.path import step_uses
from sim.simulation.compiled.program import program_of
from sim.simulation.simulator import StepUse

FIRST = 1
"""A decode step from which on there are steady ones only."""


class CostVector(NamedTuple):
    """What the tasks of one step cost, by kind."""

    duration_ns: Array  # [kinds]
    amount: Array  # [kinds, pools]: per second at full speed


class SteadySteps:
    """Steps of one pipeline, one behind the other, none of which is its first or its last.

    Each micro-batch counts as a kind of its own, so that one program with one set of kinds serves whatever each step
    carries. `model` is that of any such step: they differ in what micro-batches cost, not in layers and pages.
    """

    def __init__(self, schedule: Schedule, shape: PipelineShape, model: CostModel) -> None:
        self._program = program_of(schedule, shape, 1, FIRST, FIRST)
        apart = (*range(shape.num_micro_batches), -1)
        kinds = task_kinds(self._program, model.layer_kinds, apart, model.page_kinds)
        self._tasks = kinds.tasks
        start = self._program.lane_start[self._program.steady]
        own = slice(start[0], start[-1])
        used, times = np.unique(kinds.tasks.tasks[own, COST], return_counts=True)
        self._used = used.tolist()
        self.tasks = [kinds.static[kind] for kind in self._used]
        """Those that each step issues, one of each kind."""
        self.times = times
        """How often it issues each."""
        self.times_ahead = np.bincount(kinds.tasks.tasks[own, COST], self._program.rows[own, STEP] > 0)[used]
        """Of these, how often for a step behind it."""
        self._num_kinds = len(kinds.static)
        self._capacity = np.array(model.capacities, np.int64)
        self._hand_over_ns = model.hand_over_ns

    def costs(self, costs: Sequence[Cost]) -> CostVector:
        """What a step costs whose `tasks` cost so much."""
        duration = np.zeros(self._num_kinds, np.int64)
        amount = np.zeros((self._num_kinds, len(self._capacity)), np.int64)
        for kind, found in zip(self._used, costs, strict=True):
            duration[kind] = found.duration_ns
            for pool, demand in found.demands:
                amount[kind, pool] = demand
        return CostVector(duration, amount)

    def __call__(self, steps: Sequence[CostVector]) -> list[StepUse]:
        """What `Simulation` reports of steps that cost so much, of which the first finds nothing under way."""
        kinds = [self._program.steady] * len(steps)
        durations, amounts = (np.stack(tables) for tables in zip(*steps, strict=True))
        costs = Costs(durations, amounts, self._capacity)
        uses, left = run_events(np.array(kinds), self._tasks, costs, self._hand_over_ns)
        assert not left, "steps of a program wait for nothing but each other"
        return step_uses(self._program, kinds, uses)
