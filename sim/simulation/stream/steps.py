"""How long the steps of a stream take: each simulated behind the step before it, and once for all that are alike."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from sim.admission import Composition
from sim.cost import Cost, CostModel, Sizes
from sim.problem import Hardware
from sim.schedule import NONE, Lane, Op, PipelineShape, Schedule, Task
from sim.simulation.compiled import CostVector, SteadySteps
from sim.simulation.energy import Joules, StepDraws, StepJoules, added
from sim.simulation.simulator import Simulation, StepUse
from sim.simulation.stream.setup import StreamSetup
from traces.analysis import LaneUse

NOTHING = Cost(0)
FIRST = 1
"""A stream has no step 0, which is prefill."""

MOST_KEPT = 2_000
"""Steps of which it is remembered what they cost and took before the memory of them starts anew."""

OF_GROUPS = frozenset({Op.OFFLOAD_TOKENS, Op.FETCH_EXPERTS, Op.HOST_EXPERTS, Op.DEVICE_EXPERTS, Op.LOAD_OUTPUT})
"""Ops that work for a group of micro-batches."""


class Behind(NamedTuple):
    """A step behind another: from the last token of that one to its own, and what the lanes did for it."""

    span_ns: int
    use: StepUse


class _Known(NamedTuple):
    """Steps that carry work of one kind: a number of their own, what they cost, and what they draw."""

    number: int
    costs: Any
    joules: StepJoules


class StepTimes:
    """Spans of steps: from the last token of the step before to its own. What lanes did is added up in `lanes`.

    Unless `compiled`, steps are simulated with SimPy, which takes some fifteen times as long and says the same.
    """

    def __init__(self, setup: StreamSetup, *, compiled: bool = True) -> None:
        self._setup = setup
        self._compiled = compiled
        self._path: _Path | None = None
        self._tasks: list[Task] = []
        self._steps: dict[tuple[Hashable, ...], _Known] = {}
        self._behind: dict[tuple[int, int], Behind] = {}
        self._newest: tuple[Composition, _Known] | None = None
        self._count = 0
        self.num_simulated = 0
        """Steps that were simulated; the others were like one of them."""
        self.lanes: dict[str, LaneUse] = {}
        self.active_j: Joules = {}
        """What all steps drew above idle."""
        self._last_behind_ns: dict[Lane, int] = {}
        self._last_ahead_j: Joules = {}

    @property
    def hardware(self) -> Hardware:
        """The machine whose steps these are."""
        return self._setup.problem.hardware

    def span_ns(self, before: Composition | None, now: Composition) -> int:
        """How long a step takes behind the one before it, or as the first one."""
        earlier, known = None if before is None or before.is_empty else self._of(before), self._of(now)
        span, use = self._simulated(earlier, known)
        for lane, one in use.lanes.items():
            self.lanes.setdefault(str(lane), LaneUse(lane)).add(one)
        added(self.active_j, known.joules.all)
        self._last_behind_ns, self._last_ahead_j = use.behind_ns, known.joules.ahead
        return span

    def none_follows(self) -> None:
        """Take back what the last step has fetched for one behind it, which there is not."""
        for lane, ns in self._last_behind_ns.items():
            self.lanes[str(lane)].busy_ns -= ns
        added(self.active_j, self._last_ahead_j, -1.0)
        self._last_behind_ns, self._last_ahead_j = {}, {}

    def behind(self, before: Sizes | None, now: Sizes) -> Behind:
        """The same of steps of these sizes, which are added to nothing."""
        return self._simulated(None if before is None else self._known(before), self._known(now))

    def _of(self, composition: Composition) -> _Known:
        """A composition is asked for twice: as a step, and as the one before the next."""
        if self._newest is None or self._newest[0] is not composition:
            self._newest = composition, self._known(self._setup.sizes(composition))
        return self._newest[1]

    def _known(self, sizes: Sizes) -> _Known:
        """By all that costs follow from."""
        work = tuple(sizes.work)
        if work not in self._steps:
            if len(self._steps) >= MOST_KEPT:
                self._steps.clear()
                self._behind.clear()
            self._count += 1
            self._steps[work] = self._asked(WorkCosts(sizes))
        return self._steps[work]

    def _asked(self, costs: "WorkCosts") -> _Known:
        if self._path is None:
            schedule, shape = self._setup.schedule, self._setup.shape
            steady = SteadySteps(schedule, shape, costs.model)
            self._path = _CompiledPath(steady) if self._compiled else _SimpyPath(schedule, shape)
            self._tasks = steady.tasks
            self._draws = StepDraws(self.hardware, steady.tasks, steady.times, steady.times_ahead)
        known = [costs(task) for task in self._tasks]
        return _Known(self._count, self._path.costs(costs, known), self._draws(known))

    def _simulated(self, before: _Known | None, now: _Known) -> Behind:
        assert self._path is not None, "costs come first"
        key = (before.number if before else 0, now.number)
        if key not in self._behind:
            uses = self._path.simulate([one.costs for one in (before, now) if one is not None])
            self._behind[key] = Behind(uses[-1].end_ns - (uses[-2].end_ns if before else 0), uses[-1])
            self.num_simulated += 1
        return self._behind[key]


class WorkCosts:
    """Costs of the tasks of one composition. Those of micro-batches that carry nothing take no time."""

    def __init__(self, sizes: Sizes) -> None:
        self.model, self._sizes = CostModel(sizes, only_contended=True), sizes
        self._idle: dict[tuple[bool, int], bool] = {}

    def __call__(self, task: Task) -> Cost:
        task = task._replace(step=FIRST)
        if task.micro_batch != NONE and self._is_idle(task):
            return NOTHING
        return self.model(task)

    def _is_idle(self, task: Task) -> bool:
        key = (task.op in OF_GROUPS, task.micro_batch)
        if key not in self._idle:
            self._idle[key] = not (self._sizes.group_tokens if key[0] else self._sizes.tokens)(task)
        return self._idle[key]


class _Path(Protocol):
    """A way to simulate steps that follow each other, of which each costs what it does."""

    def costs(self, costs: WorkCosts, known: Sequence[Cost]) -> Any: ...
    def simulate(self, steps: Sequence[Any]) -> list[StepUse]: ...


class _SimpyPath:
    def __init__(self, schedule: Schedule, shape: PipelineShape) -> None:
        self._schedule, self._shape = schedule, shape

    def costs(self, costs: WorkCosts, _: Sequence[Cost]) -> WorkCosts:
        return costs

    def simulate(self, steps: Sequence[WorkCosts]) -> list[StepUse]:
        uses, last, stop = list[StepUse](), len(steps) - 1, FIRST + len(steps)

        def cost(task: Task) -> Cost:
            return steps[min(task.step - FIRST, last)](task)

        model, tasks = steps[-1].model, self._schedule.steps(self._shape, FIRST, stop, last=stop)
        Simulation(tasks, cost, model.capacities, on_step=uses.append, hand_over_ns=model.hand_over_ns).run()
        return uses


class _CompiledPath:
    def __init__(self, steady: SteadySteps) -> None:
        self._steady = steady

    def costs(self, _: WorkCosts, known: Sequence[Cost]) -> CostVector:
        return self._steady.costs(known)

    def simulate(self, steps: Sequence[CostVector]) -> list[StepUse]:
        return self._steady(steps)
