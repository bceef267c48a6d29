"""The public call: generate for a list of prompts, executing a schedule, and say what happened."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.device import Device, open_device
from engine.generation.checkpoint import find_tokenizer, load_model
from engine.generation.prompts import Prompt, check_generate_kwargs, check_length, pad_token, prompt_ids
from engine.generation.session import open_session
from engine.generation.trace import Stats, describe_batch, describe_host, describe_run, make_trace, peak_bytes, phases_s
from engine.model import InFlight, recorded_routing
from engine.tasks import BatchResult, GenerationOptions, RunContext, Session, run_batch
from sim.problem import UNIFORM, Policy, Routing
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
    record_routing: str | Path | None = None,
    routing: str | Routing = UNIFORM,
    keep_model: bool = True,
    **generate_kwargs: Any,
) -> RunResult:
    """Generate text for `prompts` (strings or lists of token ids) with an offloaded Mixture-of-Experts model.

    `model` is a loaded model, a local folder or a hub id; `device` is a name (`auto`, `emulated`, `cuda`) or a device.
    Without a policy all prompts form one batch, cut into micro-batches of `micro_batch_size`. `generate_kwargs` go to
    `generate()` as they are; what needs beams or a second model is refused. With `seed`, micro-batch j draws as if it
    were generated alone after `torch.manual_seed(seed + j)`. `progress` is told of each micro-batch's new tokens,
    `on_batch` of each batch as it ends. `record_routing` names a file for how many tokens used each expert;
    `routing`, such a file, places experts by their popularity.

    The model is what it was when the run ends, with one exception: a policy's `weight_bits` of 4.5 or 8.5 packs routed
    experts, whose own weights host memory has no room for meanwhile. Afterwards they are what the packed bits say, for
    good; to run them so again changes nothing more. Without `keep_model` packed experts are left empty, which saves the
    time and memory to unpack a model that nobody needs any more. Raises InputError for anything the caller can mend.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens: {max_new_tokens} is not allowed; generate at least 1 token")
    with open_device(device) as opened:
        keep_model = keep_model and not isinstance(model, str | Path)
        model, tokenizer = given_model(model, tokenizer, opened, generate_kwargs)
        if not prompts:
            raise InputError("prompts: the list is empty; give at least one prompt")
        ids = [prompt_ids(prompt, number, tokenizer) for number, prompt in enumerate(prompts)]
        for number, prompt in enumerate(ids):
            check_length(prompt, f"prompt {number}", max_new_tokens, model)
        chosen = by_name(schedule) if isinstance(schedule, str) else schedule
        size = -(-len(ids) // USUAL_MICRO_BATCHES) if micro_batch_size is None else micro_batch_size
        policy = policy or Policy.usual(chosen, len(ids), size)
        seed, padding = drawn_seed(seed, generate_kwargs, model), pad_token(model, tokenizer)
        options = GenerationOptions(max_new_tokens, padding, generate_kwargs, seed)
        known = Routing.parse(routing) if isinstance(routing, str) else routing
        context = RunContext.of(model, chosen, policy, opened, options, known)
        with _recording(context, record_routing), open_session(context, keep_model) as session:
            opened.reset_peak()
            done = []
            for batch in _batches(session, ids, progress):
                done.append(batch)
                if on_batch is not None:
                    on_batch(batch)
            peaks = peak_bytes([batch.trace for batch in done]) | {"device": opened.usage.peak_bytes}
    sequences = [sequence for batch in done for sequence in batch.result.sequences]
    texts = None if tokenizer is None else tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return RunResult(sequences, texts, stats_of(done, peaks), [batch.trace for batch in done])


@contextlib.contextmanager
def _recording(run: RunContext, path: str | Path | None) -> Iterator[None]:
    """While entered, counts the experts that tokens use; the file is written when the run has ended well."""
    if path is None:
        yield
        return
    if run.policy.layers_on_host:
        raise InputError("record_routing: experts of layers on the host are not counted: give no layers_on_host")
    with recorded_routing(run.model, run.anatomy, run.ends | run.options.pads_ended) as record:
        yield
    record.histogram(run.model.config.model_type).write(path)


def _batches(session: Session, ids: list[list[int]], progress: Callable[[int], None] | None) -> Iterator[BatchDone]:
    def on_head(micro_batch: InFlight) -> None:
        if progress is not None:
            progress(len(micro_batch.padding))

    run, policy = session.run, session.run.policy
    metadata = describe_run(run, ids)
    for first in range(0, len(ids), policy.batch_size):
        batch = ids[first : first + policy.batch_size]
        for memory in run.memories.values():
            memory.start_history()
        result = run_batch(session, batch, first // policy.micro_batch_size, on_head)
        histories = {tier: memory.take_history() for tier, memory in run.memories.items()}
        described = metadata | describe_batch(run, batch) | describe_host(run, result.host)
        described |= {"host_memory": session.host_memory}
        yield BatchDone(first, result, make_trace(result.ran, described, histories))


def given_model(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    device: Device,
    generate_kwargs: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model, loaded where it is named, and its tokenizer. Raises InputError for arguments that it cannot honour."""
    if isinstance(model, str | Path):
        tokenizer = tokenizer or find_tokenizer(model)
        model = load_model(model, device=device)
    check_generate_kwargs(generate_kwargs, model)
    if "stop_strings" in generate_kwargs:
        generate_kwargs["tokenizer"] = tokenizer
    return model, tokenizer


def drawn_seed(seed: int | None, kwargs: Mapping[str, Any], model: PreTrainedModel) -> int | None:
    """The seed of a run that samples, drawn if none is given; None of one that does not sample."""
    if not kwargs.get("do_sample", model.generation_config.do_sample):
        return None
    return int(torch.randint(2**31, ()).item()) if seed is None else seed


def stats_of(done: Sequence[BatchDone], peaks: dict[str, int]) -> Stats:
    """What these batches of a run did; `peaks` are the run's."""
    results = [batch.result for batch in done]
    prefill_s, decode_s = map(sum, zip(*(phases_s(batch.trace) for batch in done), strict=True))
    busy_s: dict[str, float] = {}
    for batch in done:
        for (lane, _), busy_ns in batch.trace.busy_ns().items():
            busy_s[lane] = busy_s.get(lane, 0.0) + busy_ns / 1e9
    return Stats(
        generated_tokens=sum(len(sequence) for one in results for sequence in one.sequences),
        prefill_s=prefill_s,
        decode_s=decode_s,
        busy_s=busy_s,
        peak_bytes=peaks,
        kernel_attention_calls=sum(one.kernel_calls for one in results),
        own_attention_calls=sum(one.own_code_calls for one in results),
    )
