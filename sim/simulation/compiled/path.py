"""The compiled path: a whole generation of one setup in about a millisecond, for those who ask about many setups.

It simulates steps as the simulator does, contention and several devices included, over arrays and in compiled code.
Every step's end, busy and waiting times are the same to the nanosecond. (Without contention that is so by whole
numbers. With it, work left is summed up in fewer pieces than there, so that rounding could move an end by one
nanosecond where the exact end lies within about 1e-7 ns of a whole one; no test has seen it.)

What depends on the schedule and the shape of the pipeline alone is made once and kept (`program`): setups
of one shape are best asked about together. A task's cost is looked up once per kind of task.
"""

from collections.abc import Sequence

import numpy as np

from sim.cost import Setup
from sim.schedule import CGOPipe, DeadlockError, PipelineShape, Place
from sim.simulation.compiled.cost_table import CostTable
from sim.simulation.compiled.dependencies import OPS
from sim.simulation.compiled.event_loop import Costs, Tasks, Uses, is_compiled, run_events
from sim.simulation.compiled.program import Program, program_of
from sim.simulation.simulator import StepUse
from traces.analysis import LaneUse


class CompiledPath:
    """Simulates steps of one setup: `CompiledPath(setup)(first, stop)` is what `Simulation` reports of these steps.

    A lane's waiting times leave out those of no length.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._costs = setup.costs(only_contended=True)
        self._tables: dict[Program, CostTable] = {}

    def __call__(self, first: int, stop: int) -> list[StepUse]:
        """Steps `first` to `stop` - 1, the generation beginning with `first`. Raises DeadlockError."""
        setup = self._setup
        program = program_of(setup.schedule, setup.shape, setup.num_ranks, first, setup.last_step)
        if program not in self._tables:
            self._tables[program] = CostTable(program, self._costs)
        table = self._tables[program]
        kinds = program.kinds(first, stop, setup.last_step)
        costs = table.of_steps(range(first, stop))
        uses, left = run_events(np.array(kinds), table.tasks, costs, self._costs.hand_over_ns)
        if left:
            raise DeadlockError(f"{left} tasks never ended")
        return step_uses(program, kinds, uses)


def step_uses(program: Program, kinds: Sequence[int], uses: Uses) -> list[StepUse]:
    """What the arrays say of each step, as `Simulation` reports it."""
    numbers = np.diff(program.lane_start, axis=1).tolist()
    found = [
        StepUse(
            end,
            drained,
            sum(numbers[kind]),
            {name: LaneUse(name, busy[lane]) for lane in program.first_on[kind] for name in [program.lanes[lane]]},
        )
        for kind, end, drained, busy in zip(
            kinds, *(one.tolist() for one in (uses.end_ns, uses.drained_ns, uses.busy_ns)), strict=True
        )
    ]
    behind = np.nonzero(uses.behind_ns)
    for step, lane, ns in zip(*(one.tolist() for one in behind), uses.behind_ns[behind].tolist(), strict=True):
        found[step].behind_ns[program.lanes[lane]] = ns
    waits = np.nonzero(uses.waited_ns)
    for step, lane, op, waited in zip(*(one.tolist() for one in waits), uses.waited_ns[waits].tolist(), strict=True):
        found[step].lanes[program.lanes[lane]].waited_ns[OPS[op]] = waited
    return found


def warm_up() -> None:
    """Compile, or load what was compiled before: seconds, or a moment, that the first question is spared."""
    program = program_of(CGOPipe(), PipelineShape(1, 1, 1, Place.CPU, (True,), offloads_hidden=False), 1, 0, 0)
    tasks = np.zeros((len(program.rows) + 1, 3), np.int64)
    costs = Costs(np.zeros((1, 1), np.int64), np.zeros((1, 1, 0), np.int64), np.zeros(0, np.int64))
    run_events(np.zeros(1, np.int64), Tasks(program.lane_start, tasks, program.deps), costs)


def compile_once() -> None:
    """Compile what predictions need before anything else, unless that was done before, and say so on a terminal."""
    from traces.cli import progress

    if not is_compiled():
        with progress("compiling (once)"):
            warm_up()
