"""What comes in: prompts as text or token ids, each with what it asks for. Checked before anything is set up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.generation.asked.arguments import check_own_arguments, check_seed
from engine.generation.rows import RowRequest
from traces.errors import InputError, check_count

Prompt = str | Sequence[int]

MOST_LIKELIEST = 20
"""For so many tokens beside the chosen one logarithms of probabilities can be had."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt, as text or token ids, and what it asks for beside the others: None is what all are asked for.

    `options` are arguments of `generate()` that say how its tokens are chosen, and `stop_strings`. It draws as if it
    were generated alone after `torch.manual_seed(seed)`. With `top_logprobs` its output has the logarithms of the
    probabilities of its tokens and of as many of the likeliest ones in their place.
    """

    prompt: Prompt
    max_new_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    """The same of its prompt's own tokens, from the second one on."""
    arrival_s: float = 0.0
    """In a stream: when it comes, in seconds from the first step on. Nobody takes it into account before."""


def as_requests(prompts: Any) -> list[GenerationRequest]:
    """What a caller gives as prompts. Raises InputError for what is no list of them."""
    if isinstance(prompts, str | GenerationRequest):
        return as_requests([prompts])
    if isinstance(prompts, np.ndarray | torch.Tensor) and prompts.ndim != 2:
        told = "one row a prompt, or put a single prompt into a list"
        raise InputError(f"prompts: an array of {prompts.ndim} dimensions is no list of prompts; give {told}")
    if isinstance(prompts, Mapping | bytes | bytearray) or not hasattr(prompts, "__iter__"):
        raise InputError(f"prompts: a {type(prompts).__name__} is no list of prompts; give a list of text or token ids")
    given = list(prompts)
    if given and all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in given):
        raise InputError("prompts: a list of numbers is one prompt; put it into a list")
    return [one if isinstance(one, GenerationRequest) else GenerationRequest(one) for one in given]


def asked_of(
    request: GenerationRequest,
    number: int,
    max_new_tokens: int,
    seed: int | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> RowRequest:
    """What a request asks for, where all are asked for so many tokens and `seed` is that of the first request.

    Raises InputError that gives its `number` for what cannot be run.
    """
    most = max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
    most = check_count(f"prompt {number}: max_new_tokens", most)
    ids = prompt_ids(request.prompt, number, tokenizer)
    check_length(ids, f"prompt {number}", most, model)
    options = check_own_arguments(request.options, tokenizer, f"prompt {number}: ")
    own = request.seed if request.seed is not None else None if seed is None else seed + number
    if own is not None:
        check_seed(f"prompt {number}: seed", own)
    if request.top_logprobs is not None:
        check_count(f"prompt {number}: top_logprobs", request.top_logprobs, least=0)
    if request.prompt_logprobs is not None:
        check_count(f"prompt {number}: prompt_logprobs", request.prompt_logprobs, least=0)
    return RowRequest(ids, most, options, own, request.top_logprobs, request.prompt_logprobs)


def prompt_ids(prompt: Any, number: int, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Token ids of one prompt. Raises InputError that gives its `number` if it has none."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InputError(f"prompt {number} is text, but there is no tokenizer: give one, or give token ids")
        ids = _encoded(prompt, number, tokenizer) if prompt else []
    elif isinstance(prompt, np.ndarray | torch.Tensor):
        if prompt.ndim != 1:
            raise InputError(f"prompt {number} is an array of {prompt.ndim} dimensions: give one of 1")
        ids = prompt.tolist()
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise InputError(f"prompt {number} is a {type(prompt).__name__}: give text or a list of token ids")
    else:
        ids = [int(token) if isinstance(token, np.integer) or _is_number(token) else token for token in prompt]
    if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in ids):
        raise InputError(f"prompt {number} holds something else than token ids: give whole numbers from 0")
    if not ids:
        raise InputError(f"prompt {number} is empty: give at least one token")
    return ids


def _is_number(token: Any) -> bool:
    """Whether it is a tensor of one whole number."""
    return isinstance(token, torch.Tensor) and token.ndim == 0 and token.dtype in (torch.int64, torch.int32)


def _encoded(text: str, number: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    try:
        return list(tokenizer(text)["input_ids"])
    except Exception as error:  # tokenizers raise what they like
        told = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(f"prompt {number}: the tokenizer refuses it: {type(error).__name__}: {told}") from None


def check_length(ids: Sequence[int], name: str, max_new_tokens: int, model: PreTrainedModel) -> None:
    """Raises InputError if one prompt does not fit the model's positions and vocabulary."""
    check_fits(ids, name, max_new_tokens, model.config)


def check_fits(ids: Sequence[int], name: str, max_new_tokens: int, model_config: Any) -> None:
    """The same for a model of which there is the configuration alone."""
    config = model_config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and len(ids) + max_new_tokens > positions:
        raise InputError(
            f"{name} has {len(ids)} tokens, which with max_new_tokens {max_new_tokens} is more than the model's "
            f"{positions} positions: shorten it by {len(ids) + max_new_tokens - positions}, or generate less"
        )
    last = config.vocab_size - 1
    if max(ids) > last:
        raise InputError(f"{name} holds the token id {max(ids)}: the model's vocabulary ends at {last}")


def pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, given: int | None = None) -> int:
    """The token that fills up shorter prompts; it is masked, so any will do."""
    eos = model.generation_config.eos_token_id
    first_eos = eos[0] if isinstance(eos, list) else eos
    found = (given, model.generation_config.pad_token_id, getattr(tokenizer, "pad_token_id", None), first_eos)
    return next((int(token) for token in found if token is not None), 0)
