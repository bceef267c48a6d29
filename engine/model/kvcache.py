"""The KV cache of a micro-batch: what the model sees of it, and where its content lives.

The model's `update()` keeps the new keys and values for the executor, which moves them: to the host, or into a store on
the device. In decode the model then hands only the newest keys and values to attention, and the executor supplies the
rest where attention runs. A model that computes with the cache before attention (latent attention expands it) shows
that in prefill: its tensors are watched. Such a layer stops at `CacheNeeded` in decode and gets the whole cache. In
decode nothing is watched, but attention must receive the very tensors that the model was given.
"""

import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from engine.model.coroutine import CacheNeeded, current, suspend
from traces.errors import InputError


class KeysValues(NamedTuple):
    """Keys and values of some tokens: [batch, kv_heads, tokens, dim] each; heads and dim may differ."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[-2]

    def of_requests(self, first: int, stop: int | None = None) -> "KeysValues":
        """Views of what belongs to some of the requests."""
        return KeysValues(self.keys[first:stop], self.values[first:stop])


Copy = Callable[[torch.Tensor, torch.Tensor], object]

Allocate = Callable[[str, tuple[int, ...], torch.dtype], torch.Tensor]

Pair = tuple[torch.Tensor, torch.Tensor]
"""Where a copy goes to, and what is copied."""


class Kept(Protocol):
    """The keys and values of a micro-batch in one layer, as its tasks see them."""

    @property
    def locked(self) -> bool:
        """Whether it is page-locked host memory."""

    @property
    def num_tokens(self) -> int:
        """Of the longest request, without what is to be appended in this step."""

    @property
    def content(self) -> KeysValues:
        """All tokens, the newest at the end of each request."""

    @property
    def num_bytes(self) -> int:
        """Of all tokens."""

    def append(self, new: KeysValues, copy: Copy = torch.Tensor.copy_) -> None:
        """Adds tokens behind those that are there; `copy` puts the second of two tensors into the first."""

    def places(self, new: KeysValues) -> Iterable[Pair]:
        """Counts tokens as added that a lane copies: from where to where, each in one piece of memory."""

    def to_device(self, room: Allocate, new_tokens: int) -> tuple[KeysValues, list[Pair]]:
        """Where all tokens will lie in what `room` gives, with so many to come behind them, and the copies it takes."""

    def attend(self, kernel: Callable[..., torch.Tensor], query: torch.Tensor, **options: Any) -> torch.Tensor:
        """What a kernel of the host makes of a query and of all tokens."""


class Paged(Protocol):
    """The keys and values of a micro-batch whose requests share their memory with others, all layers of it."""

    def get(self, layer: int) -> Kept | None:
        """Those of one layer, if it has any."""

    def make(self, layer: int, like: KeysValues, *, by_tokens: bool, locked: bool) -> Kept:
        """The same, where the layer's room may still have to be made; `by_tokens` as of a `Store`."""


class Store:
    """Room for the keys and values of one micro-batch in one layer, in one memory.

    `by_tokens`: tokens lie one behind the other, each with all requests and heads, so that all of them are one piece of
    memory for a copy; else heads do, each with its tokens, so that attention reads them in one piece.
    """

    def __init__(
        self, like: KeysValues, capacity: int, allocate: Allocate, name: str, *, by_tokens: bool = False
    ) -> None:
        def room(tensor: torch.Tensor) -> torch.Tensor:
            batch, heads, _, dim = tensor.shape
            if by_tokens:
                return allocate(name, (capacity, batch, heads, dim), tensor.dtype).permute(1, 2, 0, 3)
            return allocate(name, (batch, heads, capacity, dim), tensor.dtype)

        self._room = KeysValues(*map(room, like))
        self.num_tokens = 0
        self.locked = False
        """Whether it is page-locked host memory."""

    def append(self, new: KeysValues, copy: Copy = torch.Tensor.copy_) -> None:
        """Adds tokens behind those that are there; `copy` puts the second of two tensors into the first."""
        for room, tensor in zip(self.grow(new.num_tokens), new, strict=True):
            copy(room, tensor)

    def grow(self, num_tokens: int) -> KeysValues:
        """Counts so many tokens more; views of them, which the caller fills."""
        first, self.num_tokens = self.num_tokens, self.num_tokens + num_tokens
        return KeysValues(*(room[:, :, first : self.num_tokens] for room in self._room))

    @property
    def content(self) -> KeysValues:
        """Views of all tokens."""
        return KeysValues(*(room[:, :, : self.num_tokens] for room in self._room))

    @property
    def num_bytes(self) -> int:
        return self.content.num_bytes

    def places(self, new: KeysValues) -> Iterable[Pair]:
        """Counts tokens as added that a lane copies: from where to where, each in one piece of memory."""
        return [
            (by_tokens(room), by_tokens(tensor).contiguous())
            for room, tensor in zip(self.grow(new.num_tokens), new, strict=True)
        ]

    def to_device(self, room: Allocate, new_tokens: int) -> tuple[KeysValues, list[Pair]]:
        """Where all tokens will lie in what `room` gives, with so many to come behind them, and the copies it takes."""
        loaded, copies = [], []
        for name, tensor in zip(KeysValues._fields, self.content, strict=True):
            requests, heads, tokens, dim = tensor.shape
            there = room(name, (tokens + new_tokens, requests, heads, dim), tensor.dtype)
            copies.append((there[:tokens], by_tokens(tensor)))
            loaded.append(there.permute(1, 2, 0, 3))
        return KeysValues(*loaded), copies

    def attend(self, kernel: Callable[..., torch.Tensor], query: torch.Tensor, **options: Any) -> torch.Tensor:
        """What a kernel of the host makes of a query and of all tokens."""
        return kernel(query, *self.content, **options)

    def close(self, free: Callable[[torch.Tensor], None]) -> None:
        """Gives the room back with `free`."""
        for tensor in self._room:
            free(tensor)


