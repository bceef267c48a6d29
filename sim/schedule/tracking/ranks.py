"""Any schedule over several devices of one host: heads and expert columns split, one set of lanes per rank.

Each task becomes one per rank. PostAttn splits where its results must be summed over ranks: after the output
projection and after the experts an all-reduce runs on `NET`, and the compute streams go on when it has ended. Where
experts are apart already, Route splits after the output projection, and the second sum follows DeviceExperts.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from sim.schedule.task import NET, Lane, LaneKind, Op, Task

OUT_PROJ_SUM, EXPERTS_SUM = 0, 1
"""Pages of the two all-reduces of one (layer, micro-batch): they tell their keys apart."""

BEHIND_SUM = {Op.POST_ATTN: Op.EXPERTS, Op.ROUTE: Op.ROUTE}
"""Ops that begin with an output projection, and what each rank does once that is summed."""

SUMMED = {Op.DEVICE_EXPERTS: EXPERTS_SUM}
"""Ops whose results are summed over ranks as they are."""

REACH = 4
"""Steps whose tasks are remembered; dependencies reach back two."""


def over_ranks(steps: Iterable[list[Task]], num_ranks: int) -> Iterator[list[Task]]:
    """The same steps on `num_ranks` devices; unchanged for one."""
    return iter(steps) if num_ranks == 1 else _Ranks(num_ranks).expand(steps)


def of_one_rank(steps: Iterable[list[Task]], rank: int, num_ranks: int) -> Iterator[list[Task]]:
    """Of the same steps what one rank does, the sums included; what waits for others waits in the sums."""
    known: deque[set[int]] = deque(maxlen=REACH)
    for step in over_ranks(steps, num_ranks):
        mine = [task for task in step if task.lane.rank == rank or task.lane == NET]
        known.append({task.id for task in mine})
        yield [task._replace(deps=tuple(dep for dep in task.deps if any(dep in ids for ids in known))) for task in mine]


class _Ranks:
    """Renames ids: task b becomes the ids from b · stride on, in order of issue."""

    def __init__(self, num_ranks: int) -> None:
        self._num = num_ranks
        self._stride = 2 * num_ranks + 2
        self._ops: deque[dict[int, Op]] = deque(maxlen=REACH)  # by step, of tasks that are not one a rank
        self._last_sum: list[int | None] = [None] * num_ranks

    def expand(self, steps: Iterable[list[Task]]) -> Iterator[list[Task]]:
        """Each step's tasks on all ranks."""
        for step in steps:
            self._ops.append({task.id: task.op for task in step if task.op in BEHIND_SUM or task.op in SUMMED})
            yield [ranked for task in step for ranked in self._on_all_ranks(task)]

    def _on_all_ranks(self, task: Task) -> Iterator[Task]:
        first = task.id * self._stride
        behind = BEHIND_SUM.get(task.op)
        for rank in range(self._num):
            yield self._copy(task, rank, task.op if behind is None else Op.OUT_PROJ, first + rank)
        if behind is not None:
            summed = first + self._num
            yield self._all_reduce(task, OUT_PROJ_SUM, summed, range(first, summed))
            first = summed + 1
            for rank in range(self._num):
                yield task._replace(id=first + rank, op=behind, lane=Lane(LaneKind.GPU, rank), deps=(summed,))
        if task.op is Op.POST_ATTN or task.op in SUMMED:
            last = (task.id + 1) * self._stride - 1
            yield self._all_reduce(task, EXPERTS_SUM, last, range(first, first + self._num))
            self._last_sum = [last] * self._num

    def _copy(self, task: Task, rank: int, op: Op, id_: int) -> Task:
        deps = {self._id_of(dep, rank) for dep in task.deps}
        summed = self._last_sum[rank]
        if task.lane.kind is LaneKind.GPU and summed is not None:
            deps.add(summed)
            self._last_sum[rank] = None
        return task._replace(id=id_, op=op, lane=Lane(task.lane.kind, rank), deps=tuple(sorted(deps)))

    def _id_of(self, dep: int, rank: int) -> int:
        """What a rank waits for: its own copy of the task, what it does behind a sum, or the last sum of all."""
        op = next((ops[dep] for ops in self._ops if dep in ops), None)
        if op is Op.ROUTE:
            return dep * self._stride + self._num + 1 + rank
        return dep * self._stride + (rank if op is None else self._stride - 1)

    def _all_reduce(self, task: Task, which: int, id_: int, deps: Iterable[int]) -> Task:
        return task._replace(id=id_, op=Op.ALL_REDUCE, lane=NET, page=which, deps=tuple(deps))
