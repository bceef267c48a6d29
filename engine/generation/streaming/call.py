"""The public call: a stream of requests through an offloaded model."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.device import Device, EnergyCounters, EnergyMeter, open_device
from engine.generation.asked import (
    GenerationRequest,
    Prompt,
    as_requests,
    checked_arguments,
    drawn_seed,
    errors_of_callers,
    given_model,
    names_of,
    only_user,
    pad_token,
    what_is_asked,
)
from engine.generation.generate import USUAL_MICRO_BATCHES, energy_counters
from engine.generation.streaming.outputs import OutputStream
from engine.generation.streaming.serving import Serving
from engine.generation.streaming.wanted import RequestOutput, Wanted, check_wanted, most_held
from engine.memory import blocks_of_all, kv_layers
from engine.model import Anatomy, can_join
from engine.tasks import GenerationOptions, RunContext
from sim.admission import AdmissionRules, Joins, Priority
from sim.problem import UNIFORM, Policy, Routing
from sim.schedule import Schedule
from traces.errors import InputError, check_choice, check_count

USUAL_WAVES = 4
"""How often each place is filled, where neither a policy nor a size says how many requests are in at a time."""


def stream(
    model: PreTrainedModel | str | Path,
    requests: Sequence[Prompt | GenerationRequest],
    schedule: str | Schedule = "cgopipe",
    policy: Policy | Mapping[str, Any] | None = None,
    micro_batch_size: int | None = None,
    max_new_tokens: int | None = None,
    device: str | Device = "auto",
    *,
    num_prompts: int = 1,
    prefill_chunk: int | None = None,
    priority: str = Priority.ARRIVAL,
    seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_result: Callable[[RequestOutput], None] | None = None,
    routing: str | Routing = UNIFORM,
    keep_model: bool = True,
    traced_steps: int = 0,
    energy: bool | EnergyCounters = False,
    **generate_kwargs: Any,
) -> OutputStream:
    """Generate for `requests`, of which as many are in at a time as the policy's batch; the others follow as these end.

    Each step decodes in the policy's micro-batches, and computes in `num_prompts` more the prompts of requests that
    will decode together in one of them that is empty: as many as fit `prefill_chunk` tokens, padding included (default:
    a whole micro-batch of the longest). `priority` says who enters next, `arrival` or `longest`. The iterator gives
    each output as its request ends; `on_result` is told of it in a lane's thread, which it should not hold up.

    A request that cannot be run, or that makes what it brings along (a logits processor) raise, has an output that says
    so, and the others run. Model, `generate_kwargs`, `seed`, `routing`, `keep_model` and `energy` are as in `run`. Of
    the first `traced_steps` there is a trace. Raises InputError for anything else that the caller can mend.
    """
    check_count("num_prompts", num_prompts)
    check_count("traced_steps", traced_steps, least=0)
    asked_for = what_is_asked(schedule, policy, micro_batch_size, max_new_tokens, seed, generate_kwargs)
    given = as_requests(requests)
    if not given:
        raise InputError("requests: there is none; give at least one prompt")
    if any(one.prompt_logprobs is not None for one in given):
        raise InputError("prompt_logprobs: a stream keeps no scores of prompts: leave it out, or use engine.run")
    chosen = asked_for.schedule
    if not chosen.system.mixes:
        raise InputError(f"{chosen.name}: its steps cannot carry prompts beside decode; take cgopipe or hybrid")
    size = -(-len(given) // (USUAL_MICRO_BATCHES * USUAL_WAVES)) if micro_batch_size is None else micro_batch_size
    policy = asked_for.policy or Policy.usual(chosen, USUAL_MICRO_BATCHES * size, size)
    if policy.attention_on_device:
        some = f"attention_on_device: {policy.attention_on_device:g}"
        raise InputError(f"{some} in a stream, whose KV cache would come over the link, is simulated only: give 0")
    if policy.kv_on_device:
        raise InputError(f"kv_on_device: {policy.kv_on_device:g} in a stream, whose KV cache is on the host: give 0")
    with contextlib.ExitStack() as at_end:
        opened = at_end.enter_context(open_device(device))
        own = not isinstance(model, str | Path)
        model, tokenizer = given_model(model, tokenizer, opened)
        at_end.enter_context(only_user(model))
        kwargs = checked_arguments(generate_kwargs, model, names_of(stream), tokenizer)
        seed = drawn_seed(seed, kwargs, given, model)
        refused: list[RequestOutput] = []
        wanted = check_wanted(given, asked_for.max_new_tokens, seed, model, tokenizer, refused.append)
        rules = _rules(policy, wanted, num_prompts, prefill_chunk, priority, model)
        most = max((one.most_tokens for one in wanted), default=asked_for.max_new_tokens)
        padding = pad_token(model, tokenizer, kwargs.pop("pad_token_id", None))
        options = GenerationOptions(most, padding, kwargs, seed)
        known = Routing.parse(routing) if isinstance(routing, str) else routing
        run = RunContext.of(model, chosen, policy, opened, options, known, rules)
        run.shape(policy.num_micro_batches)  # what the schedule cannot do is said at once
        meter = at_end.enter_context(EnergyMeter(energy_counters(energy, opened))) if energy else None
        kept = at_end.pop_all()

    def output_of(request: Wanted) -> RequestOutput:
        return request.output(run.ends, tokenizer)

    def serving(put: Callable[[RequestOutput | BaseException | None], None]) -> Serving:
        told = kept.enter_context(errors_of_callers(on_result))

        def put_and_tell(found: RequestOutput | BaseException | None) -> None:
            put(found)
            if isinstance(found, RequestOutput):
                told(found)

        for one in refused:
            put_and_tell(one)
        return Serving(run, wanted, put_and_tell, output_of, kept, keep_model and own, traced_steps, meter)

    try:
        return OutputStream(serving)
    except BaseException:
        kept.close()
        raise


def _rules(
    policy: Policy,
    wanted: Sequence[Wanted],
    num_prompts: int,
    prefill_chunk: int | None,
    priority: str,
    model: PreTrainedModel,
) -> AdmissionRules:
    """Room for as many as the policy's micro-batches hold, each as long as it may become."""
    size, count, anatomy = policy.micro_batch_size, policy.num_micro_batches, Anatomy.of(model)
    joins, layers = joins_of(model), kv_layers(anatomy)
    blocks = blocks_of_all(layers, most_held([one.lengths for one in wanted], size * count, joins))
    longest = max((len(one.ids) for one in wanted), default=1)
    chunk = size * longest if prefill_chunk is None else prefill_chunk
    order = Priority(check_choice("priority", priority, Priority))
    whole = joins is Joins.ANY_TIME
    how = {"priority": order, "joins": joins, "whole_prompts": whole, "layers": layers}
    return AdmissionRules(blocks, size, count, chunk, num_prompts, **how)  # type: ignore[arg-type]


def joins_of(model: PreTrainedModel) -> Joins:
    """Any time, where requests of different ages can go through the model's layers as one."""
    return Joins.ANY_TIME if can_join(model, Anatomy.of(model).layers) else Joins.TOGETHER
