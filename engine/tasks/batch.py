"""One batch of requests through a schedule: micro-batches, their caches, who performs each task, and what came out."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.device import LaneContext
from engine.lanes import Executor, Ran
from engine.memory import Activations, Buffers
from engine.model import Finished, InFlight, cache_for
from engine.tasks.attend import DecodeAttention
from engine.tasks.compute import Compute
from engine.tasks.context import BatchContext, Carried, RunContext, Session
from engine.tasks.experts import Experts
from engine.tasks.host import HostLayers, HostRoom, HostTime, clocks_ns
from engine.tasks.rank_sums import SumsOfTasks
from engine.tasks.transfers import Transfers
from sim.problem import within_window
from sim.schedule import Lane, LaneKind, Op, PipelineShape, Task

STEPS_THAT_SHOW_ALL_LANES = 3

Prompts = Sequence[Sequence[int]]
"""Token ids of each request."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Generated ids of each request in order, every task that ran, and what of decode was the host's.

    Ids go on to a token that ends sequences or to the end of the micro-batch.
    """

    sequences: list[list[int]]
    ran: list[Ran]
    host: HostTime
    kernel_calls: int
    own_code_calls: int


@dataclass(frozen=True, slots=True)
class MicroBatchAsked:
    """The prompts of a micro-batch; what `generate()` is given for it beside the options of the run; its seed."""

    prompts: Prompts
    others: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None


def run_batch(
    session: Session,
    cut: Sequence[MicroBatchAsked],
    on_head: Callable[[InFlight], None] = lambda micro_batch: None,
) -> BatchResult:
    """Generates for one batch, cut into micro-batches."""
    run = session.run
    layout, attention = run.layout(len(cut)), DecodeAttention(session.kernel)
    micro_batches = [_of_batch(run, layout.shape, j, one) for j, one in enumerate(cut)]
    session.weights.begin_batch(layout)
    with contextlib.ExitStack() as at_end:
        buffers = at_end.enter_context(contextlib.closing(Buffers(run.device)))
        at_end.callback(_free_resident, run, micro_batches)
        largest = max(micro_batches, key=lambda one: len(one.padding) * one.width)
        activations = at_end.enter_context(contextlib.closing(Activations(run.device, largest, run.anatomy.kinds)))
        carried = _AllAtOnce(micro_batches, run.options.max_new_tokens)
        context = BatchContext(session, layout, carried, attention, buffers, activations, on_head)
        HostRoom(context).take_stores([one for one in micro_batches if layout.shape.kv_on_host(one.index)])
        work = TaskPerformer(context)
        ran = _execute(run, layout.shape, work)
        sequences = [row for one in micro_batches for row in _generated(run, one)]
    return BatchResult(sequences, ran, work.host, attention.kernel_calls, attention.own_calls)


def make_micro_batch(run: RunContext, index: int, prompts: Prompts, seed: int | None, **others: Any) -> InFlight:
    """A micro-batch that will generate for these prompts; `others` go to `generate()` with the options of the run."""
    options = run.options
    kwargs = {"max_new_tokens": options.max_new_tokens, **options.kwargs, **others}
    width = max(map(len, prompts))
    capacity = width + kwargs["max_new_tokens"] - 1  # the last token is not attended to
    cache = cache_for(run.model, capacity)
    padding = tuple(width - len(prompt) for prompt in prompts)
    ids = [[options.pad_token_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in padding]

    def generate() -> Any:
        return run.model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(ids).to(run.device.torch_device),
            attention_mask=torch.tensor(mask).to(run.device.torch_device),
            past_key_values=cache,
            pad_token_id=options.pad_token_id,
            **kwargs,
        )

    return InFlight(index, padding, generate, seed, cache=cache, width=width, capacity=capacity)


def _of_batch(run: RunContext, shape: PipelineShape, j: int, asked: MicroBatchAsked) -> InFlight:
    made, count = make_micro_batch(run, j, asked.prompts, asked.seed, **asked.others), len(asked.prompts)
    made.resident_requests = run.policy.resident_requests(count) if shape.kv_on_host(j) else count
    return made


def _free_resident(run: RunContext, micro_batches: Sequence[InFlight]) -> None:
    for store in (store for one in micro_batches for store in one.resident.values()):
        store.close(run.device.free)


def _execute(run: RunContext, shape: PipelineShape, work: "TaskPerformer") -> list[Ran]:
    num_steps = run.options.max_new_tokens
    first_steps = run.steps(shape, 0, min(num_steps, STEPS_THAT_SHOW_ALL_LANES))
    lanes = list(dict.fromkeys(task.lane for step in first_steps for task in step))
    return Executor(run.device, run.steps(shape, 0, num_steps), lanes, work, work.finished, work.leave).run()


class TaskPerformer:
    """Performs the tasks of those who are in, on any lane. Dependencies keep lanes out of each other's way."""

    def __init__(self, batch: BatchContext) -> None:
        self._batch = batch
        self.host = HostTime()
        weights, compute = batch.session.weights, Compute(batch)
        self._sums = sums = SumsOfTasks(batch)
        transfers = Transfers(batch, sums.wait_for_layer)
        self._move_weights: dict[Op, Callable[[LaneContext, Task], int]] = {
            Op.PIN_WEIGHTS: lambda _, task: weights.pin(task),
            Op.LOAD_WEIGHTS: weights.load,
            Op.LOAD_WEIGHTS_PAGEABLE: weights.load_pageable,
        }
        self._on_device: dict[Op, Callable[[Task, InFlight], int]] = {
            Op.PRE_ATTN: compute.pre_attn,
            Op.ATTN: compute.attn,
            Op.POST_ATTN: compute.post_attn,
            Op.OUT_PROJ: compute.out_proj,
            Op.EXPERTS: compute.experts,
            Op.ROUTE: compute.route,
            Op.HEAD: compute.head,
            Op.ENTER_HOST: compute.enter_host,
        }
        self._host_layers = layers = HostLayers(batch)
        self._on_host: dict[Op, Callable[[Task, InFlight], int]] = {
            Op.ATTN: compute.attn_on_host,
            Op.HOST_LAYER: layers.run,
        }
        self._around_host_layers: dict[Op, Callable[[LaneContext, Task, InFlight], int]] = {
            Op.STORE_HIDDEN: layers.enter,
            Op.LOAD_HIDDEN: layers.leave,
        }
        self._experts = experts = Experts(batch, sums.add_up_on_host)
        self._for_group: dict[Op, Callable[[LaneContext, Task, Sequence[InFlight]], int]] = {
            Op.OFFLOAD_TOKENS: experts.offload_tokens,
            Op.FETCH_EXPERTS: experts.fetch,
            Op.HOST_EXPERTS: lambda _, task, group: experts.on_host(task, group),
            Op.LOAD_OUTPUT: experts.load_output,
            Op.DEVICE_EXPERTS: lambda _, task, group: experts.on_device(task, group),
        }
        self._copies: dict[Op, Callable[[LaneContext, Task, InFlight], int]] = {
            Op.OFFLOAD_QKV: transfers.offload_qkv,
            Op.LOAD_HIDDEN: transfers.load_hidden,
            Op.STORE_HIDDEN: transfers.store_hidden,
            Op.LOAD_KV: transfers.load_kv,
            Op.STORE_KV: transfers.store_kv,
        }

    def __call__(self, lane: LaneContext, task: Task) -> int | None:
        """Do the task. Returns the bytes it moved; None if there was nothing to do."""
        if task.op in self._move_weights:
            return self._move_weights[task.op](lane, task)
        if task.lane.kind is LaneKind.NET:
            return self._sums.add_up(task, self._experts.members(task) if self._sums.is_apart(task) else ())
        if task.lane.kind is LaneKind.GPU:
            self._sums.end_layer(lane)
        if task.op in self._for_group:
            return self._of_group(lane, task)
        return self._of_one(lane, task)

    def _of_one(self, lane: LaneContext, task: Task) -> int | None:
        micro_batch = self._batch.carried.of(task)
        if micro_batch is None:
            return None
        copies = self._around_host_layers if self._host_layers.are_at(task) else self._copies
        if task.op in copies:
            return copies[task.op](lane, task, micro_batch)
        if task.lane.kind is LaneKind.CPU:
            return self._on_host[task.op](task, micro_batch)
        if micro_batch.at_step != task.step:
            raise RuntimeError(f"micro-batch {micro_batch.index} is in step {micro_batch.at_step}")
        before = clocks_ns()
        num_bytes = self._on_device[task.op](task, micro_batch)
        if task.op is Op.EXPERTS:
            self._sums.expect(micro_batch)
        self.host.add(task, before)
        return num_bytes

    def _of_group(self, lane: LaneContext, task: Task) -> int | None:
        group = self._experts.members(task)
        if not group:
            return None
        before = clocks_ns()
        num_bytes = self._for_group[task.op](lane, task, group)
        if task.lane.kind is LaneKind.GPU:
            self.host.add(task, before)
        return num_bytes

    def finished(self) -> bool:
        """Whether all has been done, so that what is issued further has no use."""
        return self._batch.carried.over

    def leave(self, lane: Lane) -> None:
        """Ends all coroutines when the GPU lane ends, in whose thread they run."""
        if lane.kind is LaneKind.GPU:
            self._sums.close()
            for micro_batch in self._batch.carried.in_flight():
                micro_batch.abandon()


