"""What a trace says of the run behind it: all that issues its tasks once more and predicts what each should take."""

import hashlib
import json
import platform
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from engine.tasks import RunContext
from sim.problem import Batch, MicroBatch
from sim.simulation import structure


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration as JSON values, with the dtype that it has in memory and without where it came from."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    return {**config, "dtype": str(model.dtype).removeprefix("torch.")}


def describe_run(run: RunContext, ids: list[list[int]]) -> dict[str, Any]:
    """What all batches of a run on these token ids have in common."""
    config, policy, schedule = run.model.config, run.policy.to_dict(), run.schedule.name
    inputs = [schedule, policy, config.to_json_string(), ids, run.options.max_new_tokens]
    return {
        "schedule": schedule,
        "model": config.model_type,
        "model_config": describe_model(run.model),
        "policy": policy,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "input_hash": hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
        "origin": run.device.origin,
        "device": run.device.facts,
    }


def describe_batch(run: RunContext, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One batch: its pipeline, the length of each prompt, and the micro-batches as they are padded.

    The device computes padding and the KV cache holds it; only attention on the host leaves it out.
    """
    lengths, gen_len = [len(prompt) for prompt in prompts], run.options.max_new_tokens
    batch = as_cut(lengths, run.policy.micro_batch_size, gen_len)
    return {
        "steps": [0, gen_len],
        "prompt_tokens": lengths,
        "streamed_bytes": [0 if layer is None else layer.num_bytes for layer in run.streamed],
        **structure(run.shape(len(batch.micro_batches)), batch),
    }


def as_cut(prompt_tokens: Sequence[int], micro_batch_size: int, gen_len: int) -> Batch:
    """The batch as the engine cuts it: in order of input, each micro-batch padded to its longest prompt."""
    starts = range(0, len(prompt_tokens), micro_batch_size)
    cut = [MicroBatch.padded(prompt_tokens[start : start + micro_batch_size]) for start in starts]
    return Batch(tuple(cut), 0, gen_len)