def by_tokens(tensor: torch.Tensor) -> torch.Tensor:
    """[tokens, batch, heads, dim] of [batch, heads, tokens, dim], as a view."""
    return tensor.permute(2, 0, 1, 3)


class _Watched(torch.Tensor):
    """A tensor on its way from the cache to attention that notices whether anything is computed with it."""

    layer: "LayerCache"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, _Watched):
                value.layer.touched()
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return _plain(result) if isinstance(result, torch.Tensor) else result


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def _apart(new: KeysValues) -> KeysValues:
    """The same in memory of its own, where as much again would live on with it: queries, say, beside them (DBRX)."""
    storages = {one.data_ptr(): one.nbytes() for one in (tensor.untyped_storage() for tensor in new)}
    return new if sum(storages.values()) < 2 * new.num_bytes else KeysValues(*(tensor.clone() for tensor in new))


class _IndexerKeys:
    """What sparse attention keeps beside keys and values to choose tokens by: it stays where it is computed."""

    indexer_keys: torch.Tensor | None = None  # [batch, tokens, dim]

    @property
    def is_indexer_initialized(self) -> bool:
        return self.indexer_keys is not None

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Adds those of new tokens; returns all."""
        before = [] if self.indexer_keys is None else [self.indexer_keys]
        self.indexer_keys = torch.cat([*before, indexer_key_states], dim=1)
        return self.indexer_keys


class LayerCache(_IndexerKeys, CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a micro-batch's cache as the model sees it."""

    is_sliding = False

    def __init__(self, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer
        self.new: dict[int, KeysValues] = {}  # by step, until the executor has put them into a store
        self.step = -1
        self.seen = 0
        self.passed_on = True  # whether the model hands the cache to attention as it is

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the new keys and values; returns what the model passes on to attention."""
        self.step += 1
        self.seen += key_states.shape[-2]
        new = self.new[self.step] = KeysValues(key_states, value_states)
        if self.step == 0:
            self.new[self.step] = _apart(new)
            return self._watched(key_states), self._watched(value_states)
        if not self.passed_on:
            whole: tuple[torch.Tensor, torch.Tensor] = suspend(CacheNeeded(self.layer))
            return whole
        micro_batch = current()
        if micro_batch is not None:
            micro_batch.cache_in_use = self
        return new

    def touched(self) -> None:
        """The model computes with the cache itself."""
        self.passed_on = False

    def received(self, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """What reached attention, without the watch. Raises RuntimeError if decode differs from prefill."""
        if self.step > 0:
            new = self.new[self.step]
            if keys is not new.keys or values is not new.values:
                raise RuntimeError(
                    f"layer {self.layer}: the model reads its KV cache in decode although it did not in prefill"
                )
            return new
        if not (isinstance(keys, _Watched) and isinstance(values, _Watched)):
            self.passed_on = False
        return KeysValues(_plain(keys), _plain(values))

    def take(self, step: int) -> KeysValues | None:
        """The new keys and values of `step`, once."""
        return self.new.pop(step, None)

    def _watched(self, tensor: torch.Tensor) -> torch.Tensor:
        watched = tensor.as_subclass(_Watched)
        watched.layer = self
        return watched

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1


class HostLayerCache(_IndexerKeys, DynamicLayer):  # type: ignore[no-untyped-call]
    """The cache of a layer that runs on the host whole: all tokens, in room that `allocate` gives at first use."""

    def __init__(self, capacity: int, allocate: Allocate) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._allocate = allocate
        self._store: Store | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the new keys and values behind the others; returns all."""
        new = KeysValues(key_states, value_states)
        if self._store is None:
            self._store = Store(new, self._capacity, self._allocate, "")
        self._store.append(new)
        return self._store.content

    def get_seq_length(self) -> int:
        return 0 if self._store is None else self._store.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


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


def cache_for(model: PreTrainedModel) -> Cache:
    """An empty cache that `model` accepts, with a LayerCache for every layer that keeps keys and values."""
    own = _own_cache_class(model)
    if own is None:
        cache: Cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        cache.layers = [_ours(layer, i) for i, layer in enumerate(cache.layers)]
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
    made = LayerCache(like.layer)
    made.step, made.seen, made.passed_on = 0, tokens - 1, like.passed_on
    return made


def kinds_of_cache(model: PreTrainedModel) -> set[str]:
    """The classes of what the library would have its layers keep."""
    own = _own_cache_class(model)
    if own is not None:
        return {own.__name__}
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return {type(layer).__name__ for layer in layers}


def layer_of(cache: Cache, layer: int) -> LayerCache | None:
    """The cache of one layer, if that layer keeps keys and values."""
    found = cache.layers[layer] if layer < len(cache.layers) else None
    return found if isinstance(found, LayerCache) else None


def _ours(layer: Any, index: int) -> Any:
    if not isinstance(layer, DynamicLayer):
        return layer  # a recurrent state, or nothing
    if type(layer).__name__ not in ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer"):
        raise InputError(f"the model keeps a cache of type {type(layer).__name__} in layer {index}: not supported yet")
    return LayerCache(index)


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
