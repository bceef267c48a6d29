"""The public call: generate for a list of prompts, executing a schedule, and say what happened."""

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.device import (
    Device,
    DeviceAsked,
    EnergyCounters,
    EnergyMeter,
    EnergyUse,
    Rank,
    counters_of,
    open_device,
)
from engine.generation.asked import (
    GenerationRequest,
    Prompt,
    as_requests,
    asked_of,
    checked_arguments,
    drawn_seed,
    errors_of_callers,
    given_model,
    names_of,
    only_user,
    pad_token,
    what_is_asked,
)
from engine.generation.checkpoint import ModelAsked
from engine.generation.of_rank import as_rank, check_divided, check_same
from engine.generation.ranks import call_on_devices, merged_stats, merged_trace
from engine.generation.rows import RowRequest, RowsOfMicroBatch, TokenLogprobs, cut_up, kept_scores
from engine.generation.session import open_session
from engine.generation.trace import (
    Stats,
    describe_batch,
    describe_host,
    describe_run,
    described_energy,
    make_trace,
    measured_energy,
    peak_bytes,
    phases_s,
)
from engine.model import InFlight, recorded_routing
from engine.tasks import BatchResult, GenerationOptions, RunContext, Session, run_batch
from sim.problem import UNIFORM, Policy, Routing
from sim.schedule import Schedule
from traces.errors import InputError, check_count
from traces.trace import Trace

