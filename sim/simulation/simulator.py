"""Runs a schedule in simulated time with SimPy: one process per lane, integer nanoseconds, shared pools.

A lane walks its own queue in order of issue, as a CUDA stream does. (A `simpy.Resource` would grant in order of
readiness, which reorders the very work that tells two schedules apart.) A task starts when the one before it on its
lane has ended, and each of its dependencies: those of other lanes a hand-over delay ago, if there is one. Tasks come
step by step and are forgotten when they have ended, so memory does not grow with the number of steps.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import simpy

from sim.cost import Cost, CostModel, Setup
from sim.schedule import DeadlockError, Lane, Op, Task, over_ranks
from sim.simulation.fair_sharing import fair_rates
from sim.simulation.recurrence import hand_over_delay_ns
from traces.analysis import LaneUse

RATES_KEPT = 2_000
"""Combinations of running tasks whose fair rates are remembered."""

WINDOW = 6
"""Steps issued from the oldest unfinished one on: more than buffers let a lane run ahead, so none waits for issue."""


class Executed(NamedTuple):
    """One task as it ran. `cause` is the id of the task whose end let it start (-1: it could start at once)."""

    task: Task
    cost: Cost
    start_ns: int
    end_ns: int
    waited_for: str
    cause: int


Observer = Callable[[Executed], None]


@dataclass(slots=True)
class StepUse:
    """One step as issued: when its last token was out and its last task had ended, and what tasks did to each lane."""

    end_ns: int = 0
    drained_ns: int = 0
    num_tasks: int = 0
    lanes: dict[Lane, LaneUse] = field(default_factory=dict)
    behind_ns: dict[Lane, int] = field(default_factory=dict)
    """Of the lanes' work, what came behind the last token."""
    lanes_left: int = 0


@dataclass(slots=True)
class Result:
    """Outcome of one simulated run."""

    makespan_ns: int = 0
    num_tasks: int = 0
    lanes: dict[Lane, LaneUse] = field(default_factory=dict)


IDLE = Cost(0)
"""What a lane runs between two tasks."""


@dataclass(slots=True, eq=False)
class _Run:
    """A lane's running task under contention."""

    process: simpy.Process | None = None
    cost: Cost = IDLE
    rate: float = 1.0
    remaining: float = 0.0  # of the solo time, kept only once the rate has changed
    since_ns: int = 0
    armed_ns: int = 0  # when its timeout ends, if it was set at another rate than the solo one
    changed: bool = False

    def left_ns(self, now: int) -> int:
        """Nanoseconds until the work ends at the present rate; advances the work to `now`."""
        if not self.changed:
            self.remaining, self.changed = float(self.cost.duration_ns), True
        self.remaining -= (now - self.since_ns) * self.rate
        self.since_ns = now
        return max(0, ceil(self.remaining / self.rate - 1e-6))

    def arm(self, now: int) -> int:
        """As `left_ns`, for a timeout that is set now."""
        left = self.left_ns(now)
        self.armed_ns = now + left
        return left


