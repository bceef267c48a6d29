"""The fast path: a whole generation of one setup in about a millisecond, for those who ask about many setups.

It simulates the steps that `sampling` asks for as the simulator does, contention and several devices included,
over arrays and in compiled code. Every step's end, busy and waiting times are the same to the nanosecond. (Without
contention that is so by whole numbers. With it, work left is summed up in fewer pieces than there, so that rounding
could move an end by one nanosecond where the exact end lies within about 1e-7 ns of a whole one; no test has seen it.)

What depends on the schedule and the shape of the pipeline alone is made once and kept (`program`): setups
of one shape are best asked about together. A task's cost is looked up once per kind of task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.cost import Setup
from sim.schedule import PipelineShape, Place
from sim.simulation.sampling import StepTotals, sample
from sim.simulation.simulator import DeadlockError, LaneUse, StepUse
from traces.trace import lane_order

if TYPE_CHECKING:
    from sim.simulation.compiled.cost_table import CostTable
    from sim.simulation.compiled.event_loop import Uses
    from sim.simulation.compiled.program import Program

NS = 1e-9


@dataclass(frozen=True, slots=True)
class FastResult:
    """What the fast path says of one setup: seconds, and seconds busy by lane."""

    prefill_s: float
    decode_s: float
    throughput_tokens_per_s: float
    prefill_busy_s: dict[str, float]
    decode_busy_s: dict[str, float]
    simulated_tasks: int
    simulated_steps: tuple[int, ...]

    @property
    def total_s(self) -> float:
        """Prefill and decode."""
        return self.prefill_s + self.decode_s

    @property
    def busy_s(self) -> dict[str, float]:
        """Seconds busy in prefill and decode together."""
        lanes = [*self.prefill_busy_s, *self.decode_busy_s]
        return {lane: self.prefill_busy_s.get(lane, 0.0) + self.decode_busy_s.get(lane, 0.0) for lane in lanes}

    @property
    def bottleneck(self) -> str:
        """The lane that works most."""
        busy = self.busy_s
        return max(busy, key=lambda lane: busy[lane])


def generation_s(setup: Setup, *, exact: bool = False) -> FastResult:
    """Seconds of a generation and what the lanes do in it, as `evaluate` says; `exact`: no interpolation.

    Whether the policy fits the memories is not looked at.
    """
    found = sample(setup, FastPath(setup), exact=exact)
    return FastResult(
        prefill_s=found.prefill.span_ns * NS,
        decode_s=found.decode.span_ns * NS,
        throughput_tokens_per_s=setup.batch.generated_tokens / ((found.prefill.span_ns + found.decode.span_ns) * NS),
        prefill_busy_s=_busy_s(found.prefill),
        decode_busy_s=_busy_s(found.decode),
        simulated_tasks=found.simulated_tasks,
        simulated_steps=tuple(found.simulated_steps),
    )


def _busy_s(period: StepTotals) -> dict[str, float]:
    lanes = sorted(period.busy_ns, key=lambda lane: lane_order((lane.kind.value, lane.rank)))
    return {str(lane): period.busy_ns[lane] * NS for lane in lanes}


class FastPath:
    """Simulates steps of one setup: `FastPath(setup)(first, stop)` is what `Simulation` reports of these steps.

    A lane's waiting times leave out those of no length.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._costs = setup.costs(only_contended=True)
        self._tables: dict[int, CostTable] = {}

    def __call__(self, first: int, stop: int) -> list[StepUse]:
        """Steps `first` to `stop` - 1, the generation beginning with `first`. Raises DeadlockError."""
        from sim.simulation.compiled.cost_table import CostTable
        from sim.simulation.compiled.event_loop import run_events
        from sim.simulation.compiled.program import program_of

        setup = self._setup
        program = program_of(setup.schedule, setup.shape, setup.num_ranks, first, setup.last_step)
        table = self._tables.get(id(program))
        if table is None:
            table = self._tables[id(program)] = CostTable(program, self._costs)
        kinds = program.kinds(first, stop, setup.last_step)
        costs = table.of_steps(range(first, stop))
        uses, left = run_events(np.array(kinds), table.tasks, costs, self._costs.hand_over_ns)
        if left:
            raise DeadlockError(f"{left} tasks never ended")
        return _step_uses(program, kinds, uses)


def _step_uses(program: "Program", kinds: Sequence[int], uses: "Uses") -> list[StepUse]:
    from sim.simulation.compiled.dependencies import OPS

    numbers = np.diff(program.lane_start, axis=1).tolist()
    found = [
        StepUse(
            end,
            sum(numbers[kind]),
            {program.lanes[lane]: LaneUse(busy[lane]) for lane in program.first_on[kind]},
        )
        for kind, end, busy in zip(kinds, uses.end_ns.tolist(), uses.busy_ns.tolist(), strict=True)
    ]
    waits = np.nonzero(uses.waited_ns)
    for step, lane, op, waited in zip(*(one.tolist() for one in waits), uses.waited_ns[waits].tolist(), strict=True):
        found[step].lanes[program.lanes[lane]].waited_ns[OPS[op]] = waited
    return found


def warm_up() -> None:
    """Compile, or load what was compiled before: seconds, or a moment, that the first question is spared."""
    from sim.schedule import CGOPipe
    from sim.simulation.compiled.event_loop import Costs, Tasks, run_events
    from sim.simulation.compiled.program import program_of

    program = program_of(CGOPipe(), PipelineShape(1, 1, 1, Place.CPU, (True,), offloads_hidden=False), 1, 0, 0)
    tasks = np.zeros((len(program.rows) + 1, 3), np.int64)
    costs = Costs(np.zeros((1, 1), np.int64), np.zeros((1, 1, 0), np.int64), np.zeros(0, np.int64))
    run_events(np.zeros(1, np.int64), Tasks(program.lane_start, tasks, program.deps), costs)
