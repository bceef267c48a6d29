"""How long the steps of a stream take: each simulated behind the step before it, and once for all that are alike."""

from collections.abc import Hashable

from sim.admission import Composition
from sim.cost import Cost, CostModel, Sizes
from sim.schedule import NONE, Op, Task
from sim.simulation.simulator import Simulation, StepUse
from sim.simulation.stream.setup import StreamSetup
from traces.analysis import LaneUse

NOTHING = Cost(0)
FIRST = 1
"""A stream has no step 0, which is prefill."""

OF_GROUPS = frozenset({Op.OFFLOAD_TOKENS, Op.FETCH_EXPERTS, Op.HOST_EXPERTS, Op.DEVICE_EXPERTS, Op.LOAD_OUTPUT})
"""Ops that work for a group of micro-batches."""

Work = tuple[Hashable, ...]


class StepTimes:
    """Spans of steps: from the last token of the step before to its own. What lanes did is added up in `lanes`."""

    def __init__(self, setup: StreamSetup) -> None:
        self._setup = setup
        self._costs: dict[Work, StepCosts] = {}
        self._known: dict[tuple[Work | None, Work], tuple[int, StepUse]] = {}
        self.lanes: dict[str, LaneUse] = {}

    @property
    def num_simulated(self) -> int:
        """Steps that were simulated; the others were like one of them."""
        return len(self._known)

    def span_ns(self, before: Composition | None, now: Composition) -> int:
        """How long a step takes behind the one before it, or as the first one."""
        work = self._work(now)
        earlier = None if before is None or before.is_empty else self._work(before)
        if (earlier, work) not in self._known:
            self._known[earlier, work] = self._simulated(*(one for one in (earlier, work) if one is not None))
        span, use = self._known[earlier, work]
        for lane, one in use.lanes.items():
            self.lanes.setdefault(str(lane), LaneUse(lane)).add(one)
        return span

    def _work(self, composition: Composition) -> Work:
        """All that a step's costs follow from, with the costs kept by it."""
        sizes = self._setup.sizes(composition)
        work = tuple(sizes.work)
        if work not in self._costs:
            self._costs[work] = StepCosts(sizes)
        return work

    def _simulated(self, *works: Work) -> tuple[int, StepUse]:
        """The last of some steps that follow each other."""
        costs, uses = [self._costs[work] for work in works], list[StepUse]()
        last = len(works) - 1

        def cost(task: Task) -> Cost:
            return costs[min(task.step - FIRST, last)](task)

        schedule, model = self._setup.schedule, costs[-1].model
        steps = schedule.steps(self._setup.shape, FIRST, FIRST + len(works), last=FIRST + len(works))
        Simulation(steps, cost, model.capacities, on_step=uses.append, hand_over_ns=model.hand_over_ns).run()
        return uses[-1].end_ns - (uses[-2].end_ns if last else 0), uses[-1]


class StepCosts:
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