class _Pools:
    """Keeps the rates of all running tasks max-min fair; touches nothing while no pool is exceeded."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.runs: list[_Run] = []
        self._capacities = tuple(capacities)
        self._load = [0] * len(self._capacities)
        self._exceeded = 0  # pools whose load is above their capacity
        self._rates: dict[tuple[int, ...], tuple[list[float], list[Cost]]] = {}

    def start(self, run: _Run, cost: Cost, now: int) -> int:
        """Add a task; returns its delay at the rate it gets."""
        run.cost, run.since_ns = cost, now
        load, capacities = self._load, self._capacities
        for pool, amount in cost.demands:
            before = load[pool]
            load[pool] = total = before + amount
            if total > capacities[pool] >= before:
                self._exceeded += 1
        if not self._exceeded:
            return cost.duration_ns
        self._rebalance(now)
        return run.arm(now)

    def end(self, run: _Run, now: int) -> None:
        """Remove a task that has ended."""
        load, capacities, contended = self._load, self._capacities, self._exceeded
        for pool, amount in run.cost.demands:
            before = load[pool]
            load[pool] = total = before - amount
            if before > capacities[pool] >= total:
                self._exceeded -= 1
        run.cost = IDLE
        if run.changed:  # the lane's next task begins at full speed
            run.rate, run.armed_ns, run.changed = 1.0, 0, False
        if contended:
            self._rebalance(now)

    def _rebalance(self, now: int) -> None:
        for run, rate in zip(self.runs, self._fair_rates(), strict=True):
            if run.rate != rate:
                run.left_ns(now)
                run.rate = rate
                if now + run.left_ns(now) < run.armed_ns and run.process is not None:
                    run.process.interrupt()

    def _fair_rates(self) -> list[float]:
        """Rates of what runs now. Known ones are found by the identity of the costs, which the entry keeps alive."""
        costs = [run.cost for run in self.runs]
        key = tuple(map(id, costs))
        known = self._rates.get(key)
        if known is None:
            if len(self._rates) >= RATES_KEPT:
                self._rates.clear()
            known = self._rates[key] = (fair_rates([cost.demands for cost in costs], self._capacities), costs)
        return known[0]


def simulate_steps(
    setup: Setup,
    first: int,
    stop: int,
    *,
    costs: CostModel | None = None,
    on_task: Observer | None = None,
    on_step: Callable[[StepUse], None] | None = None,
) -> Result:
    """Steps `first` to `stop` - 1 of one setup on all its devices, the generation beginning with `first`.

    `costs` are the setup's own, for who asks more than once.
    """
    costs = costs or setup.costs(only_contended=True)
    steps = over_ranks(setup.schedule.steps(setup.shape, first, stop, last=setup.last_step), setup.num_ranks)
    simulation = Simulation(
        steps, costs, costs.capacities, on_task=on_task, on_step=on_step, hand_over_ns=costs.hand_over_ns
    )
    return simulation.run()


class Simulation:
    """One run of a stream of steps under a cost function.

    `on_task` sees every task as it ends, `on_step` every step once all lanes have left it behind. `hand_over_ns` is how
    long after a task's end the other lanes notice it.
    """

    def __init__(
        self,
        steps: Iterable[list[Task]],
        cost: Callable[[Task], Cost],
        capacities: Sequence[int] = (),
        *,
        on_task: Observer | None = None,
        on_step: Callable[[StepUse], None] | None = None,
        hand_over_ns: int = 0,
    ) -> None:
        self._env = simpy.Environment()
        self._steps: Iterator[list[Task]] = iter(steps)
        self._cost = cost
        self._on_task = on_task
        self._on_step = on_step
        self._hand_over_ns = hand_over_ns
        self._pools = _Pools(capacities)
        self._queues: dict[Lane, deque[tuple[StepUse, list[Task]]]] = {}
        self._starving: dict[Lane, simpy.Event] = {}
        self._unfinished: dict[int, simpy.Event | None] = {}  # an event once somebody waits for the task
        self._news: dict[int, tuple[int, Task]] = {}  # when tasks ended that some lane may not have noticed yet
        self.result = Result()

    def run(self) -> Result:
        """Simulate to the end; DeadlockError counts the tasks that could not start."""
        for _ in range(WINDOW):
            self._feed()
        self._env.run()
        if self._unfinished:
            first = min(self._unfinished)
            raise DeadlockError(f"{len(self._unfinished)} tasks never ended, the first of them is number {first}")
        return self.result

    def _feed(self) -> None:
        """Issue the next step: to each lane its tasks."""
        tasks = next(filter(None, self._steps), None)
        if tasks is None:
            return
        of_lane = defaultdict[Lane, list[Task]](list, {lane: [] for lane in self._queues})
        for task in tasks:
            of_lane[task.lane].append(task)
        self._unfinished.update(dict.fromkeys([task.id for task in tasks]))
        self.result.num_tasks += len(tasks)
        step = StepUse(num_tasks=len(tasks), lanes_left=len(of_lane))
        for lane, own in of_lane.items():
            if lane not in self._queues:
                self._queues[lane], run = deque(), _Run()
                self._pools.runs.append(run)
                self.result.lanes[lane] = LaneUse(lane)
                run.process = self._env.process(self._walk(lane, run))
            self._queues[lane].append((step, own))
        for event in self._starving.values():
            event.succeed()
        self._starving.clear()

    def _leave(self, step: StepUse, lane: Lane, use: LaneUse) -> None:
        """A lane has ended its tasks of a step; when all have, the step is reported and another is issued."""
        step.lanes[lane] = use
        self.result.lanes[lane].add(use)
        step.lanes_left -= 1
        if step.lanes_left == 0:
            if self._on_step is not None:
                self._on_step(step)
            for id_, (end_ns, _) in list(self._news.items()):
                if end_ns + self._hand_over_ns <= self._env.now:  # all lanes have noticed it
                    del self._news[id_]
            self._feed()

    def _delay_ns(self, dep: int, lane: Lane) -> int:
        """How much longer it takes until a task that has ended counts as ended for a lane, as the law has it."""
        end_ns, before = self._news[dep]
        counts_ns = end_ns + hand_over_delay_ns(before.lane, lane, self._hand_over_ns)
        return int(max(0, counts_ns - self._env.now))

    def _walk(  # noqa: PLR0912, PLR0915 -- the inner loop: each generator within it would cost a tenth of the speed
        self, lane: Lane, run: _Run
    ) -> Generator[simpy.Event, str, None]:
        """The process of one lane: step after step as issued, each task when what it needs is done."""
        env: Any = self._env  # its clock counts whole nanoseconds, which simpy's types cannot know
        cost_of, on_task, unfinished, news = self._cost, self._on_task, self._unfinished, self._news
        start_in_pools, end_in_pools, timeout = self._pools.start, self._pools.end, self._env.timeout
        queue, head, now, previous = self._queues[lane], Op.HEAD, env.now, -1
        while True:
            while not queue:
                self._starving[lane] = event = env.event()
                yield event
                now = env.now
            step, tasks = queue.popleft()
            use, busy = LaneUse(lane), 0
            for task in tasks:
                waited_for, cause = "", previous
                for dep in task.deps:
                    awaited_op = ""
                    if dep in unfinished:
                        awaited = unfinished[dep] = unfinished[dep] or env.event()
                        awaited_op = yield awaited
                    if dep in news and (delay_ns := self._delay_ns(dep, lane)):
                        awaited_op = news[dep][1].op
                        yield timeout(delay_ns)
                    if awaited_op:
                        idle_since, now = now, env.now
                        waited_for, cause = awaited_op, dep
                        use.waited_ns[waited_for] = use.waited_ns.get(waited_for, 0) + now - idle_since
                cost = cost_of(task)
                start = now
                delay = start_in_pools(run, cost, now)
                while delay:
                    try:
                        yield timeout(delay)
                    except simpy.Interrupt:  # its rate rose, so it ends earlier
                        now = env.now
                    delay = run.arm(env.now) if run.changed else 0
                now = env.now
                end_in_pools(run, now)
                busy += now - start
                if task.op is head:
                    step.end_ns = now
                    step.behind_ns.clear()
                elif step.end_ns and now > step.end_ns:
                    step.behind_ns[lane] = step.behind_ns.get(lane, 0) + now - max(start, step.end_ns)
                if self._hand_over_ns:
                    news[task.id] = now, task
                if (awaited := unfinished.pop(task.id)) is not None:
                    awaited.succeed(task.op)
                previous = task.id
                if on_task is not None:
                    on_task(Executed(task, cost, start, now, waited_for, cause))
            use.busy_ns = busy
            if tasks:
                step.drained_ns = max(step.drained_ns, now)
            self.result.makespan_ns = max(self.result.makespan_ns, now)
            self._leave(step, lane, use)
