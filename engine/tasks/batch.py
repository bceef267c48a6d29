"""One batch of requests through a schedule: micro-batches, their caches, the executor, and what came out."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.lanes import Executor, Ran
from engine.memory import Activations, Buffers
from engine.model import Finished, InFlight, cache_for, end_tokens
from engine.tasks.attend import DecodeAttention
from engine.tasks.context import BatchContext, RunContext, Session
from engine.tasks.perform import TaskPerformer

STEPS_THAT_SHOW_ALL_LANES = 3

Prompts = Sequence[Sequence[int]]
"""Token ids of each request."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Generated ids of each request in order, and every task that ran."""

    sequences: list[list[int]]
    ran: list[Ran]
    kernel_calls: int
    own_code_calls: int


def run_batch(
    session: Session, prompts: Prompts, first: int = 0, on_head: Callable[[InFlight], None] = lambda micro_batch: None
) -> BatchResult:
    """Generates for the prompts of one batch; `first` numbers its first micro-batch in the run, for its seed."""
    run, size = session.run, session.run.policy.micro_batch_size
    cut = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    micro_batches = [_micro_batch(run, j, rows, first + j) for j, rows in enumerate(cut)]
    layout, attention = run.layout(len(cut)), DecodeAttention(session.kernel)
    session.weights.begin_batch(layout)
    with contextlib.ExitStack() as at_end:
        buffers = at_end.enter_context(contextlib.closing(Buffers(run.device, run.host)))
        if not layout.shape.streams_kv:
            at_end.callback(_free_stores, run, micro_batches)
        largest = max(micro_batches, key=lambda one: len(one.padding) * one.width)
        activations = at_end.enter_context(contextlib.closing(Activations(run.device, largest, run.anatomy.kinds)))
        ran = _execute(BatchContext(session, layout, micro_batches, attention, buffers, activations, on_head))
        sequences = [row for one in micro_batches for row in _generated(run, one)]
    return BatchResult(sequences, ran, attention.kernel_calls, attention.own_calls)


def _micro_batch(run: RunContext, j: int, prompts: Prompts, number: int) -> InFlight:
    options, cache = run.options, cache_for(run.model)
    width = max(map(len, prompts))
    padding = tuple(width - len(prompt) for prompt in prompts)
    ids = [[options.pad_token_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in padding]

    def generate() -> Any:
        return run.model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(ids).to(run.device.torch_device),
            attention_mask=torch.tensor(mask).to(run.device.torch_device),
            past_key_values=cache,
            max_new_tokens=options.max_new_tokens,
            pad_token_id=options.pad_token_id,
            **options.kwargs,
        )

    seed = None if options.seed is None else options.seed + number
    capacity = width + options.max_new_tokens - 1  # the last token is not attended to
    return InFlight(j, padding, generate, seed, cache=cache, width=width, capacity=capacity)


def _free_stores(run: RunContext, micro_batches: Sequence[InFlight]) -> None:
    for store in (store for one in micro_batches for store in one.stores.values()):
        store.close(run.device.free)


def _execute(batch: BatchContext) -> list[Ran]:
    run, work = batch.session.run, TaskPerformer(batch)
    num_steps = run.options.max_new_tokens
    first_steps = run.schedule.steps(batch.shape, 0, min(num_steps, STEPS_THAT_SHOW_ALL_LANES))
    lanes = list(dict.fromkeys(task.lane for step in first_steps for task in step))
    steps = run.schedule.steps(batch.shape, 0, num_steps)
    return Executor(run.device, steps, lanes, work, work.finished, work.leave).run()


def _generated(run: RunContext, micro_batch: InFlight) -> list[list[int]]:
    at, kwargs = micro_batch.at, run.options.kwargs
    if not isinstance(at, Finished):
        raise RuntimeError(f"the schedule {run.schedule.name} ended before generation did: it is at {at!r}")
    output = at.output if isinstance(at.output, torch.Tensor) else at.output.sequences
    ends = end_tokens(run.model, kwargs.get("eos_token_id"))
    stops_early = any(kwargs.get(name) for name in ("stop_strings", "stopping_criteria"))
    padding = {run.options.pad_token_id} if stops_early else set()
    return [_until_end(row, ends, padding) for row in output[:, micro_batch.width :].tolist()]


def _until_end(row: list[int], ends: set[int], padding: set[int]) -> list[int]:
    """Without what follows the end of a sequence: everything after an end token, else `padding` behind it."""
    kept = next((row[: i + 1] for i, token in enumerate(row) if token in ends), row)
    while kept and kept[-1] in padding:
        kept = kept[:-1]
    return kept
