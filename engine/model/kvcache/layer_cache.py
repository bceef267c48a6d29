"""One layer of a micro-batch's cache as the model sees it, on the device or on the host."""

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from engine.model.coroutine import CacheNeeded, current, suspend
from engine.model.kvcache.index_keys import IndexKeys
from engine.model.kvcache.kept import Allocate, KeysValues
from engine.model.kvcache.store import Store
from sim.problem import within_window


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


class LayerCache(IndexKeys, CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a micro-batch's cache as the model sees it.

    Its `update()` keeps the new keys and values for the executor, which moves them: to the host, or into a store on the
    device. In decode the model then hands only the newest keys and values to attention, and the executor supplies the
    rest where attention runs. A model that computes with the cache before attention (latent attention expands it) shows
    that in prefill: its tensors are watched. Such a layer stops at `CacheNeeded` in decode and gets the whole cache. In
    decode nothing is watched, but attention must receive the very tensors that the model was given.

    With a `window` the last so many tokens are kept, of which the model's masks are told.
    """

    def __init__(self, layer: int, window: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer, self.window, self.is_sliding = layer, window, window is not None
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

    def drop_old(self) -> None:
        """Lets go of what the window drops of the prompts, once they have attended to it."""
        new, window = self.new.get(0), self.window
        if new is not None and window is not None and new.num_tokens > window:
            self.new[0] = KeysValues(*(tensor[:, :, -window:].clone() for tensor in new))

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
        return _mask_sizes(self.seen, query_length, self.window)

    def get_max_length(self) -> int:
        return -1


class HostLayerCache(IndexKeys, DynamicLayer):  # type: ignore[no-untyped-call]
    """The cache of a layer that runs on the host whole, in room that `allocate` gives at first use.

    All tokens, or the last of them that a `window` holds.
    """

    def __init__(self, capacity: int, allocate: Allocate, window: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity, self._window = capacity, window
        self._allocate = allocate
        self._store: Store | None = None
        self._seen = 0
        self.room_of_index_keys(capacity, allocate)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the new keys and values behind the others; returns all that the new ones may attend to."""
        new = KeysValues(key_states, value_states)
        if self._store is None:
            self._store = Store(new, self._capacity, self._allocate, "", window=self._window)
        self._store.append(new)
        self._seen += new.num_tokens
        return new if self._seen == new.num_tokens else self._store.content

    def get_seq_length(self) -> int:
        return self._seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return _mask_sizes(self._seen, query_length, self._window)


def _mask_sizes(seen: int, query_length: int, window: int | None) -> tuple[int, int]:
    """Tokens that a step's masks are for, new ones included, and the first of them: of those before, what is kept.

    In a full window the first new token takes the place of the oldest.
    """
    before = within_window(seen + 1, window) - 1
    return before + query_length, seen - before
