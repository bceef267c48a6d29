"""One batch of requests through a schedule: micro-batches, their caches, the executor, and what came out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from engine.attention import HostAttention
from engine.device import Device, Ledger
from engine.lanes import Executor, Ran
from engine.memory import Activations, Buffers, WeightStream
from engine.model import Finished, GenerateCoroutine, InFlight, cache_for, end_tokens
from engine.tasks.attend import DecodeAttention
from engine.tasks.compute import Compute
from engine.tasks.perform import TaskPerformer
from engine.tasks.transfers import Transfers
from sim.schedule import Lane, LaneKind, PipelineShape, Schedule, layout_of

STEPS_THAT_SHOW_ALL_LANES = 3


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What `generate()` is asked for, the same for every micro-batch.

    `seed` makes micro-batch j draw as if it were generated alone after `torch.manual_seed(seed + j)`.
    """

    max_new_tokens: int
    pad_token_id: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Generated ids of each request in order, and every task that ran."""

    sequences: list[list[int]]
    ran: list[Ran]
    kernel_calls: int
    own_code_calls: int


class BatchRun:
    """One batch on a device on which the model has been placed."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: Device,
        schedule: Schedule,
        shape: PipelineShape,
        weights: WeightStream,
        kernel: HostAttention,
        host: Ledger,
        generation: GenerationOptions,
        kinds: Sequence[int],
    ) -> None:
        self._model = model
        self._device = device
        self._schedule = schedule
        self._shape = shape
        self._weights = weights
        self._kernel = kernel
        self._host = host
        self._generation = generation
        self._kinds = kinds

    def run(
        self,
        micro_batches: Sequence[Sequence[Sequence[int]]],
        first: int = 0,
        on_head: Callable[[GenerateCoroutine], None] = lambda micro_batch: None,
    ) -> BatchResult:
        """Generates for the token ids of each micro-batch's prompts. `first` numbers the first one, for its seed."""
        layout = layout_of(self._schedule, self._shape)
        self._weights.begin_batch(layout)
        buffers = Buffers(self._device, self._host)
        pairs = [self._make(j, rows, first) for j, rows in enumerate(micro_batches)]
        running = [pair[0] for pair in pairs]
        desks = [pair[1] for pair in pairs]
        attention = DecodeAttention(self._kernel)
        largest = max(running, key=_num_prompt_tokens(micro_batches))
        activations = Activations(self._device, largest, self._kinds)
        compute = Compute(self._shape, self._weights, self._device, attention, activations, on_head)
        transfers = Transfers(layout, buffers, attention, activations)
        num_steps = self._generation.max_new_tokens
        work = TaskPerformer(running, desks, compute, transfers, self._weights, num_steps)
        try:
            ran = self._execute(work)
            sequences = [row for one in running for row in self._generated(one, micro_batches[one.index])]
        finally:
            activations.close()
            for desk in desks:
                if not self._shape.streams_kv:
                    for store in desk.stores.values():
                        store.close(self._device.free)
            buffers.close()
        return BatchResult(sequences, ran, attention.kernel_calls, attention.own_calls)

    def _execute(self, work: TaskPerformer) -> list[Ran]:
        num_steps = self._generation.max_new_tokens

        def end(lane: Lane) -> None:
            if lane.kind is LaneKind.GPU:
                work.abandon()

        steps = self._schedule.steps(self._shape, 0, num_steps)
        return Executor(self._device, steps, self._lanes(num_steps), work, work.finished, end).run()

    def _lanes(self, num_steps: int) -> list[Lane]:
        steps = self._schedule.steps(self._shape, 0, min(num_steps, STEPS_THAT_SHOW_ALL_LANES))
        return list(dict.fromkeys(task.lane for step in steps for task in step))

    def _make(self, j: int, prompts: Sequence[Sequence[int]], first: int) -> tuple[GenerateCoroutine, InFlight]:
        generation = self._generation
        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor(
            [[generation.pad_token_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        )
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
        cache = cache_for(self._model)

        def generate() -> Any:
            return self._model.generate(  # type: ignore[operator]
                input_ids=ids.to(self._device.torch_device),
                attention_mask=mask.to(self._device.torch_device),
                past_key_values=cache,
                max_new_tokens=generation.max_new_tokens,
                pad_token_id=generation.pad_token_id,
                **generation.kwargs,
            )

        seed = None if generation.seed is None else generation.seed + first + j
        micro_batch = GenerateCoroutine(j, tuple(padding), generate, seed)
        return micro_batch, InFlight(cache, width + generation.max_new_tokens - 1)  # the last token is not attended to

    def _generated(self, micro_batch: GenerateCoroutine, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        at = micro_batch.at
        if not isinstance(at, Finished):
            raise RuntimeError(f"the schedule {self._schedule.name} ended before generation did: it is at {at!r}")
        output = at.output if isinstance(at.output, torch.Tensor) else at.output.sequences
        width = max(len(prompt) for prompt in prompts)
        ends = end_tokens(self._model, self._generation.kwargs.get("eos_token_id"))
        generation = self._generation
        stops_early = any(generation.kwargs.get(name) for name in ("stop_strings", "stopping_criteria"))
        padding = {generation.pad_token_id} if stops_early else set()
        return [_until_end(row, ends, padding) for row in output[:, width:].tolist()]


def _until_end(row: list[int], ends: set[int], padding: set[int]) -> list[int]:
    """Without what follows the end of a sequence: everything after an end token, else `padding` behind it."""
    kept = next((row[: i + 1] for i, token in enumerate(row) if token in ends), row)
    while kept and kept[-1] in padding:
        kept = kept[:-1]
    return kept


def _num_prompt_tokens(micro_batches: Sequence[Sequence[Sequence[int]]]) -> Callable[[GenerateCoroutine], int]:
    sizes = [len(prompts) * max(map(len, prompts)) for prompts in micro_batches]
    return lambda micro_batch: sizes[micro_batch.index]
