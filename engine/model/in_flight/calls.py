"""What several micro-batches call a layer with, as one call for some of their rows.

Rows stand one behind the other in every tensor that has them, or one for all. Masks end with the newest token, so that
shorter ones are filled up on the left with tokens that nobody sees.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers.cache_utils import Cache

from engine.model.coroutine import HostCall
from engine.model.hooks import is_causal, marked_causal
from engine.model.kvcache import layer_of
from sim.problem import within_window

SAME_FOR_ALL = "cache_position"
"""What models hand to layers whose caches have one length for all requests, which ours do not read."""


class CannotJoinError(TypeError):
    """A layer is called with something of which nobody knows how calls are joined."""


class Passed(NamedTuple):
    """Some rows of a micro-batch that has passed the layers: what it brought to the first one, and called each with."""

    hidden: torch.Tensor
    rows: Sequence[int]
    calls: Mapping[int, HostCall]
    num_tokens: int
    """That it has, padding and the newest one included."""


def row_pieces(tensor: torch.Tensor, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """Views of some rows, in few pieces; an index would have to go to the device first."""
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield tensor[rows[first] : rows[i - 1] + 1]
            first = i


class JoinedCalls:
    """The calls of one step, layer by layer. What several layers get is made once."""

    def __init__(self, passed: Sequence[Passed], cache: Cache, num_tokens: int, dtype: torch.dtype) -> None:
        self._passed, self._cache, self._num_tokens, self._dtype = passed, cache, num_tokens, dtype
        self._made: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # with what it is made of, so that ids stay theirs
        self._window: int | None = None  # of the layer that is asked for

    def of(self, layer: int) -> dict[str, Any]:
        """Arguments beside the hidden states. Raises CannotJoinError."""
        calls = [_by_name(one.calls[layer]) for one in self._passed]
        cache = layer_of(self._cache, layer)
        self._window = None if cache is None else cache.window
        if any(call.keys() != calls[0].keys() for call in calls):
            raise CannotJoinError(f"layer {layer} is called in several ways: {[list(call) for call in calls]}")
        return {name: self._joined(name, [call[name] for call in calls]) for name in calls[0]}

    def _joined(self, name: str, values: list[Any]) -> Any:
        key = self._window, *map(id, values)
        if key not in self._made:
            self._made[key] = self._join(name, values), values
        return self._made[key][0]

    def _join(self, name: str, values: list[Any]) -> Any:
        first = values[0]
        if "mask" in name:
            return self._mask(name, values)
        if isinstance(first, Cache):
            return self._cache
        if name == SAME_FOR_ALL:
            return first
        if isinstance(first, tuple | list):
            if any(type(value) is not type(first) or len(value) != len(first) for value in values):
                raise CannotJoinError(f"{name} differs in length")
            return type(first)([self._joined(name, list(items)) for items in zip(*values, strict=True)])
        if isinstance(first, torch.Tensor):
            return self._rows(name, values)
        if isinstance(first, bool | int | float | str | None) and all(value == first for value in values):
            return first
        raise CannotJoinError(f"{name} is a {type(first).__name__}")

    def _rows(self, name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        for tensor, one in zip(tensors, self._passed, strict=True):
            count = len(one.hidden)
            if not isinstance(tensor, torch.Tensor) or tensor.dim() < 2 or len(tensor) not in (1, count):
                raise CannotJoinError(f"{name} has no row for each request")
            parts += row_pieces(tensor.expand(count, *tensor.shape[1:]), one.rows)
        if len({part.shape[1:] for part in parts}) > 1:
            raise CannotJoinError(f"{name} depends on more than its own request")
        return torch.cat(parts)

    def _mask(self, name: str, masks: list[torch.Tensor | None]) -> torch.Tensor | None:
        """None, where all see all and are of one age."""
        width = within_window(self._num_tokens, self._window)
        if all(mask is None for mask in masks) and all(self._width(one) == width for one in self._passed):
            return None
        if any(mask is not None and (mask.dim() != 4 or mask.shape[-2] != 1) for mask in masks):
            raise CannotJoinError(f"{name} is no mask of one token of each request")
        dtype = next((mask.dtype for mask in masks if mask is not None), self._dtype)
        parts = [
            piece
            for mask, one in zip(masks, self._passed, strict=True)
            for piece in row_pieces(_filled(self._own(mask, one, dtype), width, dtype), one.rows)
        ]
        joined = torch.cat(parts)
        return marked_causal(joined) if all(map(is_causal, masks)) else joined

    def _width(self, one: Passed) -> int:
        """Tokens that the layer's cache keeps of its requests, of which a mask tells."""
        return int(within_window(one.num_tokens, self._window))

    def _own(self, mask: torch.Tensor | None, one: Passed, dtype: torch.dtype) -> torch.Tensor:
        count = len(one.hidden)
        if mask is not None:
            return mask.expand(count, *mask.shape[1:])
        shape = count, 1, 1, self._width(one)
        return one.hidden.new_full(shape, dtype is torch.bool, dtype=dtype)


def _by_name(call: HostCall) -> dict[str, Any]:
    """What a layer is called with beside the hidden states, which come first."""
    names = list(inspect.signature(call.forward).parameters)[1 : 1 + len(call.args)]
    return dict(zip(names, call.args, strict=True)) | call.kwargs


def _filled(mask: torch.Tensor, num_tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """The last so many columns; what is not there is seen by nobody."""
    more = num_tokens - mask.shape[-1]
    if more <= 0:
        return mask[..., -num_tokens:]
    return functional.pad(mask, (more, 0), value=False if dtype is torch.bool else torch.finfo(dtype).min)
