"""Where a model can be split: around its decoder layers, and by an attention function that asks the executor."""

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.model.coroutine import (
    AttentionCall,
    ExpertsCall,
    GenerateCoroutine,
    HeadCall,
    HostCall,
    LayerEntry,
    StackEnd,
    WeightsNeeded,
    current,
    suspend,
)
from engine.model.experts import with_forward
from engine.model.kvcache import LayerCache, note_tokens

SUPPORTED = ("sdpa", "eager")
"""Implementations of the library that the engine wraps: both work on every device."""

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@contextlib.contextmanager
def split(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    streamed: Collection[nn.Module],
    experts: Mapping[int, nn.Module] = types.MappingProxyType({}),
    shared: Iterable[nn.Module] = (),
    on_host: Collection[int] = (),
) -> Iterator[None]:
    """While entered, every micro-batch stops at layer entries, attention calls and modules of streamed weights.

    Where experts are computed apart, also at the modules that have them, `experts` by layer; `shared` ones are computed
    with them. It passes layers `on_host` without running them, and leaves a note of each. Calls from outside a
    micro-batch's coroutine go through as if nothing had been changed.
    """
    original = model.config._attn_implementation
    wrapped = original if original in SUPPORTED else "sdpa" if model._supports_sdpa else "eager"
    with contextlib.ExitStack() as stack:
        for i, module in experts.items():
            stack.enter_context(_wrapped(module, functools.partial(_call_experts, i)))
        for module in shared:
            stack.enter_context(_wrapped(module, _call_shared))
        stack.callback(model.set_attn_implementation, original)
        model.set_attn_implementation(_register(wrapped))
        for i, layer in enumerate(layers):
            for child in layer.children():
                if any(module in streamed for module in child.modules()):
                    stack.enter_context(_wrapped(child, functools.partial(_need_weights, i)))
            around = _pass_layer if i in on_host else _enter_layer
            stack.enter_context(_wrapped(layer, functools.partial(around, i)))
        stack.enter_context(_wrapped(layers[-1], _leave_stack))
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is not None:
            stack.enter_context(_wrapped(head, _call_head))
        yield


def own_attention(call: AttentionCall, module: object = None) -> Attention:
    """The attention that the model would have used itself.

    `module` stands in for the model's attention module where its tensors must be elsewhere.
    """
    eager = call.implementation == "eager"
    function = eager_attention(call.module) if eager else ALL_ATTENTION_FUNCTIONS[call.implementation]
    if function is None:
        raise RuntimeError(f"{type(call.module).__name__}: its library defines no eager attention")
    return functools.partial(function, module or call.module)


def is_causal(mask: torch.Tensor | None) -> bool:
    """Whether a decode mask hides nothing but padding on the left."""
    return mask is None or getattr(mask, "cgopipe_causal", False)


def marked_causal(mask: torch.Tensor) -> torch.Tensor:
    """The same mask, of which is known that it hides nothing else."""
    mask.cgopipe_causal = True  # type: ignore[attr-defined]
    return mask


