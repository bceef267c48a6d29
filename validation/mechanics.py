"""Layer 0: do the simulator's mechanics hold? Cases whose outcome is known beforehand, each to the nanosecond.

The law of the simulator: a lane works in order of issue, a task starts when its lane is free and its dependencies have
ended, and tasks that share a memory system progress max-min fairly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from sim.cost import Cost
from sim.problem import Policy
from sim.schedule import CPU, D2H, GPU, H2D, Lane, Op, Task, registered
from sim.simulation import Executed, Simulation, task_ends

SECOND_NS = 10**9
LAYERS, MICRO_BATCHES, STEPS = 4, 3, 5
SEED = 20241118


@dataclass(frozen=True, slots=True)
class Check:
    """One case: what must come out, and what did. Both are nanoseconds unless the name says otherwise."""

    name: str
    expected: int
    got: int

    @property
    def exact(self) -> bool:
        return self.expected == self.got


def mechanics() -> list[Check]:
    """All cases of layer 0; every one must be exact."""
    return [*_pipelines(), *_orders(), *_sharing(), *_conservation(), *_recurrences()]


def _pipelines() -> Iterator[Check]:
    """Two stages: n items take (n - 1) × the longer stage, and both stages once."""
    for name, copy, compute in (("the copies", 7, 3), ("compute", 3, 7), ("neither", 5, 5)):
        n = 20
        tasks = [one for i in range(n) for one in (_task(2 * i, H2D), _task(2 * i + 1, GPU, 2 * i))]
        ends = _ends(tasks, {one.id: Cost(copy if one.lane == H2D else compute) for one in tasks})
        expected = (n - 1) * max(copy, compute) + copy + compute
        yield Check(f"two-stage pipeline, bound by {name}", expected, max(ends.values()))


def _orders() -> Iterator[Check]:
    """The second task of the GPU waits for a copy; the third could start at once, but a lane keeps its order."""
    tasks = [_task(0, GPU), _task(1, H2D), _task(2, GPU, 1), _task(3, GPU)]
    ends = _ends(tasks, {0: Cost(5), 1: Cost(30), 2: Cost(4), 3: Cost(6)})
    yield Check("a lane works in order of issue", 30 + 4 + 6, ends[3])


def _sharing() -> Iterator[Check]:
    def ends(costs: Mapping[Lane, tuple[int, int]], capacity: int) -> list[int]:
        """Ends of one task a lane, each with (duration, demand on the one pool)."""
        tasks = [_task(i, lane) for i, lane in enumerate(costs)]
        given = {i: Cost(duration, ((0, demand),)) for i, (duration, demand) in enumerate(costs.values())}
        return list(_ends(tasks, given, (capacity,)).values())

    halves = ends({GPU: (10, 100), CPU: (30, 100)}, 100)
    yield Check("fair sharing: two halves of a pool until the shorter ends", 20, min(halves))
    yield Check("fair sharing: the longer speeds up again", 40, max(halves))
    three = ends({GPU: (10, 20), CPU: (60, 40), H2D: (160, 140)}, 100)
    yield Check("fair sharing of progress: 20 + 40 + 140 of 100 all run at 1/2", 20, three[0])
    yield Check("then 40 + 140 at 5/9", 20 + 50 * 9 // 5, three[1])
    yield Check("then 140 alone at 5/7", 110 + 100 * 7 // 5, three[2])
    stream = ends({H2D: (5 * SECOND_NS, 40), CPU: (20 * SECOND_NS, 200)}, 200)
    yield Check("weights of 5 s beside CPU attention that needs all of DRAM, as MoE-Lens saw", 6 * SECOND_NS, stream[0])
    late = [_task(0, H2D), _task(1, CPU), _task(2, GPU, 0)]
    whole = ((0, 100),)
    ended = _ends(late, {0: Cost(40), 1: Cost(70, whole), 2: Cost(60, whole)}, (100,))
    yield Check("who starts later slows the other from then on", 100, ended[1])
    yield Check("and has its own work done when it is alone again", 130, ended[2])


def _conservation() -> Iterator[Check]:
    """Four lanes that all need a whole pool: it never idles, so the last ends when all work has passed."""
    random = Random(SEED)
    lengths = [(lane, 12 * random.randrange(1, 50)) for lane in (GPU, CPU, H2D, D2H) for _ in range(10)]
    tasks = [_task(i, lane) for i, (lane, _) in enumerate(lengths)]
    costs = {i: Cost(length, ((0, 100),)) for i, (_, length) in enumerate(lengths)}
    last = max(_ends(tasks, costs, (100,)).values())
    yield Check("work conservation: a pool that all need never idles", sum(length for _, length in lengths), last)


def _recurrences() -> Iterator[Check]:
    """Without sharing, every task of every schedule ends when end = max(lane free, ends of deps) + duration says."""
    for name, schedule in registered().items():
        shape = Policy.usual(schedule, MICRO_BATCHES, 1).pipeline(schedule, (1,) * LAYERS)
        tasks = list(schedule.tasks(shape, STEPS))
        yield Check(f"{name}: tasks that end as the recurrence says", len(tasks), _agreeing(tasks))


def _agreeing(tasks: Sequence[Task]) -> int:
    random = Random(SEED)
    costs = {one.id: Cost(random.randrange(1000)) for one in tasks}
    expected = task_ends(tasks, lambda task: costs[task.id].duration_ns)
    return len(expected.items() & _ends(tasks, costs).items())


def _task(id_: int, lane: Lane, *deps: int) -> Task:
    return Task(id_, Op.ATTN, lane, 0, deps=deps)


def _ends(tasks: Sequence[Task], costs: Mapping[int, Cost], capacities: Sequence[int] = ()) -> dict[int, int]:
    """End of each task by id, as the simulator has it."""
    ran: list[Executed] = []
    Simulation([list(tasks)], lambda task: costs[task.id], capacities, on_task=ran.append).run()
    return {one.task.id: one.end_ns for one in sorted(ran, key=lambda one: one.task.id)}
