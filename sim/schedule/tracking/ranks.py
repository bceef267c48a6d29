"""Any schedule over several devices of one host: heads and expert columns split, one set of lanes per rank.

Each task becomes one per rank. PostAttn splits where its results must be summed over ranks: after the output
projection and after the experts an all-reduce runs on `NET`, and the compute streams go on when it has ended. Where
experts are apart already, the sums follow Route and DeviceExperts.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from sim.schedule.task import NET, Lane, LaneKind, Op, Task

OUT_PROJ_SUM, EXPERTS_SUM = 0, 1
"""Pages of the two all-reduces of one (layer, micro-batch): they tell their keys apart."""

SUMMED = {Op.ROUTE: OUT_PROJ_SUM, Op.DEVICE_EXPERTS: EXPERTS_SUM}
"""Ops whose results are summed over ranks as they are."""

REACH = 4
"""Steps whose PostAttn tasks are remembered; dependencies reach back two."""


def over_ranks(steps: Iterable[list[Task]], num_ranks: int) -> Iterator[list[Task]]:
    """The same steps on `num_ranks` devices; unchanged for one."""
    return iter(steps) if num_ranks == 1 else _Ranks(num_ranks).expand(steps)


class _Ranks:
    """Renames ids: task b becomes the ids from b · stride on, in order of issue."""

    def __init__(self, num_ranks: int) -> None:
        self._num = num_ranks
        self._stride = 2 * num_ranks + 2
        self._summed: deque[set[int]] = deque(maxlen=REACH)
        self._last_sum: list[int | None] = [None] * num_ranks

    def expand(self, steps: Iterable[list[Task]]) -> Iterator[list[Task]]:
        """Each step's tasks on all ranks."""
        for step in steps:
            self._summed.append({task.id for task in step if task.op is Op.POST_ATTN or task.op in SUMMED})
            yield [ranked for task in step for ranked in self._on_all_ranks(task)]

    def _on_all_ranks(self, task: Task) -> Iterator[Task]:
        if task.op is not Op.POST_ATTN:
            first = task.id * self._stride
            for rank in range(self._num):
                yield self._copy(task, rank, task.op, first + rank)
            if task.op in SUMMED:
                last = first + self._stride - 1
                yield self._all_reduce(task, SUMMED[task.op], last, range(first, first + self._num))
                self._last_sum = [last] * self._num
            return
        first = task.id * self._stride
        for rank in range(self._num):
            yield self._copy(task, rank, Op.OUT_PROJ, first + rank)
        summed = first + self._num
        yield self._all_reduce(task, OUT_PROJ_SUM, summed, range(first, summed))
        experts = range(summed + 1, summed + 1 + self._num)
        for rank, id_ in enumerate(experts):
            yield task._replace(id=id_, op=Op.EXPERTS, lane=Lane(LaneKind.GPU, rank), deps=(summed,))
        yield self._all_reduce(task, EXPERTS_SUM, experts.stop, experts)
        self._last_sum = [experts.stop] * self._num

    def _copy(self, task: Task, rank: int, op: Op, id_: int) -> Task:
        deps = {self._id_of(dep, rank) for dep in task.deps}
        summed = self._last_sum[rank]
        if task.lane.kind is LaneKind.GPU and summed is not None:
            deps.add(summed)
            self._last_sum[rank] = None
        return task._replace(id=id_, op=op, lane=Lane(task.lane.kind, rank), deps=tuple(sorted(deps)))

    def _id_of(self, dep: int, rank: int) -> int:
        """What a rank waits for: its own copy of the task, or the last sum of what is summed."""
        last = any(dep in step for step in self._summed)
        return dep * self._stride + (self._stride - 1 if last else rank)

    def _all_reduce(self, task: Task, which: int, id_: int, deps: Iterable[int]) -> Task:
        return task._replace(id=id_, op=Op.ALL_REDUCE, lane=NET, page=which, deps=tuple(deps))
