"""The public call: generate for a list of prompts, executing a schedule, and say what happened."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.device import Device, open_device
from engine.generation.checkpoint import find_tokenizer, load_model
from engine.generation.metadata import describe_batch, describe_model
from engine.generation.prompts import Prompt, check_generate_kwargs, check_lengths, pad_token, to_token_ids
from engine.generation.session import Session
from engine.generation.trace import Stats, make_trace, peak_bytes, phases_s
from engine.model import GenerateCoroutine
from engine.tasks import BatchResult, GenerationOptions
from sim.problem import Policy
from sim.schedule import Schedule, by_name
from traces.errors import InputError
from traces.trace import Trace

USUAL_MICRO_BATCHES = 4
"""Into how many micro-batches the prompts are cut when neither a policy nor a size is given."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run generated, in input order, and how.

    `sequences` are ids without the prompt; `texts` is None without a tokenizer. `traces` has one trace a batch.
    """

    sequences: list[list[int]]
    texts: list[str] | None
    stats: Stats
    traces: list[Trace]

    @property
    def trace(self) -> Trace:
        """The trace of the first batch."""
        return self.traces[0]


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One batch of a run: its requests start at `first`."""

    first: int
    result: BatchResult
    trace: Trace


def run(
    model: PreTrainedModel | str | Path,
    prompts: Sequence[Prompt],
    schedule: str | Schedule = "cgopipe",
    policy: Policy | None = None,
    micro_batch_size: int | None = None,
    max_new_tokens: int = 64,
    device: str | Device = "auto",
    *,
    seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Callable[[int], None] | None = None,
    on_batch: Callable[[BatchDone], None] | None = None,
    **generate_kwargs: Any,
) -> RunResult:
    """Generate text for `prompts` (strings or lists of token ids) with an offloaded Mixture-of-Experts model.

    `model` is a loaded model, a local folder or a hub id; `device` is a name (`auto`, `emulated`, `cuda`) or a device.
    Without a policy all prompts form one batch, cut into micro-batches of `micro_batch_size`. `generate_kwargs` go to
    `generate()` as they are; what needs beams or a second model is refused. With `seed`, micro-batch j draws as if it
    were generated alone after `torch.manual_seed(seed + j)`. `progress` is told of each micro-batch's new tokens,
    `on_batch` of each batch as it ends. Raises InputError for anything the caller can mend.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens: {max_new_tokens} is not allowed; generate at least 1 token")
    if isinstance(model, str | Path):
        tokenizer = tokenizer or find_tokenizer(model)
        model = load_model(model)
    check_generate_kwargs(generate_kwargs, model)
    if "stop_strings" in generate_kwargs:
        generate_kwargs["tokenizer"] = tokenizer
    ids = to_token_ids(prompts, tokenizer)
    check_lengths(ids, max_new_tokens, model)
    chosen = by_name(schedule) if isinstance(schedule, str) else schedule
    policy = policy or _usual_policy(chosen, len(ids), micro_batch_size)
    generation = GenerationOptions(
        max_new_tokens, pad_token(model, tokenizer), generate_kwargs, _seed(seed, generate_kwargs, model)
    )
    metadata = _metadata(model, chosen, policy, ids, generation)
    with open_device(device) as opened, Session(model, opened, chosen, policy, generation) as session:
        opened.memory.reset_peak()
        metadata |= {"origin": opened.origin, "device": opened.facts}
        done = []
        for batch in _batches(session, ids, policy, generation.max_new_tokens, metadata, progress):
            done.append(batch)
            if on_batch is not None:
                on_batch(batch)
        peaks = peak_bytes([batch.trace for batch in done]) | {"device": opened.usage.peak_bytes}
    sequences = [sequence for batch in done for sequence in batch.result.sequences]
    texts = None if tokenizer is None else tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return RunResult(sequences, texts, _stats(done, peaks), [batch.trace for batch in done])


def _batches(
    session: Session,
    ids: list[list[int]],
    policy: Policy,
    gen_len: int,
    metadata: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> Iterator[BatchDone]:
    def on_head(micro_batch: GenerateCoroutine) -> None:
        if progress is not None:
            progress(len(micro_batch.padding))

    for first in range(0, len(ids), policy.batch_size):
        batch = ids[first : first + policy.batch_size]
        memories = session.memories
        for memory in memories.values():
            memory.start_history()
        result = session.run_batch(batch, first // policy.micro_batch_size, on_head)
        histories = {tier: memory.take_history() for tier, memory in memories.items()}
        about = describe_batch(session, batch, policy.micro_batch_size, gen_len)
        yield BatchDone(first, result, make_trace(result.ran, metadata | about, histories))


def _usual_policy(schedule: Schedule, num_prompts: int, micro_batch_size: int | None) -> Policy:
    size = -(-num_prompts // USUAL_MICRO_BATCHES) if micro_batch_size is None else micro_batch_size
    return Policy.usual(schedule, num_prompts, size)


def _seed(seed: int | None, kwargs: Mapping[str, Any], model: PreTrainedModel) -> int | None:
    samples = kwargs.get("do_sample", model.generation_config.do_sample)
    if not samples or seed is not None:
        return seed if samples else None
    return int(torch.randint(2**31, ()).item())


def _stats(done: Sequence[BatchDone], peaks: dict[str, int]) -> Stats:
    phases = [phases_s(batch.trace) for batch in done]
    busy_s: dict[str, float] = {}
    for batch in done:
        for (lane, _), busy_ns in batch.trace.busy_ns().items():
            busy_s[lane] = busy_s.get(lane, 0.0) + busy_ns / 1e9
    return Stats(
        generated_tokens=sum(len(sequence) for batch in done for sequence in batch.result.sequences),
        prefill_s=sum(prefill for prefill, _ in phases),
        decode_s=sum(decode for _, decode in phases),
        busy_s=busy_s,
        peak_bytes=peaks,
        kernel_attention_calls=sum(batch.result.kernel_calls for batch in done),
        own_attention_calls=sum(batch.result.own_code_calls for batch in done),
    )


def _metadata(
    model: PreTrainedModel, schedule: Schedule, policy: Policy, ids: list[list[int]], generation: GenerationOptions
) -> dict[str, Any]:
    inputs = [schedule.name, policy.to_dict(), model.config.to_json_string(), ids, generation.max_new_tokens]
    return {
        "schedule": schedule.name,
        "model": model.config.model_type,
        "model_config": describe_model(model),
        "policy": policy.to_dict(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "input_hash": hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
    }
