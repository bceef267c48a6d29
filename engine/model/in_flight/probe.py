"""Whether requests of several micro-batches can go through a model's layers as one: seen without running a layer."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache

from engine.model.coroutine import HostCall
from engine.model.experts import with_forward
from engine.model.in_flight.calls import JoinedCalls, Passed
from engine.model.kvcache import cache_for, joint_cache, kinds_of_cache, note_tokens

PADDED_OTHERWISE = ("doge", "minimax")
"""Model types that compute other tokens from a padded prompt than from the prompt alone, in the library itself too: one
picks tokens to attend to by what the others hold, one lets a state decay by positions.
"""

INDEXED = "DynamicIndexedLayer"
"""What layers keep that choose tokens by an indexer, which chooses among padding, too."""

KEYS_AND_VALUES = {"DynamicLayer", "DynamicSlidingWindowLayer"}
"""What layers keep whose caches hold keys and values of tokens, and nothing else."""

AGES = ((2, 3), (1, 5))
"""Requests and tokens of two batches that are to go on together."""


class _SeenEnough(Exception):  # noqa: N818 - it ends a call, and is no error
    """What a layer is called with in decode is known."""


def bears_padding(model: PreTrainedModel) -> bool:
    """Whether a prompt that is padded to the length of others has the tokens that it has alone."""
    model_type = model.config.get_text_config(decoder=True).model_type
    return model_type not in PADDED_OTHERWISE and INDEXED not in kinds_of_cache(model)


def can_join(model: PreTrainedModel, layers: Sequence[nn.Module]) -> bool:
    """Whether each layer takes over what the one before has made and nothing else, and calls can be joined.

    Layers that keep more of a request than keys and values, such as a recurrent state, cannot be joined.
    """
    try:
        if not (bears_padding(model) and kinds_of_cache(model) <= KEYS_AND_VALUES):
            return False
        found = [_passed(model, layers, *age) for age in AGES]
        cache = joint_cache(found[0][1], found[0][0].num_tokens)
        most = max(one.num_tokens for one, _ in found)
        calls = JoinedCalls([one for one, _ in found], cache, most, found[0][0].hidden.dtype)
        for layer in range(len(layers)):
            calls.of(layer)
    except Exception:  # whatever a model does not like about it
        return False
    return True


def _passed(model: PreTrainedModel, layers: Sequence[nn.Module], requests: int, tokens: int) -> tuple[Passed, Cache]:
    """What one batch brings to the layers in its first step of decode; of its first request a token is padding."""
    ids, mask = torch.ones((requests, tokens), dtype=torch.long), torch.ones((requests, tokens), dtype=torch.long)
    mask[0, 0] = 0
    probe, cache = _Probe(len(layers)), cache_for(model)
    settings = {"max_new_tokens": 2, "num_beams": 1, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    asked = GenerationConfig.from_dict(settings)
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for i, layer in enumerate(layers):
            stack.enter_context(with_forward(layer, functools.partial(probe, i, layer.forward)))
        with contextlib.suppress(_SeenEnough):
            model.generate(ids, attention_mask=mask, past_key_values=cache, generation_config=asked)  # type: ignore[operator]
    if probe.hidden is None:
        raise TypeError("layers are not called in decode")
    return Passed(probe.hidden, range(requests), probe.calls, tokens + 1), cache


class _Probe:
    """Stands for the layers, and takes down what they are called with in decode."""

    def __init__(self, num_layers: int) -> None:
        self._last = num_layers - 1
        self._prefilled = False
        self.hidden: torch.Tensor | None = None
        self.calls: dict[int, HostCall] = {}

    def __call__(self, layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        hidden, *others = args or (kwargs.pop("hidden_states"),)
        for cache in (value for value in (*others, *kwargs.values()) if isinstance(value, Cache)):
            note_tokens(cache, layer, hidden.shape[1])
        if layer > 0 and hidden is not self.hidden:
            raise TypeError("what a layer has made is not what the next one gets")
        self.hidden = hidden
        if self._prefilled:
            self.calls[layer] = HostCall(forward, tuple(others), kwargs)
        if layer == self._last:
            if self._prefilled:
                raise _SeenEnough
            self._prefilled = True
        return hidden
