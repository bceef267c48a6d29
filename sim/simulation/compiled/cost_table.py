"""What the tasks of a program cost, as tables: the cost model is asked once for each kind of task."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sim.cost import GROWS_WITH_CONTEXT, OWN_PAGES, Cost, CostModel
from sim.schedule import Op, Task
from sim.simulation.compiled.dependencies import CODE_OF, LANE, LAYER, MICRO_BATCH, OP, OPS, PAGE, STEP, Array
from sim.simulation.compiled.event_loop import COST, DEPS, HEADS, Costs, Tasks
from sim.simulation.compiled.program import Program

GROWING = np.isin(np.arange(len(OPS)), [CODE_OF[op] for op in GROWS_WITH_CONTEXT])

PAGES_APART = np.isin(np.arange(len(OPS)), [CODE_OF[op] for op in OWN_PAGES])

KINDS_KEPT = 256

Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TaskKinds:
    """The tasks of a program with their kinds: those of one kind cost the same in each step."""

    tasks: Tasks
    examples: list[Task]
    """One task of each kind; its step is 0 in prefill, else how far ahead of the step that issues it."""
    static: list[Task]
    """The same, in steps that exist."""
    growing: list[int]
    """Kinds whose cost is another in each step."""

    def counts(self, issued: int) -> Array:
        """How many tasks of each kind a step of the program issues."""
        start = self.tasks.lane_start[issued]
        return np.bincount(self.tasks.tasks[start[0] : start[-1], COST], minlength=len(self.static))


class CostTable:
    """A program's tasks and what they cost in one setup, by kind of task."""

    def __init__(self, program: Program, costs: CostModel) -> None:
        self._costs = costs
        self._kinds = task_kinds(program, costs.layer_kinds, costs.batch_kinds, costs.page_kinds)
        self.tasks = self._kinds.tasks
        known = [costs(task) for task in self._kinds.static]
        pools = sorted({pool for cost in known for pool, _ in cost.demands})
        self._place = {pool: place for place, pool in enumerate(pools)}
        self._capacity = np.array([costs.capacities[pool] for pool in pools], np.int64)
        self._duration = np.array([cost.duration_ns for cost in known], np.int64)
        self._amount = np.zeros((len(known), len(pools)), np.int64)
        for kind, cost in enumerate(known):
            self._ask(self._amount[kind], cost)

    def _ask(self, amounts: Array, cost: Cost) -> None:
        for pool, amount in cost.demands:
            amounts[self._place[pool]] = amount

    def of_steps(self, steps: Sequence[int]) -> Costs:
        """The tables of these steps, one behind the other."""
        duration = np.repeat(self._duration[None], len(steps), axis=0)
        amount = np.repeat(self._amount[None], len(steps), axis=0)
        for at, step in enumerate(steps):
            for kind in self._kinds.growing:
                task = self._kinds.examples[kind]
                if step + task.step > 0:
                    cost = self._costs(task._replace(step=step + task.step))
                    duration[at, kind] = cost.duration_ns
                    amount[at, kind] = 0
                    self._ask(amount[at, kind], cost)
        return Costs(duration, amount, self._capacity)


@lru_cache(maxsize=KINDS_KEPT)
def task_kinds(
    program: Program, layer_kinds: Numbers, batch_kinds: Numbers, page_kinds: tuple[Numbers, ...]
) -> TaskKinds:
    """The tasks of a program in kinds: what the kinds of layers, micro-batches and pages tell apart, and no more."""
    rows = program.rows
    layer, pages = np.array(layer_kinds)[rows[:, LAYER]], np.array(page_kinds)
    decodes = program.step_of + rows[:, STEP] > 0
    ahead = np.where(GROWING[rows[:, OP]], rows[:, STEP], 0)
    pages_apart = PAGES_APART[rows[:, OP]]
    digits = (
        (rows[:, OP], len(OPS)),
        (rows[:, LANE], len(program.lanes)),
        (decodes, 2),
        (ahead, 1 + int(ahead.max())),
        (layer + 1, 1 + len(page_kinds)),
        (np.array(batch_kinds)[rows[:, MICRO_BATCH]] + 1, 2 + max(batch_kinds)),
        (np.where(pages_apart, rows[:, PAGE], pages[layer, rows[:, PAGE]]) + 1, 3 + int(pages.max())),
    )
    code, size = np.zeros(len(rows), np.int64), 1
    for digit, base in digits:
        code = code * base + digit
        size *= base
    example = np.full(size, -1)
    example[code] = np.arange(len(rows))
    used = np.flatnonzero(example >= 0)
    number = np.empty(size, np.int64)
    number[used] = np.arange(len(used))
    tasks = np.zeros((len(rows) + 1, 3), np.int64)
    tasks[:-1, COST], tasks[:-1, HEADS] = number[code], rows[:, OP] == CODE_OF[Op.HEAD]
    tasks[:, DEPS] = program.dep_start
    examples = [
        Task(0, OPS[op], program.lanes[lane], ahead, layer, j, page)
        for op, lane, ahead, layer, j, page, _ in rows[example[used]].tolist()
    ]
    steps = decodes[example[used]].astype(int).tolist()
    static = [task._replace(step=step) for task, step in zip(examples, steps, strict=True)]
    growing = [kind for kind, task in enumerate(static) if task.op in GROWS_WITH_CONTEXT and task.step > 0]
    return TaskKinds(Tasks(program.lane_start, tasks, program.deps), examples, static, growing)
