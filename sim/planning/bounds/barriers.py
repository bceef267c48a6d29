"""Schedules in which all lanes meet: the sum of the longest paths between the barriers, for all policies at once."""

from dataclasses import replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from sim.planning.bounds.durations import LEAST, MEAN, MOST, WEIGHT_OPS, Times
from sim.planning.policies import Floats
from sim.schedule import NONE, Barrier, DependencyTracker, Op, PipelineShape, Task, layout_of
from sim.simulation import in_turn

LIKE_ALL = 3
"""Micro-batches that are looked at: the first, one that stands for all in the middle, and the last."""

DECODE_STEPS = 3
"""The first, one like all others, and the last, behind which nothing is fetched."""


def sum_of_stretches(times: Times) -> tuple[Floats, Floats] | None:
    """Seconds of the generation and of its decode, at least; None without barriers. [row]."""
    space = times.space
    prefill, decode = np.zeros(len(space)), np.zeros(len(space))
    few = times.n if space.schedule.system.one_batch else np.minimum(times.n, LIKE_ALL)
    streams = times.streams()[:, :, 0] > 0
    flags = np.column_stack((times.on_cpu, times.streams_kv, times.offloads, space.locked == 1, streams, few))
    _, first, which = np.unique(flags, axis=0, return_index=True, return_inverse=True)
    for at, row in enumerate(first):
        rows = np.flatnonzero(which.ravel() == at)
        stretches = _Stretches(times, rows, _small(times, int(row), int(few[row])))
        if not stretches.has_barriers:
            return None
        prefill[rows] = stretches.seconds(0)[:, 0]
        decode[rows] = stretches.decode()
    return prefill + decode, decode


def _small(times: Times, row: int, num_micro_batches: int) -> PipelineShape:
    shape = times.space.batch_setups[int(times.space.batch[row])].shape
    streams = times.streams()[row, :, 0] > 0
    streamed = tuple(bool(streams[kind]) for kind in times.model.layer_kinds)
    small = replace(shape, num_micro_batches=num_micro_batches, num_pages=1, streamed=streamed)
    offloads = shape.offloads_hidden and num_micro_batches > 1
    return replace(small, weights_pinned=bool(times.space.locked[row] == 1), offloads_hidden=offloads)


class _Stretches:
    """Prefill and three decode steps of a small pipeline, cut at the barriers; durations of all rows at once."""

    def __init__(self, times: Times, rows: NDArray[np.intp], shape: PipelineShape) -> None:
        self._times, self._rows, self._shape = times, rows, shape
        self._one_batch = times.space.schedule.system.one_batch
        self._stretches = self._cut()
        self._known: dict[object, Floats] = {}
        self.has_barriers = len(self._stretches) > 2 * shape.num_layers

    def _cut(self) -> list[list[Task]]:
        schedule, shape = self._times.space.schedule, self._shape
        tracker = DependencyTracker(layout_of(schedule, shape))
        stretches: list[list[Task]] = [[]]
        last = DECODE_STEPS if self._times.segments else 0
        for step in range(last + 1):
            more = step < last
            for item in schedule.decode(shape, step, more) if step else schedule.prefill(shape, more):
                if isinstance(item, Barrier):
                    tracker.barrier()
                    stretches.append([])
                else:
                    stretches[-1].append(tracker.add(item))
        return [tasks for tasks in stretches if tasks]

    def decode(self) -> Floats:
        """All decode steps, the last one as it is. [row]."""
        if not self._times.segments:
            return np.zeros(len(self._rows))
        others = self._times.weights.copy()
        others[-1] -= 1
        last = self.seconds(DECODE_STEPS)[:, -1]
        return np.asarray((self.seconds(DECODE_STEPS - 1) * others).sum(axis=1) + last)

    def seconds(self, step: int) -> Floats:
        """The stretches of one step. [row, segment]."""
        total = np.zeros((len(self._rows), len(self._times.segments) if step else 1))
        for tasks in (tasks for tasks in self._stretches if _step_of(tasks) == step):
            many = self._stands_for_many(tasks)
            total = total + self._longest(tasks, step, many) * (self._middle if many else 1.0)
        return total

    @property
    def _middle(self) -> Floats:
        """How many micro-batches are neither first nor last. [row, 1]."""
        return np.asarray(np.maximum(self._times.n[self._rows] - 2, 1.0))[:, None]

    def _stands_for_many(self, tasks: list[Task]) -> bool:
        computed = {task.micro_batch for task in tasks if task.op in COMPUTES}
        return computed == {1} and self._shape.num_micro_batches == LIKE_ALL and not self._one_batch

    def _longest(self, tasks: list[Task], step: int, many: bool) -> Floats:
        """The longest path through a stretch; equal stretches of other layers are not looked at again."""
        kinds, base = [*self._times.model.layer_kinds, NONE], tasks[0].id
        inner = [tuple(dep - base for dep in task.deps if dep >= base) for task in tasks]
        key = (step, many, tuple((t.op, t.lane, t.step, kinds[t.layer], d) for t, d in zip(tasks, inner, strict=True)))
        if key not in self._known:
            start, latest = np.zeros((1, 1)), np.maximum
            turns = in_turn(tasks, lambda task, ready: ready + self._seconds(task, many), start, latest=latest)
            self._known[key] = reduce(latest, {one.task.lane: one.end for one in turns}.values())
        return self._known[key]

    def _seconds(self, task: Task, many: bool) -> Floats:
        """Of the first and the last micro-batch the least it may be; of those between what is left for their mean."""
        times = self._times
        if task.op in WEIGHT_OPS:
            return times.of_layer(times.whole_weights(task.op), task.layer)[self._rows]
        phase = "decode" if task.step else "prefill"
        mean, least, most = (
            times.of_layer(times.of(phase, task.op, which), max(task.layer, 0))[self._rows]
            for which in (MEAN, LEAST, MOST)
        )
        if self._one_batch:
            return mean
        if not many:
            return least
        return np.maximum(least, ((self._middle + 2) * mean - 2 * most) / self._middle)


COMPUTES = frozenset({Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN})


def _step_of(tasks: list[Task]) -> int:
    """The step that a stretch computes; one that only copies belongs to the latest."""
    computed = [task.step for task in tasks if task.op in COMPUTES]
    return computed[0] if computed else max(task.step for task in tasks)
