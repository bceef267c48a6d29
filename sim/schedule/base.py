"""What every schedule shares: the interface, the usual issues, prefill, and steps without end.

A schedule is an order of issue for one decode step (and for prefill, where it differs from the usual one). To add one,
write a subclass in a file of its own and register it in `sim.schedule.registry` or under the entry-point group
`cgopipe.schedules`; the simulator and the engine both run it as it is.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import ClassVar

from sim.schedule.prompts import let_prompts_in
from sim.schedule.shape import PipelineShape, System
from sim.schedule.slots import SlotLayout
from sim.schedule.task import CPU, D2H, GPU, H2D, PIN, WHOLE, Lane, Op, Task
from sim.schedule.tracking import BARRIER, Barrier, DependencyTracker, Issue

Issues = Iterator[Issue | Barrier]

LANE_OF: dict[Op, Lane] = {
    Op.PRE_ATTN: GPU,
    Op.ATTN: GPU,
    Op.POST_ATTN: GPU,
    Op.HEAD: GPU,
    Op.OFFLOAD_QKV: D2H,
    Op.STORE_KV: D2H,
    Op.STORE_HIDDEN: D2H,
    Op.LOAD_HIDDEN: H2D,
    Op.LOAD_KV: H2D,
    Op.LOAD_WEIGHTS: H2D,
    Op.LOAD_WEIGHTS_PAGEABLE: H2D,
    Op.PIN_WEIGHTS: PIN,
    Op.ROUTE: GPU,
    Op.OFFLOAD_TOKENS: D2H,
    Op.HOST_EXPERTS: CPU,
    Op.LOAD_OUTPUT: H2D,
    Op.FETCH_EXPERTS: H2D,
    Op.DEVICE_EXPERTS: GPU,
    Op.ENTER_HOST: GPU,
    Op.HOST_LAYER: CPU,
}


class Schedule(ABC):
    """An order of work. Stateless: the same shape always gives the same tasks, and instances of a class are equal."""

    name: ClassVar[str]
    summary: ClassVar[str]
    system: ClassVar[System]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    @abstractmethod
    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        """One decode step in order of issue; `more`: another step follows, so its first weights may be fetched."""

    def prefill(self, shape: PipelineShape, more: bool) -> Issues:
        """All on the GPU, layer by layer, each layer's weights as one piece while the layer before computes.

        Hidden states and new KV entries leave while the next micro-batch computes (paper section 4.2 and artifact).
        """
        yield from self.load_layer(shape, 0, shape.first_on_device)
        turns = [(layer, j) for layer in shape.layers_on_device for j in range(shape.num_micro_batches)]
        for (layer, j), before, after in zip(turns, [None, *turns], [*turns[1:], None], strict=False):
            if before is not None:
                yield from self._store_prefilled(shape, *before)
            if after is not None and after[0] > 0 and shape.offloads_hidden:
                yield issue(Op.LOAD_HIDDEN, 0, *after)
            if j == 0:
                yield from self.load_layer(shape, *next_layer(shape, 0, layer, more))
            yield from self.host_layers(shape, 0, layer, (j,))
            yield issue(Op.PRE_ATTN, 0, layer, j)
            yield issue(Op.ATTN, 0, layer, j)
            yield issue(Op.POST_ATTN, 0, layer, j)
            if layer == shape.num_layers - 1:
                yield issue(Op.HEAD, 0, micro_batch=j)
            if self.system.prefill_barrier:
                yield BARRIER
        if turns:
            yield from self._store_prefilled(shape, *turns[-1])
        yield from self.last_host_layers(shape, 0)

    def steps(self, shape: PipelineShape, first: int, stop: int, *, last: int | None = None) -> Iterator[list[Task]]:
        """Tasks of steps `first` to `stop` - 1, one list a step, lazily. Step 0 is prefill.

        `last` is the generation's last step (default `stop` - 1): nothing is fetched beyond it. A run that starts
        at a decode step finds what earlier steps would have left: dependencies on those are unknown ids below 0.
        """
        final = stop - 1 if last is None else last
        start = _start(self, shape, min(final, steady_step(self, shape))) if first == 0 else ()
        base = 0
        for step in range(first, stop):
            template = start[step] if step < len(start) else _steady(self, shape, final=step == final)
            yield _relocate(template, base, step)
            base += len(template)

    def tasks(self, shape: PipelineShape, num_steps: int) -> Iterator[Task]:
        """All tasks of a generation of `num_steps` tokens per request, in order of issue, lazily."""
        return itertools.chain.from_iterable(self.steps(shape, 0, num_steps))

    def layout(self, shape: PipelineShape) -> SlotLayout:
        """Where things are; a schedule with other buffers returns its own layout."""
        return SlotLayout(shape, self.system)

    def load_layer(self, shape: PipelineShape, step: int, layer: int) -> Issues:
        """All streamed weights of a layer as one piece from where they live (nothing beyond the last step)."""
        if step >= 0 and shape.streams(step, layer):
            op = Op.LOAD_WEIGHTS if shape.weights_pinned else Op.LOAD_WEIGHTS_PAGEABLE
            yield issue(op, step, layer, page=WHOLE)

    def attend_on_cpu(self, step: int, layer: int, j: int) -> Issues:
        """PreAttn, its result to the host, attention there."""
        yield issue(Op.PRE_ATTN, step, layer, j)
        yield issue(Op.OFFLOAD_QKV, step, layer, j)
        yield issue(Op.ATTN, step, layer, j, lane=CPU)

    def attend_on_gpu(self, step: int, layer: int, j: int) -> Issues:
        """PreAttn and attention on the device; the KV cache is there already."""
        yield issue(Op.PRE_ATTN, step, layer, j)
        yield issue(Op.ATTN, step, layer, j)

    def attend_beside_others(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        """On the device while others attend on the host: beside the KV cache, or to one that comes over the link.

        While it attends the next one's cache comes; the step's first is asked for by `begin_over_link`.
        """
        yield from self.attend_on_gpu(step, layer, j)
        if not shape.kv_on_host(j):
            return
        yield issue(Op.STORE_KV, step, layer, j)
        over_link = shape.over_link
        after = layer * len(over_link) + over_link.index(j) + 1
        if after < shape.num_layers * len(over_link):
            layer, place = divmod(after, len(over_link))
            yield issue(Op.LOAD_KV, step, layer, over_link[place])

    def begin_over_link(self, shape: PipelineShape, step: int) -> Issues:
        """The KV cache of the first layer of who attends first on the device while others attend on the host."""
        for j in shape.over_link[:1]:
            yield issue(Op.LOAD_KV, step, 0, j)

    def finish_layer(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        """PostAttn, and after the last layer the head."""
        yield issue(Op.POST_ATTN, step, layer, j)
        if layer == shape.num_layers - 1:
            yield issue(Op.HEAD, step, micro_batch=j)

    def host_layers(self, shape: PipelineShape, step: int, before: int, micro_batches: Iterable[int]) -> Issues:
        """Layers that run on the host, each micro-batch through all of them; where they do not end there, nothing."""
        first, stop = shape.layers_on_host
        for j in micro_batches if first < stop == before else ():
            if step == 0 or first > 0:  # else the head has embedded the token
                yield issue(Op.ENTER_HOST, step, first, j)
            yield issue(Op.STORE_HIDDEN, step, first, j)
            for layer in range(first, stop):
                yield issue(Op.HOST_LAYER, step, layer, j)
            yield issue(Op.LOAD_HIDDEN, step, stop - 1, j)

    def last_host_layers(self, shape: PipelineShape, step: int) -> Issues:
        """Those at the end of the model, and the heads."""
        for j in range(shape.num_micro_batches if shape.layers_on_host[1] == shape.num_layers else 0):
            yield from self.host_layers(shape, step, shape.num_layers, (j,))
            yield issue(Op.HEAD, step, micro_batch=j)

    def _store_prefilled(self, shape: PipelineShape, layer: int, j: int) -> Issues:
        if shape.kv_on_host(j):
            yield issue(Op.STORE_KV, 0, layer, j)
        if shape.offloads_hidden and layer < shape.num_layers - 1:
            yield issue(Op.STORE_HIDDEN, 0, layer, j)


def steady_step(schedule: Schedule, shape: PipelineShape) -> int:
    """The first step that looks like all later ones: what it depends on reaches back to decode steps only."""
    return 1 + layout_of(schedule, shape).reach_steps


def issue(
    op: Op, step: int, layer: int = -1, micro_batch: int = -1, *, page: int = -1, lane: Lane | None = None
) -> Issue:
    """An issue on the op's usual lane."""
    return Issue(op, lane or LANE_OF[op], step, layer, micro_batch, page)


