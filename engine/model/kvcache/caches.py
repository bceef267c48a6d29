"""Caches that a model accepts in place of its own: a layer of ours for every layer that keeps keys and values."""

import copy
import sys
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from engine.model.kvcache.layer_cache import HostLayerCache, LayerCache
from traces.errors import InputError


def host_cache_for(model: PreTrainedModel, make_layer: Callable[[int], HostLayerCache]) -> Cache:
    """An empty cache that `model` accepts for layers that run on the host, each made at its first use."""
    cache: Cache = (_own_cache_class(model) or DynamicCache)()
    cache.layers = []
    cache.layer_class_to_replicate = lambda: make_layer(len(cache.layers))  # type: ignore[assignment]
    return cache


def note_tokens(cache: Cache, layer: int, count: int) -> None:
    """Counts tokens that a layer sees elsewhere, so that the model's masks and positions know of them."""
    while len(cache.layers) <= layer and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    found = layer_of(cache, layer)
    if found is not None:
        found.seen += count


def cache_for(model: PreTrainedModel, capacity: int = 0) -> Cache:
    """An empty cache that `model` accepts, with a LayerCache for every layer that keeps keys and values.

    It may come to hold so many tokens of each request.
    """
    own = _own_cache_class(model)
    if own is None:
        cache: Cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        cache.layers = [_ours(layer, i, capacity) for i, layer in enumerate(cache.layers)]
        return cache
    cache = own()
    cache.layers = []
    cache.layer_class_to_replicate = lambda: LayerCache(len(cache.layers))  # type: ignore[assignment]
    return cache


def joint_cache(like: Cache, tokens: int) -> Cache:
    """A cache for one step of decode of requests of several micro-batches, of which one is given.

    The longest of them has so many tokens, the newest included.
    """
    made = copy.copy(like)
    made.layers = [_joint_layer(one, tokens) for one in like.layers]
    return made


def _joint_layer(like: Any, tokens: int) -> LayerCache:
    if not isinstance(like, LayerCache):
        raise TypeError(f"requests of several micro-batches share no {type(like).__name__}")
    made = LayerCache(like.layer, like.window)
    made.step, made.seen, made.passed_on = 0, tokens - 1, like.passed_on
    return made


def kinds_of_cache(model: PreTrainedModel) -> set[str]:
    """The classes of what the library would have its layers keep."""
    own = _own_cache_class(model)
    if own is not None:
        return {own.__name__}
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return {type(layer).__name__ for layer in layers}


def windows_of(model: PreTrainedModel) -> dict[int, int]:
    """The layers whose caches keep the last so many tokens alone, as the library would have it."""
    if _own_cache_class(model) is not None:
        return {}
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    windows = ((i, getattr(layer, "sliding_window", None)) for i, layer in enumerate(layers))
    return {i: window for i, window in windows if window is not None}


def layer_of(cache: Cache | None, layer: int) -> LayerCache | None:
    """The cache of one layer, if that layer keeps keys and values."""
    if cache is None:
        return None
    found = cache.layers[layer] if layer < len(cache.layers) else None
    return found if isinstance(found, LayerCache) else None


def _ours(layer: Any, index: int, capacity: int) -> Any:
    if not isinstance(layer, DynamicLayer):
        return layer  # a recurrent state, or nothing
    if type(layer).__name__ not in ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer"):
        raise InputError(f"the model keeps a cache of type {type(layer).__name__} in layer {index}: not supported yet")
    made = LayerCache(index, getattr(layer, "sliding_window", None))
    made.room_of_index_keys(capacity)
    return made


def _own_cache_class(model: PreTrainedModel) -> type[Cache] | None:
    """The cache class that a model brings itself because it takes no other."""
    if model._supports_default_dynamic_cache():  # type: ignore[operator]
        return None
    module = sys.modules[type(model).__module__]
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Cache)]
    own = [c for c in classes if c.__module__ == module.__name__]
    if len(own) != 1:
        raise InputError(f"{type(model).__name__} keeps its cache in a way of its own: not supported")
    return own[0]
