"""Requests of a micro-batch whose keys and values lie in blocks, and what tasks do with them in one step."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from engine.host import BlockTable
from engine.memory.caches.kv_blocks import KVBlocks
from engine.model import KeysValues

Copy = Callable[[torch.Tensor, torch.Tensor], object]
Room = Callable[[str, tuple[int, ...], torch.dtype], torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]


class PagedRows:
    """The requests of one micro-batch, with the tokens that they have in this step, in all layers.

    Room for the newest tokens of each, `counts`, is theirs from the start; a lane puts them there when they are made.
    """

    def __init__(self, blocks: KVBlocks, requests: Sequence[int], counts: Sequence[int]) -> None:
        self.blocks, self.counts = blocks, counts
        self.table: BlockTable = blocks.extend(requests, counts)
        self._layers: dict[int, PagedLayer] = {}

    @property
    def num_tokens(self) -> int:
        """Of the longest request, the newest included."""
        return self.table.most_tokens

    def get(self, layer: int) -> "PagedLayer | None":
        """What they have in one layer, if it has room."""
        if layer not in self._layers and self.blocks.has_layer(layer):
            return self._layers.setdefault(layer, PagedLayer(self, layer))
        return self._layers.get(layer)

    def make(self, layer: int, like: KeysValues, *, by_tokens: bool, locked: bool) -> "PagedLayer":
        """The same, where the layer's room may still have to be made."""
        self.blocks.add_layer(layer, like, by_tokens=by_tokens, locked=locked)
        return self._layers.setdefault(layer, PagedLayer(self, layer))

    @cached_property
    def pieces(self) -> list[list[tuple[int, int, int]]]:
        """Of each request its blocks, with the first of its tokens there and the first behind them."""
        size, found = self.table.block_tokens, []
        for blocks, tokens in zip(self.table.blocks.tolist(), self.table.tokens.tolist(), strict=True):
            found.append([(blocks[at // size], at, min(tokens, at + size)) for at in range(0, tokens, size)])
        return found


class PagedLayer:
    """One layer of them."""

    def __init__(self, rows: PagedRows, layer: int) -> None:
        self._rows, self._layer = rows, layer
        self._room = rows.blocks.room(layer)
        self._has_newest = False
        self.locked = layer in rows.blocks.locked_layers

    @property
    def num_tokens(self) -> int:
        """Of the longest request, without what is to be appended in this step."""
        return self._rows.num_tokens - (0 if self._has_newest else max(self._rows.counts))

    @property
    def num_bytes(self) -> int:
        """Of all tokens."""
        return self._rows.blocks.token_bytes(self._layer) * int(self._rows.table.tokens.sum())

    def append(self, new: KeysValues, copy: Copy = torch.Tensor.copy_) -> None:
        """Puts the newest tokens of each request into its blocks; what is before them is padding."""
        self._has_newest = True
        if max(self._rows.counts) == 1:
            self._rows.blocks.write(self._layer, self._rows.table, new, self._rows.counts)
            return
        for there, tensor in self._newest(new):
            copy(there, tensor)

    def places(self, new: KeysValues) -> Iterator[Pair]:
        """Where the newest tokens go to, and they, each in one piece of memory."""
        self._has_newest = True
        for there, tensor in self._newest(new):
            yield there.transpose(0, 1), tensor.transpose(0, 1).contiguous()

    def _newest(self, new: KeysValues) -> Iterator[Pair]:
        """Block by block the room of the newest tokens, and these: [heads, tokens, dim]."""
        for row, (pieces, count) in enumerate(zip(self._rows.pieces, self._rows.counts, strict=True)):
            stop = pieces[-1][2]
            for room, tensor in zip(self._room, new, strict=True):
                newest = tensor[row, :, new.num_tokens - count :]
                for block, first, behind in pieces:
                    start = max(first, stop - count)
                    if start < behind:
                        before = start - (stop - count)
                        yield (
                            room[block, :, start - first : behind - first],
                            newest[:, before : before + behind - start],
                        )

    def to_device(self, room: Room, new_tokens: int) -> tuple[KeysValues, list[Pair]]:
        """Where all tokens will lie in what `room` gives, with so many to come behind them, and the copies it takes.

        Shorter requests begin later; before them are zeros, as what is masked must still be a number.
        """
        loaded, copies, width = [], [], self._rows.num_tokens
        for name, blocks in zip(KeysValues._fields, self._room, strict=True):
            there = room(name, (len(self._rows.pieces), width, blocks.shape[1], blocks.shape[3]), blocks.dtype)
            for row, pieces in zip(there, self._rows.pieces, strict=True):
                before = width - pieces[-1][2]
                row[:before].zero_()
                for block, first, behind in pieces:
                    count = min(behind, pieces[-1][2] - new_tokens) - first
                    if count > 0:
                        start = before + first
                        copies.append((row[start : start + count], blocks[block].transpose(0, 1)[:count]))
            loaded.append(there.transpose(1, 2))
        return KeysValues(*loaded), copies

    @property
    def content(self) -> KeysValues:
        """All tokens in one piece, for code that knows no blocks: the newest last, zeros before shorter requests."""
        found = []
        for blocks in self._room:
            shape = len(self._rows.pieces), blocks.shape[1], self._rows.num_tokens, blocks.shape[3]
            whole = torch.zeros(shape, dtype=blocks.dtype)
            for row, pieces in zip(whole, self._rows.pieces, strict=True):
                before = shape[2] - pieces[-1][2]
                for block, first, behind in pieces:
                    row[:, before + first : before + behind] = blocks[block][:, : behind - first]
            found.append(whole)
        return KeysValues(*found)

    def attend(self, kernel: Callable[..., torch.Tensor], query: torch.Tensor, **options: Any) -> torch.Tensor:
        """What a kernel of the host makes of a query and of all tokens: it reads blocks, where nothing is padded."""
        return kernel(query, *self._room, **{**options, "first_seen": None, "table": self._rows.table})
