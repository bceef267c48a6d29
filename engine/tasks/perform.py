"""What each op does: the same tasks that the simulator times, on a real model."""

from collections.abc import Callable

from engine.device import LaneContext
from engine.model import InFlight
from engine.tasks.compute import Compute
from engine.tasks.context import BatchContext
from engine.tasks.transfers import Transfers
from sim.schedule import Lane, LaneKind, Op, Task


class TaskPerformer:
    """Performs the tasks of one batch, on whatever lane they are. Dependencies keep lanes out of each other's way."""

    def __init__(self, batch: BatchContext) -> None:
        self._batch = batch
        weights, compute, transfers = batch.session.weights, Compute(batch), Transfers(batch)
        self._move_weights: dict[Op, Callable[[LaneContext, Task], int]] = {
            Op.PIN_WEIGHTS: lambda _, task: weights.pin(task),
            Op.LOAD_WEIGHTS: weights.load,
            Op.LOAD_WEIGHTS_PAGEABLE: weights.load_pageable,
        }
        self._on_device: dict[Op, Callable[[Task, InFlight], int]] = {
            Op.PRE_ATTN: compute.pre_attn,
            Op.ATTN: compute.attn,
            Op.POST_ATTN: compute.post_attn,
            Op.HEAD: compute.head,
        }
        self._attn_on_host = compute.attn_on_host
        self._copies: dict[Op, Callable[[LaneContext, Task, InFlight], int]] = {
            Op.OFFLOAD_QKV: transfers.offload_qkv,
            Op.LOAD_HIDDEN: transfers.load_hidden,
            Op.STORE_HIDDEN: transfers.store_hidden,
            Op.LOAD_KV: transfers.load_kv,
            Op.STORE_KV: transfers.store_kv,
        }

    def __call__(self, lane: LaneContext, task: Task) -> int | None:
        """Do the task. Returns the bytes it moved; None if its micro-batch has finished."""
        if task.op in self._move_weights:
            return self._move_weights[task.op](lane, task)
        micro_batch = self._batch.micro_batches[task.micro_batch]
        if micro_batch.finished and task.step >= micro_batch.step:
            return None
        if task.op in self._copies:
            return self._copies[task.op](lane, task, micro_batch)
        if task.lane.kind is LaneKind.CPU:
            return self._attn_on_host(task, micro_batch)
        if task.op not in self._on_device:
            raise NotImplementedError(f"{task.op} belongs to runs on several devices")
        if micro_batch.step != task.step:
            raise RuntimeError(f"micro-batch {micro_batch.index} is in step {micro_batch.step}")
        return self._on_device[task.op](task, micro_batch)

    def finished(self) -> bool:
        """Whether every micro-batch has ended before its last step, so that what is issued further has no use."""
        micro_batches, num_steps = self._batch.micro_batches, self._batch.session.run.options.max_new_tokens
        return any(one.step < num_steps for one in micro_batches) and all(one.finished for one in micro_batches)

    def leave(self, lane: Lane) -> None:
        """Ends all coroutines when the GPU lane ends, in whose thread they run."""
        for micro_batch in self._batch.micro_batches if lane.kind is LaneKind.GPU else ():
            micro_batch.abandon()
