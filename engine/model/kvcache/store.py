"""Room for the keys and values of one micro-batch in one layer, of which a sliding window drops the oldest."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from engine.model.kvcache.kept import Allocate, AsItLies, Copy, KeysValues, Pair
from engine.model.kvcache.ring import ring_pieces
from sim.problem import within_window


class Store:
    """Room for the keys and values of one micro-batch in one layer, in one memory.

    With a `window` it keeps the last so many tokens: the newest take the places of the oldest.

    `by_tokens`: tokens lie one behind the other, each with all requests and heads, so that all of them are one piece of
    memory for a copy; else heads do, each with its tokens, so that attention reads them in one piece.
    """

    def __init__(
        self,
        like: KeysValues,
        capacity: int,
        allocate: Allocate,
        name: str,
        *,
        window: int | None = None,
        by_tokens: bool = False,
    ) -> None:
        size = int(within_window(capacity, window))

        def room(tensor: torch.Tensor) -> torch.Tensor:
            batch, heads, _, dim = tensor.shape
            if by_tokens:
                return allocate(name, (size, batch, heads, dim), tensor.dtype).permute(1, 2, 0, 3)
            return allocate(name, (batch, heads, size, dim), tensor.dtype)

        self._room = KeysValues(*map(room, like))
        self._capacity, self._size = capacity, size
        self._seen = 0
        self.locked = False
        """Whether it is page-locked host memory."""

    def append(self, new: KeysValues, copy: Copy = torch.Tensor.copy_) -> None:
        """Adds tokens behind those that are there; `copy` puts the second of two tensors into the first."""
        for room, tensor in self._grow(new):
            copy(room, tensor)

    def _grow(self, new: KeysValues) -> list[Pair]:
        """Counts tokens as added; where those of them go that are kept, which the caller copies."""
        first, self._seen = self._seen, self._seen + new.num_tokens
        if self._seen > self._capacity:
            raise RuntimeError(f"a KV cache with room for {self._capacity} tokens is given {self._seen}")
        kept = ring_pieces(max(first, self._seen - self._size), self._seen, self._size)
        return [
            (room[:, :, place : place + stop - start], tensor[:, :, start - first : stop - first])
            for place, start, stop in kept
            for room, tensor in zip(self._room, new, strict=True)
        ]

    @property
    def num_tokens(self) -> int:
        """That it has of each request."""
        return min(self._seen, self._size)

    def num_tokens_with(self, more: int) -> int:
        """The same once so many more have come."""
        return min(self._seen + more, self._size)

    @property
    def as_it_lies(self) -> AsItLies:
        """Views of all tokens."""
        oldest = self._seen % self._size if self._seen > self._size else 0
        return AsItLies(KeysValues(*(room[:, :, : self.num_tokens] for room in self._room)), oldest)

    @property
    def content(self) -> KeysValues:
        """All tokens in order: views, where they lie so."""
        views, oldest = self.as_it_lies
        if not oldest:
            return views
        return KeysValues(*(torch.cat((room[:, :, oldest:], room[:, :, :oldest]), 2) for room in views))

    @property
    def num_bytes(self) -> int:
        return self.as_it_lies.content.num_bytes

    def places(self, new: KeysValues) -> Iterable[Pair]:
        """Counts tokens as added that a lane copies: from where to where, each in one piece of memory."""
        return [(by_tokens(room), by_tokens(tensor).contiguous()) for room, tensor in self._grow(new)]

    def to_device(self, room: Allocate, new_tokens: int) -> tuple[KeysValues, list[Pair]]:
        """Where all tokens will lie in what `room` gives, with so many to come behind them, and the copies it takes.

        They lie there in order, without those that the new ones take the places of.
        """
        loaded, copies = [], []
        width = self.num_tokens_with(new_tokens)
        first = self._seen + new_tokens - width
        for name, tensor in zip(KeysValues._fields, self._room, strict=True):
            requests, heads, _, dim = tensor.shape
            there = room(name, (width, requests, heads, dim), tensor.dtype)
            for place, start, stop in ring_pieces(first, self._seen, self._size):
                here = by_tokens(tensor[:, :, place : place + stop - start])
                copies.append((there[start - first : stop - first], here))
            loaded.append(there.permute(1, 2, 0, 3))
        return KeysValues(*loaded), copies

    def attend(
        self,
        kernel: Callable[..., torch.Tensor],
        query: torch.Tensor,
        lengths: Sequence[int] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """What a kernel of the host makes of a query and of the last so many tokens of each request, None: all.

        It minds no order, but what comes before these must lie before them.
        """
        if lengths is None or min(lengths) >= self.num_tokens:
            return kernel(query, *self.as_it_lies.content, **options)
        first_seen = (self.num_tokens - torch.tensor(lengths)).clamp(min=0)
        return kernel(query, *self.content, first_seen=first_seen, **options)

    def close(self, free: Callable[[torch.Tensor], None]) -> None:
        """Gives the room back with `free`."""
        for tensor in self._room:
            free(tensor)


def by_tokens(tensor: torch.Tensor) -> torch.Tensor:
    """[tokens, batch, heads, dim] of [batch, heads, tokens, dim], as a view."""
    return tensor.permute(2, 0, 1, 3)
