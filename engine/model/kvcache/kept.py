"""What is kept of tokens, as tasks see it: keys and values, wherever they lie."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch


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


class AsItLies(NamedTuple):
    """All that is kept of some requests: in order from the `oldest` token on, and then from the start."""

    content: KeysValues
    oldest: int = 0

    def turned(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """A mask of tokens in order as one of these."""
        return mask if mask is None or not self.oldest else mask.roll(self.oldest, -1)


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
        """Of the longest request, without what is to be appended in this step, and without what a window drops."""

    def num_tokens_with(self, more: int) -> int:
        """The same once so many more have come."""

    @property
    def content(self) -> KeysValues:
        """All tokens in order, the newest at the end of each request."""

    @property
    def as_it_lies(self) -> AsItLies:
        """The same without a copy, where tokens in one piece may be had so."""

    @property
    def num_bytes(self) -> int:
        """Of all tokens."""

    def append(self, new: KeysValues, copy: Copy = torch.Tensor.copy_) -> None:
        """Adds tokens behind those that are there; `copy` puts the second of two tensors into the first."""

    def places(self, new: KeysValues) -> Iterable[Pair]:
        """Counts tokens as added that a lane copies: from where to where, each in one piece of memory."""

    def to_device(self, room: Allocate, new_tokens: int) -> tuple[KeysValues, list[Pair]]:
        """Where all tokens will lie in what `room` gives, with so many to come behind them, and the copies it takes."""

    def attend(
        self,
        kernel: Callable[..., torch.Tensor],
        query: torch.Tensor,
        lengths: Sequence[int] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """What a kernel of the host makes of a query and of the last so many tokens of each request, None: all."""


class Paged(Protocol):
    """The keys and values of a micro-batch whose requests share their memory with others, all layers of it."""

    def get(self, layer: int) -> Kept | None:
        """Those of one layer, if it has any."""

    def make(self, layer: int, like: KeysValues, *, by_tokens: bool, locked: bool) -> Kept:
        """The same, where the layer's room may still have to be made; `by_tokens` as of a `Store`."""
