"""Prompts through a schedule in JAX: the engine's executor and trace, the schedule's own tasks, arrays of XLA."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedModel

from engine.device.xla import XlaDevice
from engine.generation import as_cut, check_length, describe_model, make_trace, pad_token, prompt_ids
from engine.generation.rows import by_length
from engine.lanes import Executor
from engine.model import Anatomy, end_tokens
from engine.running.xla.micro_batch import XlaMicroBatch
from engine.running.xla.model import Family
from engine.running.xla.tasks import XlaTasks
from engine.running.xla.weights import XlaWeights
from engine.tasks import until_end
from sim.problem import Policy
from sim.schedule import Schedule, layout_of
from sim.simulation import structure
from traces.errors import InputError
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
    """A model on a device of JAX, placed by a policy. It generates for one batch after the other, greedily.

    Raises InputError for what is not written in JAX: other families, and policies that compute experts apart.
    """

    def __init__(self, model: PreTrainedModel, schedule: Schedule, policy: Policy, device: XlaDevice) -> None:
        _check(schedule, policy)
        self._model, self._schedule, self._policy, self._device = model, schedule, policy, device
        self._anatomy = Anatomy.of(model)
        self._family = Family.of(model, self._anatomy)
        shape = policy.pipeline(schedule, self._anatomy.expert_counts, shared=self._anatomy.shared)
        self._weights = XlaWeights(model, self._anatomy, schedule, policy, shape, device)

    def close(self) -> None:
        """Gives back the memory of the weights; the device keeps the programs."""
        self._weights.close()

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> XlaResult:
        """One batch, cut as the engine cuts it. What was not asked for before in these shapes is compiled first."""
        asked = [prompt_ids(prompt, number, None) for number, prompt in enumerate(prompts)]
        for number, ids in enumerate(asked):
            check_length(ids, f"prompt {number}", max_new_tokens, self._model)
        if len(asked) > self._policy.batch_size:
            raise InputError(f"prompts: {len(asked)} are more than a batch of {self._policy.batch_size}: give fewer")
        size, order = self._policy.micro_batch_size, by_length([len(ids) for ids in asked])
        parts = [[asked[i] for i in order[first : first + size]] for first in range(0, len(order), size)]
        shape = self._policy.pipeline(
            self._schedule, self._anatomy.expert_counts, len(parts), shared=self._anatomy.shared
        )
        self._device.programs.start_count()
        for ledger in self._device.ledgers.values():
            ledger.reset_peak()
            ledger.start_history()
        micro_batches = [
            XlaMicroBatch.of(part, pad_token(self._model, None), max_new_tokens, self._device) for part in parts
        ]
        layout = layout_of(self._schedule, shape)
        tasks = XlaTasks(self._family, self._weights, layout, micro_batches, self._device)
        steps = [*self._schedule.steps(shape, 0, max_new_tokens)]
        lanes = list(dict.fromkeys(task.lane for step in steps for task in step))
        try:
            ran = Executor(self._device, steps, lanes, tasks).run()
        finally:
            tasks.slots.close()
            rows = [row for one in micro_batches for row in one.close()]
        lengths, ends = [len(ids) for ids in asked], end_tokens(self._model)
        batch = as_cut(lengths, size, max_new_tokens)
        metadata = self._described(asked, max_new_tokens) | structure(shape, batch)
        histories = {name: ledger.take_history() for name, ledger in self._device.ledgers.items()}
        moved: Counter[str] = Counter()
        for one in ran:
            moved[one.task.op.value] += one.num_bytes
        return XlaResult(
            sequences=[until_end(rows[at], ends) for at in np.argsort(order).tolist()],
            trace=make_trace(ran, metadata, histories),
            peak_bytes={name: ledger.usage.peak_bytes for name, ledger in self._device.ledgers.items()},
            moved_bytes={op: count for op, count in moved.items() if count},
            num_programs=self._device.programs.num_used,
            temporary_bytes=self._device.programs.temporary_bytes,
        )

    def _described(self, asked: Sequence[Sequence[int]], max_new_tokens: int) -> Mapping[str, Any]:
        config, policy, weights = self._model.config, self._policy.to_dict(), self._weights
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


def _check(schedule: Schedule, policy: Policy) -> None:
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