def next_layer(shape: PipelineShape, step: int, layer: int, more: bool) -> tuple[int, int]:
    """(step, layer) that runs on the device after this one; step is -1 when nothing follows."""
    first, stop = shape.layers_on_host
    following = stop if first == layer + 1 < stop else layer + 1
    if following < shape.num_layers:
        return step, following
    return (step + 1, shape.first_on_device) if more else (-1, 0)


@lru_cache(maxsize=1024)
def layout_of(schedule: Schedule, shape: PipelineShape) -> SlotLayout:
    """The schedule's layout of a pipeline, made once."""
    layout = schedule.layout(shape)
    if shape.num_prompts:
        let_prompts_in(layout)
    return layout


def issue_steps(schedule: Schedule, shape: PipelineShape, first: int, stop: int, final: int) -> Iterator[list[Task]]:
    """Steps straight from the schedule's order, every dependency tracked: exact for any window, and slow."""
    tracker = DependencyTracker(layout_of(schedule, shape))
    for step in range(first, stop):
        more = step < final
        issues = schedule.prefill(shape, more) if step == 0 else schedule.decode(shape, step, more)
        tasks: list[Task] = []
        for item in issues:
            if isinstance(item, Barrier):
                tracker.barrier()
            else:
                tasks.append(tracker.add(item))
        yield tasks


def _relative(tasks: list[Task], step: int) -> tuple[Task, ...]:
    base = tasks[0].id
    return tuple(t._replace(id=t.id - base, step=t.step - step, deps=tuple(d - base for d in t.deps)) for t in tasks)


@lru_cache(maxsize=16)
def _start(schedule: Schedule, shape: PipelineShape, final: int) -> tuple[tuple[Task, ...], ...]:
    stop = min(final + 1, steady_step(schedule, shape))
    return tuple(_relative(tasks, step) for step, tasks in enumerate(issue_steps(schedule, shape, 0, stop, final)))


@lru_cache(maxsize=32)
def _steady(schedule: Schedule, shape: PipelineShape, *, final: bool) -> tuple[Task, ...]:
    step = steady_step(schedule, shape)
    *_, last = issue_steps(schedule, shape, 1, step + 1, step if final else step + 1)
    return _relative(last, step)


def _relocate(template: tuple[Task, ...], base: int, step: int) -> list[Task]:
    new = tuple.__new__  # what Task(…) comes down to
    return [
        new(Task, (base + i, op, lane, step + ahead, layer, j, page, _moved(deps, base) if deps else deps))
        for i, op, lane, ahead, layer, j, page, deps in template
    ]


def _moved(deps: tuple[int, ...], base: int) -> tuple[int, ...]:
    return (base + deps[0],) if len(deps) == 1 else tuple([base + dep for dep in deps])