class _AllAtOnce(Carried):
    """The micro-batches of one batch, each of which is there from the first step to its end."""

    def __init__(self, micro_batches: Sequence[InFlight], num_steps: int) -> None:
        self._all, self._num_steps = micro_batches, num_steps

    def of(self, task: Task) -> InFlight | None:
        one = self._all[task.micro_batch]
        return None if one.has_left(task) else one

    @property
    def over(self) -> bool:
        """Whether every micro-batch has ended before its last step."""
        return all(one.finished for one in self._all) and any(one.step < self._num_steps for one in self._all)

    def in_flight(self) -> Sequence[InFlight]:
        return self._all

    def most_tokens(self, micro_batch: int, *, prompts: bool) -> int:
        one = self._all[micro_batch]
        return len(one.padding) * (one.width if prompts else 1)

    @property
    def most_requests(self) -> int:
        return max(len(one.padding) for one in self._all)

    def most_cached_tokens(self, window: int | None, *, on_host: bool = False) -> int:
        rows = ((len(one.padding) - on_host * one.resident_requests, one.capacity) for one in self._all)
        return max(count * int(within_window(capacity, window)) for count, capacity in rows)


def _generated(run: RunContext, micro_batch: InFlight) -> list[list[int]]:
    at = micro_batch.at
    if not isinstance(at, Finished):
        raise RuntimeError(f"the schedule {run.schedule.name} ended before generation did: it is at {at!r}")
    output = at.output if isinstance(at.output, torch.Tensor) else at.output.sequences
    return [until_end(row, run.ends) for row in output[:, micro_batch.width :].tolist()]


def until_end(row: list[int], ends: set[int]) -> list[int]:
    """A row of generated tokens without what follows one that ends sequences."""
    return next((row[: i + 1] for i, token in enumerate(row) if token in ends), row)
