"""Prompts through a schedule in JAX: the engine's executor and trace, the schedule's own tasks, arrays of XLA."""

import contextlib
import hashlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedModel

from engine.device import XlaDevice
from engine.generation import as_cut, by_length, check_length, describe_model, make_trace, pad_token, prompt_ids
from engine.lanes import Executor, Ran
from engine.model import Anatomy, end_tokens
from engine.running.xla.micro_batch import XlaMicroBatch
from engine.running.xla.model import XlaFamily
from engine.running.xla.tasks import XlaTasks
from engine.running.xla.weights import XlaWeights
from engine.tasks import until_end
from sim.problem import Policy
from sim.schedule import PipelineShape, Schedule, layout_of
from sim.simulation import structure
from traces.errors import InputError, check_count
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class XlaResult:
    """What was generated, in input order and without prompts, and how. Bytes are by memory, and by op for the moved."""

    sequences: list[list[int]]
    trace: Trace
    peak_bytes: dict[str, int]
    moved_bytes: dict[str, int]
    num_programs: int
    temporary_bytes: int
    """The most that a program needs beside its arguments and results."""


class XlaModel:
    """A model on a device of JAX, its `weights` placed by a policy. It generates for batch after batch, greedily.

    Raises InputError for what is not written in JAX: other families, and policies that compute experts apart.
    """

    def __init__(self, model: PreTrainedModel, schedule: Schedule, policy: Policy, device: XlaDevice) -> None:
        check_written(schedule, policy)
        self._model, self._schedule, self._policy, self._device = model, schedule, policy, device
        self._anatomy = Anatomy.of(model)
        self._family = XlaFamily.of(model, self._anatomy)
        self.weights = self._placed(self._shape(policy.num_micro_batches))

    def close(self) -> None:
        """Gives back the memory of the weights; the device keeps the programs."""
        self.weights.close()

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> XlaResult:
        """One batch, cut as the engine cuts it. What was not asked for before in these shapes is compiled first."""
        asked, device = self._checked(prompts, check_count("max_new_tokens", max_new_tokens)), self._device
        size, order = self._policy.micro_batch_size, by_length([len(ids) for ids in asked])
        parts = [[asked[i] for i in order[first : first + size]] for first in range(0, len(order), size)]
        shape, pad = self._shape(len(parts)), pad_token(self._model, None)
        if shape.num_pages != self.weights.num_pages:  # a page goes with each micro-batch
            self.weights.close()
            self.weights = self._placed(shape)
        device.start_run()
        with contextlib.ExitStack() as at_end:
            micro_batches = [
                at_end.enter_context(contextlib.closing(XlaMicroBatch.of(part, pad, max_new_tokens, device)))
                for part in parts
            ]
            ran = self._execute(shape, micro_batches, max_new_tokens)
            rows = [row for one in micro_batches for row in one.generated()]
        structured = structure(shape, as_cut([len(ids) for ids in asked], size, max_new_tokens))
        moved: Counter[str] = Counter()
        for one in ran:
            moved[one.task.op.value] += one.num_bytes
        ends = end_tokens(self._model)
        return XlaResult(
            sequences=[until_end(rows[at], ends) for at in np.argsort(order).tolist()],
            trace=make_trace(ran, self._described(asked, max_new_tokens) | structured, device.take_histories()),
            peak_bytes={name: ledger.usage.peak_bytes for name, ledger in device.ledgers.items()},
            moved_bytes={op: count for op, count in moved.items() if count},
            num_programs=device.programs.num_used,
            temporary_bytes=device.programs.temporary_bytes,
        )

    def _execute(
        self, shape: PipelineShape, micro_batches: Sequence[XlaMicroBatch], max_new_tokens: int
    ) -> Sequence[Ran]:
        steps = [*self._schedule.steps(shape, 0, max_new_tokens)]
        tasks = XlaTasks(self._family, self.weights, layout_of(self._schedule, shape), micro_batches, self._device)
        tasks.check(self._schedule.name, {task.op for step in steps for task in step})
        lanes = list(dict.fromkeys(task.lane for step in steps for task in step))
        with contextlib.closing(tasks.slots):
            return Executor(self._device, steps, lanes, tasks).run()

    def _checked(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        asked = [prompt_ids(prompt, number, None) for number, prompt in enumerate(prompts)]
        for number, ids in enumerate(asked):
            check_length(ids, f"prompt {number}", max_new_tokens, self._model)
        if not 0 < len(asked) <= self._policy.batch_size:
            raise InputError(
                f"prompts: {len(asked)} for a policy whose batch is {self._policy.batch_size}: give 1 to as many"
            )
        return asked

    def _shape(self, num_micro_batches: int) -> PipelineShape:
        counts, shared = self._anatomy.expert_counts, self._anatomy.shared
        return self._policy.pipeline(self._schedule, counts, num_micro_batches, shared=shared)

    def _placed(self, shape: PipelineShape) -> XlaWeights:
        return XlaWeights(self._model, self._anatomy, self._schedule, self._policy, shape, self._device)

    def _described(self, asked: Sequence[Sequence[int]], max_new_tokens: int) -> dict[str, Any]:
        config, policy, weights = self._model.config, self._policy.to_dict(), self.weights
        inputs = [self._schedule.name, policy, config.to_json_string(), list(asked), max_new_tokens]
        return {
            "schedule": self._schedule.name,
            "model": config.model_type,
            "model_config": describe_model(self._model),
            "policy": policy,
            "versions": {"python": platform.python_version(), "jax": jax.__version__},
            "input_hash": hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
            "origin": self._device.origin,
            "device": self._device.facts,
            "steps": [0, max_new_tokens],
            "prompt_tokens": [len(ids) for ids in asked],
            "streamed_bytes": weights.streamed_bytes,
            "locked_bytes": weights.streamed_bytes if self._policy.pin_weights else [0] * len(weights.layers),
        }


def check_written(schedule: Schedule, policy: Policy) -> None:
    """Raises InputError for what the executor in JAX leaves to the engine."""
    if schedule.system.splits_experts:
        raise InputError(f"jax: {schedule.name} computes experts apart from their layers, which is not written in JAX")
    kept = "give 0 or 1: whole requests of a micro-batch are not divided in JAX"
    refused = {
        "kv_on_device": (policy.kv_on_device not in (0, 1), kept),
        "pin_weights": (policy.pin_weights not in (0, 1), "give 0 or 1: XLA's pinned_host has whole layers or none"),
        "weight_bits": (policy.weight_bits is not None, "packed experts are not written in JAX: leave it out"),
        "kv_bits": (policy.kv_bits is not None, "the cache has the model's own width: leave it out"),
    }
    for name, (given, mend) in refused.items():
        if given:
            raise InputError(f"jax: {name} = {getattr(policy, name)}: {mend}")
