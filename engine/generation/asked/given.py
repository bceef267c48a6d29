"""What a call is given beside its prompts: checked before there is a model, as far as it goes; used by one run only."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from engine.device import Device
from engine.generation.asked.arguments import REFUSED_FAMILIES, check_seed
from engine.generation.asked.prompts import GenerationRequest
from engine.generation.checkpoint import ModelAsked, find_tokenizer
from engine.generation.rows import samples
from engine.model import Anatomy, cache_for
from sim.problem import Policy
from sim.schedule import Schedule, by_name
from traces.errors import InputError, check_count

USUAL_NEW_TOKENS = 64
"""How many tokens a request may generate where nobody says so."""

_IN_USE: "weakref.WeakSet[torch.nn.Module]" = weakref.WeakSet()
"""Models that a run has opened."""

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class WhatIsAsked:
    """How a call is to run, as far as it can be checked before there is a model."""

    schedule: Schedule
    policy: Policy | None
    micro_batch_size: int | None
    max_new_tokens: int

    def policy_for(self, num_requests: int, num_micro_batches: int) -> Policy:
        """The policy, or the usual one for so many requests at a time."""
        size = -(-num_requests // num_micro_batches) if self.micro_batch_size is None else self.micro_batch_size
        return self.policy or Policy.usual(self.schedule, num_requests, size)


def what_is_asked(
    schedule: str | Schedule,
    policy: Policy | Mapping[str, Any] | None,
    micro_batch_size: int | None,
    max_new_tokens: int | None,
    seed: int | None,
    generate_kwargs: Mapping[str, Any],
) -> WhatIsAsked:
    """Checks what needs no model. Raises InputError."""
    if max_new_tokens is None:
        max_new_tokens = getattr(generate_kwargs.get("generation_config"), "max_new_tokens", None) or USUAL_NEW_TOKENS
    most = check_count("max_new_tokens", max_new_tokens)
    if micro_batch_size is not None:
        check_count("micro-batch-size", micro_batch_size)
    if seed is not None:
        check_seed("seed", seed)
    if isinstance(schedule, str):
        schedule = by_name(schedule)
    if not isinstance(schedule, Schedule):
        raise InputError(f"schedule: a {type(schedule).__name__} is no schedule; give a name or a Schedule")
    if isinstance(policy, Mapping):
        policy = Policy.from_dict(dict(policy), schedule)
    if policy is not None and not isinstance(policy, Policy):
        raise InputError(f"policy: a {type(policy).__name__} is no policy; give a Policy or its fields")
    return WhatIsAsked(schedule, policy, micro_batch_size, most)


def given_model(
    model: PreTrainedModel | str | Path | ModelAsked, tokenizer: PreTrainedTokenizerBase | None, device: Device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model, loaded where it is named, and its tokenizer. Raises InputError for one that cannot be run."""
    if isinstance(model, str | Path | ModelAsked):
        given = model if isinstance(model, ModelAsked) else ModelAsked(model)
        tokenizer = tokenizer or find_tokenizer(given.name, given.trust_remote_code)
        model = given.load(device)
    model = as_it_is(model)
    check_can_run(model)
    return model, tokenizer


def check_can_run(model: PreTrainedModel) -> None:
    """Raises InputError for a model of a kind that the engine cannot run; its weights need not be there."""
    reason = REFUSED_FAMILIES.get(model.config.get_text_config(decoder=True).model_type)
    if reason:
        raise InputError(f"{type(model).__name__}: {reason}, which is not supported")
    Anatomy.of(model)
    cache_for(model)


def check_kind(config: Any, *, trust_remote_code: bool = False) -> None:
    """The same of what a configuration describes, before its weights are loaded."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=trust_remote_code
            )
    except Exception:  # whatever that is, loading the model will tell
        return
    check_can_run(model)


def drawn_seed(
    seed: int | None, kwargs: Mapping[str, Any], requests: Sequence[GenerationRequest], model: PreTrainedModel
) -> int | None:
    """The seed of a run in which somebody samples, drawn if none is given; None of one in which nobody does."""
    if not any(samples(model, {**kwargs, **one.options}) for one in requests):
        return None
    return int(torch.randint(2**31, ()).item()) if seed is None else seed


def as_it_is(model: Any) -> PreTrainedModel:
    """A model without what compiles it from outside. Raises InputError for what is no model that can be opened."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, PreTrainedModel):
        kind = type(model).__name__
        raise InputError(f"model: a {kind} is no model of transformers; give one, a folder or a hub id")
    compiled = [name for name, module in model.named_modules() if hasattr(module, "_orig_mod")]
    if compiled:
        raise InputError(f"model: {compiled[0]} was compiled by torch.compile: give the model uncompiled")
    return model


@contextlib.contextmanager
def only_user(model: PreTrainedModel) -> Iterator[None]:
    """While entered, no other run may open the model, and it runs as it was written, not as it was compiled in place.

    Raises InputError if another run has it open.
    """
    with _ONE_AT_A_TIME:
        if model in _IN_USE:
            raise InputError("model: it is in use by another run: wait for that one to end, or load the model again")
        _IN_USE.add(model)
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
        with _ONE_AT_A_TIME:
            _IN_USE.discard(model)


@contextlib.contextmanager
def errors_of_callers(call: Callable[[Any], None] | None) -> Iterator[Callable[[Any], None]]:
    """A callback as it may be called in a lane; what it raises comes out of the block as it is."""
    raised: list[BaseException] = []

    def told(value: Any) -> None:
        try:
            if call is not None:
                call(value)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        yield told
    except BaseException as error:
        if raised and error.__cause__ is raised[0]:
            raise raised[0] from None
        raise
