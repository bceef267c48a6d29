"""What a trace says of the run behind it: all that issues its tasks once more and predicts what each should take."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from engine.generation.session import Session
from sim.problem import Batch, MicroBatch
from sim.simulation import structure


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration as JSON values, with the dtype that it has in memory and without where it came from."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    return {**config, "dtype": str(model.dtype).removeprefix("torch.")}


def describe_batch(
    session: Session, prompts: Sequence[Sequence[int]], micro_batch_size: int, gen_len: int
) -> dict[str, Any]:
    """One batch: its pipeline, the length of each prompt, and the micro-batches as they are padded.

    The device computes padding and the KV cache holds it; only attention on the host leaves it out.
    """
    lengths = [len(prompt) for prompt in prompts]
    cut = [lengths[first : first + micro_batch_size] for first in range(0, len(lengths), micro_batch_size)]
    batch = Batch(tuple(map(MicroBatch.padded, cut)), 0, gen_len)
    return {
        "steps": [0, gen_len],
        "prompt_tokens": lengths,
        "streamed_bytes": session.streamed_bytes,
        **structure(session.shape(len(cut)), batch),
    }
