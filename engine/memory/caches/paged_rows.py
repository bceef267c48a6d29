"""Requests of a micro-batch whose keys and values lie in blocks, and what tasks do with them in one step."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from engine.memory.caches.kv_blocks import pieces_in_blocks
from engine.memory.caches.kv_pools import KVPools
from engine.model import AsItLies, KeysValues
from sim.problem import within_window

Copy = Callable[[torch.Tensor, torch.Tensor], object]
Room = Callable[[str, tuple[int, ...], torch.dtype], torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]
Piece = tuple[int, int, int, int]
"""A block, a slot in it, and the tokens that lie from it on: the first, and the first behind them."""


class PagedRows:
    """The requests of one micro-batch, with the tokens that they have in this step, in all layers.

    Room for the newest tokens of each, `counts`, is theirs from the start; a lane puts them there when they are made.
    """

    def __init__(self, pools: KVPools, requests: Sequence[int], counts: Sequence[int]) -> None:
        self.pools, self.counts = pools, counts
        self.tables = pools.extend(requests, counts)
        self.seen = pools.seen_tokens(requests)
        self._layers: dict[int, PagedLayer] = {}
        self._pieces: dict[int | None, list[list[Piece]]] = {}

    @property
    def num_tokens(self) -> int:
        """Of the longest request, the newest included, and those that windows have dropped."""
        return max(self.seen)

    def get(self, layer: int) -> "PagedLayer | None":
        """What they have in one layer, if it has room."""
        if layer not in self._layers and self.pools.of(layer).has_layer(layer):
            return self._layers.setdefault(layer, PagedLayer(self, layer))
        return self._layers.get(layer)

    def make(self, layer: int, like: KeysValues, *, by_tokens: bool, locked: bool) -> "PagedLayer":
        """The same, where the layer's room may still have to be made."""
        self.pools.of(layer).add_layer(layer, like, by_tokens=by_tokens, locked=locked)
        return self._layers.setdefault(layer, PagedLayer(self, layer))

    def pieces(self, window: int | None) -> list[list[Piece]]:
        """Of each request where its tokens lie that layers with a window keep, in order."""
        if window not in self._pieces:
            table = self.tables[window]
            each = zip(table.blocks.tolist(), self.seen, strict=True)
            self._pieces[window] = [[*pieces_in_blocks(*one, table.block_tokens, window)] for one in each]
        return self._pieces[window]


class PagedLayer:
    """One layer of them."""

    def __init__(self, rows: PagedRows, layer: int) -> None:
        self._rows, self._layer = rows, layer
        self._blocks = rows.pools.of(layer)
        self._window, self._table = self._blocks.window, rows.tables[self._blocks.window]
        self._room = self._blocks.room(layer)
        self._has_newest = False
        self.locked = layer in self._blocks.locked_layers

    @property
    def num_tokens(self) -> int:
        """Of the longest request, without what is to be appended in this step, and without what a window drops."""
        return self.num_tokens_with(0)

    def num_tokens_with(self, more: int) -> int:
        """The same once so many more have come."""
        before = self._rows.num_tokens - (0 if self._has_newest else max(self._rows.counts))
        return int(within_window(before + more, self._window))

    @property
    def num_bytes(self) -> int:
        """Of all tokens."""
        return self._blocks.token_bytes(self._layer) * int(self._table.tokens.sum())

    def append(self, new: KeysValues, copy: Copy = torch.Tensor.copy_) -> None:
        """Puts the newest tokens of each request into its blocks; what is before them is padding."""
        self._has_newest = True
        if max(self._rows.counts) == 1:
            self._blocks.write(self._layer, self._table, new, self._rows.counts, self._rows.seen)
            return
        for there, tensor in self._newest(new):
            copy(there, tensor)

    def places(self, new: KeysValues) -> Iterator[Pair]:
        """Where the newest tokens go to, and they, each in one piece of memory."""
        self._has_newest = True
        for there, tensor in self._newest(new):
            yield there.transpose(0, 1), tensor.transpose(0, 1).contiguous()

    def _newest(self, new: KeysValues) -> Iterator[Pair]:
        """Block by block the room of the newest tokens that are kept, and these: [heads, tokens, dim].

        Of prompts longer than the window `new` may have lost what that drops.
        """
        for row, (pieces, seen, count) in enumerate(
            zip(self._rows.pieces(self._window), self._rows.seen, self._rows.counts, strict=True)
        ):
            for room, tensor in zip(self._room, new, strict=True):
                newest, before = tensor[row], seen - new.num_tokens
                for block, slot, start, stop in pieces:
                    first = max(start, seen - count)
                    if first < stop:
                        yield (
                            room[block, :, slot + first - start : slot + stop - start],
                            newest[:, first - before : stop - before],
                        )

    def to_device(self, room: Room, new_tokens: int) -> tuple[KeysValues, list[Pair]]:
        """Where all tokens will lie in what `room` gives, with so many to come behind them, and the copies it takes.

        Shorter requests begin later; before them are zeros, as what is masked must still be a number.
        """
        loaded, copies, width = [], [], self._table.most_tokens
        for name, blocks in zip(KeysValues._fields, self._room, strict=True):
            there = room(name, (len(self._rows.seen), width, blocks.shape[1], blocks.shape[3]), blocks.dtype)
            for row, before, seen, pieces in self._each(there):
                row[: max(0, before + pieces[0][2])].zero_()
                for block, slot, start, stop in pieces:
                    count = min(stop, seen - new_tokens) - start
                    if count > 0:
                        at = before + start
                        copies.append((row[at : at + count], blocks[block].transpose(0, 1)[slot : slot + count]))
            loaded.append(there.transpose(1, 2))
        return KeysValues(*loaded), copies

    @property
    def content(self) -> KeysValues:
        """All tokens in one piece, for code that knows no blocks: the newest last, zeros before shorter requests."""
        found = []
        for blocks in self._room:
            shape = len(self._rows.seen), blocks.shape[1], self._table.most_tokens, blocks.shape[3]
            whole = torch.zeros(shape, dtype=blocks.dtype)
            for row, before, _, pieces in self._each(whole):
                for block, slot, start, stop in pieces:
                    row[:, before + start : before + stop] = blocks[block][:, slot : slot + stop - start]
            found.append(whole)
        return KeysValues(*found)

    @property
    def as_it_lies(self) -> AsItLies:
        """The same."""
        return AsItLies(self.content)

    def _each(self, whole: torch.Tensor) -> Iterator[tuple[torch.Tensor, int, int, list[Piece]]]:
        """Of each request its row, where its token 0 would lie there, how many it has had, and where they lie."""
        for row, seen, pieces in zip(whole, self._rows.seen, self._rows.pieces(self._window), strict=True):
            yield row, self._table.most_tokens - seen, seen, pieces

    def attend(
        self,
        kernel: Callable[..., torch.Tensor],
        query: torch.Tensor,
        lengths: Sequence[int] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """What a kernel of the host makes of a query and of all tokens: it reads blocks, where nothing is padded."""
        return kernel(query, *self._room, table=self._table, **options)