def _wrapped(module: nn.Module, around: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """While entered, `around` is called in place of a module's `forward`, with that and its arguments."""
    return with_forward(module, functools.partial(around, module.forward))


def _enter_layer(layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    micro_batch = current()
    if micro_batch is None:
        return forward(*args, **kwargs)
    if micro_batch.passes_layers:
        return _pass_layer(layer, forward, *args, **kwargs)
    micro_batch.experts_were_apart = False
    replacement = suspend(LayerEntry(layer, args[0] if args else kwargs["hidden_states"]))
    if replacement is None:
        return forward(*args, **kwargs)
    if args:
        return forward(replacement, *args[1:], **kwargs)
    return forward(**{**kwargs, "hidden_states": replacement})


def _pass_layer(layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Leaves a layer to others. The hidden state stands in for what they make of it, and is overwritten by it."""
    micro_batch = current()
    if micro_batch is None:
        return forward(*args, **kwargs)
    others = dict(kwargs)
    hidden = args[0] if args else others.pop("hidden_states")
    micro_batch.host_calls[layer] = HostCall(forward, args[1:], others)
    for cache in (value for value in (*args, *kwargs.values()) if isinstance(value, Cache)):
        note_tokens(cache, layer, hidden.shape[1])
    return hidden


def _need_weights(layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    micro_batch = current()
    if micro_batch is not None and not micro_batch.weights_ready:
        suspend(WeightsNeeded(layer))
    return forward(*args, **kwargs)


def _call_experts(
    layer: int, forward: Callable[..., Any], hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> Any:
    micro_batch = current()
    if micro_batch is None or not micro_batch.experts_apart:
        return forward(hidden, index, weights)
    micro_batch.experts_were_apart = True
    return suspend(ExpertsCall(layer, hidden, index, weights))


def _call_shared(forward: Callable[..., Any], hidden: torch.Tensor) -> Any:
    micro_batch = current()
    if micro_batch is None or not micro_batch.experts_apart:
        return forward(hidden)
    return micro_batch.ask_shared(hidden)


def _leave_stack(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    output, micro_batch = forward(*args, **kwargs), current()
    if micro_batch is None:
        return output
    computed = suspend(StackEnd(output[0] if isinstance(output, tuple) else output))
    micro_batch.passes_layers = micro_batch.joins
    return output if computed is None else computed


def _call_head(forward: Callable[..., Any], hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    micro_batch = current()
    if micro_batch is None or not micro_batch.passes_layers or micro_batch.step == 0 or args or kwargs:
        return forward(hidden, *args, **kwargs)
    return suspend(HeadCall(forward, hidden))


def _register(implementation: str) -> str:
    """Register our attention and mask functions around the library's; idempotent."""
    name = f"cgopipe_{implementation}"
    AttentionInterface.register(name, functools.partial(_attend, implementation))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, functools.partial(_mask, ALL_MASK_ATTENTION_FUNCTIONS[implementation]))
    return name


def _attend(
    implementation: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    indices = kwargs.pop("indices", None)
    if indices is not None and attention_mask is not None:
        attention_mask = _only_at(indices, attention_mask)
    micro_batch = current()
    cache = _cache_in_use(micro_batch, key, value)
    layer = int(module.layer_idx) if cache is None else cache.layer  # type: ignore[arg-type]
    call = AttentionCall(layer, implementation, module, query, key, value, attention_mask, kwargs, whole_cache=True)
    if micro_batch is None:
        return own_attention(call)(query, key, value, attention_mask, **kwargs)
    if cache is not None:
        call.key, call.value = cache.received(key, value)
        call.whole_cache = not (cache.passed_on and cache.step > 0)
    result: tuple[torch.Tensor, torch.Tensor | None] = suspend(call)
    return result


def _only_at(indices: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A mask that hides all but the tokens that sparse attention has chosen, as its model makes it for the library's.

    `indices` are [batch, queries, chosen] of those in the cache.
    """
    hidden = torch.ones(mask.shape[:1] + mask.shape[2:], dtype=torch.bool, device=mask.device)
    hidden = hidden.expand(len(indices), -1, -1).scatter(-1, indices.long(), False).unsqueeze(1)
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def _cache_in_use(micro_batch: GenerateCoroutine | None, key: torch.Tensor, value: torch.Tensor) -> LayerCache | None:
    """The layer's cache, unless the model computed with what that gave it."""
    if micro_batch is not None and micro_batch.step > 0:
        in_use, micro_batch.cache_in_use = micro_batch.cache_in_use, None
        return in_use if isinstance(in_use, LayerCache) else None
    return getattr(key, "layer", None) or getattr(value, "layer", None)


def _mask(library: Callable[..., torch.Tensor | None], *args: Any, **kwargs: Any) -> torch.Tensor | None:
    mask = library(*args, **kwargs)
    if mask is not None and kwargs.get("mask_function", causal_mask_function) is causal_mask_function:
        return marked_causal(mask)
    return mask


def eager_attention(module: nn.Module) -> Any:
    """The function that computes this module's attention step by step: it stands beside the module's class."""
    beside = (vars(sys.modules[kind.__module__]) for kind in type(module).__mro__)
    return next((names["eager_attention_forward"] for names in beside if "eager_attention_forward" in names), None)