USUAL_MICRO_BATCHES = 4
"""Into how many micro-batches the prompts are cut when neither a policy nor a size is given."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run generated, in input order, and how.

    `sequences` are ids without the prompt; `texts` is None without a tokenizer. `trace` is that of the first batch.
    `logprobs` are those of requests that asked for them; so are `prompt_logprobs`, from a prompt's second token on.
    """

    sequences: list[list[int]]
    texts: list[str] | None
    stats: Stats
    trace: Trace
    logprobs: list[list[TokenLogprobs] | None]
    prompt_logprobs: list[list[TokenLogprobs] | None]


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One batch of a run: its requests start at `first`, and what they generated is in their order."""

    first: int
    sequences: list[list[int]]
    logprobs: list[list[TokenLogprobs] | None]
    prompt_logprobs: list[list[TokenLogprobs] | None]
    result: BatchResult
    trace: Trace
    energy: EnergyUse | None = None


def run(
    model: PreTrainedModel | str | Path | ModelAsked,
    prompts: Sequence[Prompt | GenerationRequest],
    schedule: str | Schedule = "cgopipe",
    policy: Policy | Mapping[str, Any] | None = None,
    micro_batch_size: int | None = None,
    max_new_tokens: int | None = None,
    device: str | Device | DeviceAsked = "auto",
    *,
    seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Callable[[int], None] | None = None,
    on_batch: Callable[[BatchDone], None] | None = None,
    record_routing: str | Path | None = None,
    routing: str | Routing = UNIFORM,
    keep_model: bool = True,
    num_devices: int = 1,
    rank: Rank | None = None,
    energy: bool | EnergyCounters = False,
    **generate_kwargs: Any,
) -> RunResult:
    """Generate text for `prompts` (strings or lists of token ids) with an offloaded Mixture-of-Experts model.

    `model` is a loaded model, a local folder, a hub id or a `ModelAsked`; `device` is a name (`auto`, `emulated`,
    `cuda`), a `DeviceAsked` or a device.
    Without a policy all prompts form one batch, cut into micro-batches of `micro_batch_size`, those of similar length
    together. `generate_kwargs` go to `generate()` as they are, a `generation_config` as if it were the model's own;
    what needs beams or a second model is refused. `max_new_tokens` is 64 if nobody says anything else. A
    `GenerationRequest` is a prompt with a limit and options of its own. Request i draws as if it were generated alone
    after `torch.manual_seed(seed + i)`. `progress` is told of each micro-batch's new tokens; `on_batch` gets each batch
    as it ends, with its trace, of which only the first is kept. What they raise ends the run and comes out as it is.
    `record_routing` names a file for how many tokens used each expert; `routing`, such a file, places experts by their
    popularity. `energy` measures the joules of the run by the counters of device and host, or by those that are given;
    what has no counter says so, and nothing fails.

    The model is what it was when the run ends, with one exception: a policy's `weight_bits` of 4.5 or 8.5 packs routed
    experts, whose own weights host memory has no room for meanwhile. Afterwards they are what the packed bits say, for
    good; to run them so again changes nothing more. Without `keep_model` packed experts are left empty, which saves the
    time and memory to unpack a model that nobody needs any more.

    With `num_devices` above 1 each device has a process, a rank, that makes this call with its `rank` and its share of
    every tensor: all of them compute the same tokens. A model that is loaded here already is written to disk for them,
    and stays as it is. A rank that is lost ends the run by name. Where a caller gives `rank` itself, the process is one
    of several that call this alike; without `keep_model` the model is left with no more than its share.
    Raises InputError for anything the caller can mend.
    """
    asked_for = what_is_asked(schedule, policy, micro_batch_size, max_new_tokens, seed, generate_kwargs)
    check_divided(asked_for.schedule, check_count("num_devices", num_devices) if rank is None else rank.count)
    requests = as_requests(prompts)
    if not requests:
        raise InputError("prompts: the list is empty; give at least one prompt")
    if any(one.arrival_s for one in requests):
        raise InputError(
            "arrival_s: batches begin with all of their requests; use engine.stream for those that come later"
        )
    if energy and (num_devices > 1 or rank is not None):
        raise InputError("energy: it is measured of runs on one device: leave it out, or give num_devices=1")
    if rank is None and num_devices > 1:
        how = {"schedule": schedule, "policy": policy, "micro_batch_size": micro_batch_size, "device": device}
        what = {"model": model, "prompts": requests, "tokenizer": tokenizer, "max_new_tokens": max_new_tokens}
        others = {"progress": progress, "on_batch": on_batch, "record_routing": record_routing, "routing": routing}
        sent = {**generate_kwargs, **how, **what, **others, "seed": seed}
        result: RunResult = call_on_devices(_with_other_ranks, num_devices, sent)
        return result
    with open_device(device, rank) as opened, contextlib.ExitStack() as in_use:
        keep_model = keep_model and not isinstance(model, str | Path | ModelAsked)
        model, tokenizer = given_model(model, tokenizer, opened)
        in_use.enter_context(only_user(model))
        options = checked_arguments(generate_kwargs, model, names_of(run), tokenizer)
        policy = asked_for.policy_for(len(requests), USUAL_MICRO_BATCHES)
        sums = in_use.enter_context(as_rank(model, policy, rank, keep=keep_model))
        seed = drawn_seed(seed, options, requests, model)
        seed = seed if sums is None else sums.rank.from_first(seed)
        asked = [
            asked_of(one, number, asked_for.max_new_tokens, seed, model, tokenizer)
            for number, one in enumerate(requests)
        ]
        most = max(one.max_new_tokens for one in asked)
        padding = pad_token(model, tokenizer, options.pop("pad_token_id", None))
        known = Routing.parse(routing) if isinstance(routing, str) else routing
        generation = GenerationOptions(most, padding, options, seed)
        context = RunContext.of(model, asked_for.schedule, policy, opened, generation, known, sums=sums)
        metadata = describe_run(context, [one.ids for one in asked])
        check_same(sums, "the requests", (metadata["input_hash"], seed, options), "call each with the same ones")
        scores = any(one.prompt_logprobs is not None for one in asked)
        in_use.enter_context(kept_scores(model) if scores else contextlib.nullcontext())
        with (
            _recording(context, asked, record_routing if rank is None or rank.is_first else None),
            open_session(context, keep_model) as session,
        ):
            if rank is not None:
                rank.gather(None)  # all begin together: some take longer to get ready
            opened.reset_peak()
            done = _Done()
            meter = in_use.enter_context(EnergyMeter(energy_counters(energy, opened))) if energy else None
            with errors_of_callers(progress) as told:
                for batch in _batches(session, asked, metadata, told, meter):
                    check_same(sums, "the tokens", batch.sequences)
                    done.add(batch)
                    if on_batch is not None:
                        on_batch(batch)
            device_peak = opened.usage.peak_bytes
    return done.result(tokenizer, device_peak)


def _with_other_ranks(*, rank: Rank, **asked: Any) -> RunResult:
    """The run of one rank, with the trace and the account of all of them."""
    result = run(rank=rank, **asked)
    stats, traces = zip(*rank.gather((result.stats, result.trace)), strict=True)
    return replace(result, stats=merged_stats(stats), trace=merged_trace(traces))


@dataclass(slots=True)
class _Done:
    """What is kept of the batches of a run, however many there are: no trace but the first."""

    stats: Stats = field(default_factory=Stats)
    sequences: list[list[int]] = field(default_factory=list)
    logprobs: list[list[TokenLogprobs] | None] = field(default_factory=list)
    prompt_logprobs: list[list[TokenLogprobs] | None] = field(default_factory=list)
    trace: Trace | None = None

    def add(self, batch: BatchDone) -> None:
        """One more."""
        self.stats += stats_of([batch], peak_bytes([batch.trace]))
        self.sequences += batch.sequences
        self.logprobs += batch.logprobs
        self.prompt_logprobs += batch.prompt_logprobs
        self.trace = self.trace or batch.trace

    def result(self, tokenizer: PreTrainedTokenizerBase | None, device_peak: int) -> RunResult:
        """All of it, with the most that the device held."""
        assert self.trace is not None
        texts = None if tokenizer is None else tokenizer.batch_decode(self.sequences, skip_special_tokens=True)
        stats = replace(self.stats, peak_bytes=self.stats.peak_bytes | {"device": device_peak})
        return RunResult(self.sequences, texts, stats, self.trace, self.logprobs, self.prompt_logprobs)


@contextlib.contextmanager
def _recording(run: RunContext, asked: Sequence[RowRequest], path: str | Path | None) -> Iterator[None]:
    """While entered, counts the experts that tokens use; the file is written when the run has ended well."""
    if path is None:
        yield
        return
    if run.policy.layers_on_host:
        raise InputError("record_routing: experts of layers on the host are not counted: give no layers_on_host")
    size = run.policy.micro_batch_size
    pads_ended = any(rows.ends is not None for rows in cut_up(run.model, run.options.kwargs, asked, size))
    ends = run.ends | ({run.options.pad_token_id} if pads_ended else set())
    with recorded_routing(run.model, run.anatomy, ends) as record:
        yield
    if run.sums is None or run.sums.rank.is_first:  # each rank chooses experts for all tokens
        record.histogram(run.model.config.model_type).write(path)


def energy_counters(asked: bool | EnergyCounters, device: Device) -> EnergyCounters:
    """Those that are given, or the device's and its host's."""
    return asked if isinstance(asked, EnergyCounters) else counters_of(device)


def _batches(
    session: Session,
    asked: Sequence[RowRequest],
    metadata: dict[str, Any],
    progress: Callable[[int], None],
    meter: EnergyMeter | None,
) -> Iterator[BatchDone]:
    def on_head(micro_batch: InFlight) -> None:
        progress(len(micro_batch.padding))

    run, policy = session.run, session.run.policy
    rank = 0 if run.sums is None else run.sums.rank.index
    for first in range(0, len(asked), policy.batch_size):
        cut = cut_up(run.model, run.options.kwargs, asked[first : first + policy.batch_size], policy.micro_batch_size)
        for memory in run.memories.values():
            memory.start_history()
        result = run_batch(session, [rows.for_generate for rows in cut], on_head)
        histories = {tier: memory.take_history() for tier, memory in run.memories.items()}
        prompts = [one.ids for rows in cut for one in rows.asked]
        described = metadata | describe_batch(run, prompts) | describe_host(run, result.host)
        described |= {"host_memory": session.host_memory}
        sequences, logprobs, of_prompts = _in_order(cut, result.sequences)
        used, power = measured_energy(meter, result.ran) if meter else (None, [])
        described |= described_energy(used, sum(map(len, sequences)))
        trace = make_trace(result.ran, described, histories, power, rank)
        yield BatchDone(first, sequences, logprobs, of_prompts, result, trace, used)


def _in_order(
    cut: Sequence[RowsOfMicroBatch], generated: list[list[int]]
) -> tuple[list[list[int]], list[list[TokenLogprobs] | None], list[list[TokenLogprobs] | None]]:
    """What was generated for a batch, in the order of its requests."""
    left = iter(generated)
    found = {}
    for rows in cut:
        own = rows.own_parts([next(left) for _ in rows.asked])
        for row, (number, sequence) in enumerate(zip(rows.numbers, own, strict=True)):
            found[number] = sequence, rows.logprobs(row, len(sequence)), rows.prompt_logprobs(row)
    in_order = [found[number] for number in range(len(found))]
    return [one[0] for one in in_order], [one[1] for one in in_order], [one[2] for one in in_order]


def stats_of(done: Sequence[BatchDone], peaks: dict[str, int]) -> Stats:
    """What these batches of a run did; `peaks` are the run's."""
    results = [batch.result for batch in done]
    measured = [batch.energy for batch in done if batch.energy is not None]
    prefill_s, decode_s = map(sum, zip(*(phases_s(batch.trace) for batch in done), strict=True))
    busy_s: dict[str, float] = {}
    for batch in done:
        for (lane, _), busy_ns in batch.trace.busy_ns().items():
            busy_s[lane] = busy_s.get(lane, 0.0) + busy_ns / 1e9
    return Stats(
        num_batches=len(done),
        generated_tokens=sum(len(sequence) for batch in done for sequence in batch.sequences),
        prefill_s=prefill_s,
        decode_s=decode_s,
        busy_s=busy_s,
        peak_bytes=peaks,
        kernel_attention_calls=sum(one.kernel_calls for one in results),
        own_attention_calls=sum(one.own_code_calls for one in results),
        energy=reduce(operator.add, measured) if measured else None,
    )
