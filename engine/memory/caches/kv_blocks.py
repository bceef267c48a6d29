"""KV caches of requests in blocks of host memory, so that what one request leaves another can use at once.

Blocks are numbered, the same in every layer: a request has one list of blocks, whose keys and values of a layer lie in
that layer's room. They are [blocks, heads, tokens, dim] there, so that attention reads a head's tokens of a block in
one piece; where they cross the link, [blocks, tokens, heads, dim], so that a block's tokens are one copy. A room is
taken once, as large as the memory plan says; requests enter, grow and leave inside it. Of a sliding window a request
has no more blocks than the window fills: its newest tokens take the places of the oldest.
"""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from engine.device import OutOfMemory
from engine.host import BlockTable, check_block_tokens
from engine.memory.host_blocks import HostBlocks
from engine.model import KeysValues, ring_pieces
from sim.admission import BLOCK_TOKENS, KvLayers
from sim.problem import within_window
from sim.schedule import MemoryPart


@dataclass(slots=True)
class _Held:
    """What a request has."""

    blocks: list[int] = field(default_factory=list)
    tokens: int = 0
    """That it has had, of which a window may have dropped some."""


class KVBlocks:
    """The blocks of one run, for any thread: but what is in a request's blocks is read and written in turn."""

    def __init__(
        self,
        like: Mapping[int, KeysValues],
        num_blocks: int,
        host: HostBlocks,
        *,
        block_tokens: int = BLOCK_TOKENS,
        locked: Collection[int] = (),
        window: int | None = None,
    ) -> None:
        """`like`: by layer, any keys and values like its own. Rooms of `locked` layers are page-locked.

        Layers of which nothing is known yet are added when their first keys and values are. Of each request the last
        tokens are kept that a `window` holds.
        """
        self.block_tokens = check_block_tokens(block_tokens)
        self.num_blocks = num_blocks
        self.window = window
        self._host = host
        self._rooms: dict[int, KeysValues] = {}
        self.locked_layers: set[int] = set()
        """Those whose room is page-locked: where the system refuses that, it is not."""
        self._lock = threading.Lock()
        self._free = list(reversed(range(num_blocks)))
        self._held: dict[int, _Held] = {}
        for layer, one in like.items():
            self.add_layer(layer, one, by_tokens=False, locked=layer in locked)

    def take_rooms(self, token_bytes: Mapping[int, tuple[int, int]], *, locked: bool) -> None:
        """Takes the memory of layers whose keys and values are known by their size alone: what is new takes long."""
        for layer, sizes in token_bytes.items():
            for name, size in zip(KeysValues._fields, sizes, strict=True):
                num_bytes = self.num_blocks * self.block_tokens * size
                self._host.take(MemoryPart.KV_CACHE, _name(name, layer), num_bytes, locked=locked)

    def add_layer(self, layer: int, like: KeysValues, *, by_tokens: bool, locked: bool) -> None:
        """Room for a layer's keys and values, which are like these, if it has none.

        `by_tokens`: the tokens of a block are one piece of memory, with all heads; else those of a head are.
        """
        with self._lock:
            if layer not in self._rooms:
                shape = self.num_blocks, self.block_tokens
                room, is_locked = _room(like, shape, self._host, layer, by_tokens=by_tokens, locked=locked)
                self._rooms[layer] = room
                self.locked_layers |= {layer} if is_locked else set()

    def has_layer(self, layer: int) -> bool:
        """Whether a layer has room."""
        with self._lock:
            return layer in self._rooms

    @property
    def block_bytes(self) -> int:
        """A block in all layers."""
        with self._lock:
            return sum(map(bytes_per_token, self._rooms.values())) * self.block_tokens

    def token_bytes(self, layer: int) -> int:
        """What a token takes in a layer."""
        return bytes_per_token(self._rooms[layer])

    @property
    def held_blocks(self) -> dict[int, int]:
        """How many each request has."""
        with self._lock:
            return {request: len(one.blocks) for request, one in self._held.items()}

    @property
    def free_blocks(self) -> int:
        """Blocks that no request has."""
        with self._lock:
            return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks of a request that has had so many tokens."""
        return int(KvLayers(window=self.window).blocks_of(tokens, self.block_tokens))

    def check_room(self, requests: Sequence[int], tokens: Sequence[int]) -> None:
        """Raises OutOfMemory if there are not blocks for so many tokens more of each request."""
        with self._lock:
            self._blocks_to_take(requests, tokens)

    def seen_tokens(self, requests: Sequence[int]) -> list[int]:
        """Tokens that each request has had, those that the window has dropped included."""
        with self._lock:
            return [self._held[request].tokens for request in requests]

    def extend(self, requests: Sequence[int], tokens: Sequence[int]) -> BlockTable:
        """Makes room for so many tokens more of each request, in every layer; a request that is new enters.

        Their table with these tokens. Raises OutOfMemory, having changed nothing, if there are not blocks for all.
        """
        if len(set(requests)) != len(requests) or min(tokens, default=1) < 1:
            raise ValueError(
                f"requests {list(requests)}, {list(tokens)} tokens more: each once, with at least one token"
            )
        with self._lock:
            more = self._blocks_to_take(requests, tokens)
            for request, count, wanted in zip(requests, tokens, more, strict=True):
                one = self._held.get(request) or _Held()
                one.blocks += [self._free.pop() for _ in range(wanted)]
                one.tokens += count
                self._held[request] = one
            return self._table(requests)

    def table(self, requests: Sequence[int]) -> BlockTable:
        """Where the tokens of some requests lie now. Raises KeyError for one that is not there."""
        with self._lock:
            return self._table(requests)

    def release(self, request: int) -> None:
        """A request leaves: its blocks are free. Raises KeyError for one that is not there."""
        with self._lock:
            blocks = self._held.pop(request).blocks
            self._free += reversed(blocks)

    def room(self, layer: int) -> KeysValues:
        """All blocks of a layer: what a block table is a table of."""
        return self._rooms[layer]

    def write(
        self,
        layer: int,
        table: BlockTable,
        new: KeysValues,
        counts: Sequence[int] | None = None,
        seen: Sequence[int] | None = None,
    ) -> None:
        """Puts the newest tokens of a table's requests into their blocks of a layer.

        `new` [requests, heads, tokens, dim] ends with each request's newest token. Of it count so many tokens of each
        request, None: all that the request has; what is before is padding. Each has had so many tokens, `seen`, if a
        window has dropped some.
        """
        rows, columns, blocks, slots = _newest(table, new.num_tokens, counts, seen, self.window)
        for room, tensor in zip(self._rooms[layer], new, strict=True):
            room[blocks, :, slots] = tensor[rows, :, columns]

    def pieces(self, layer: int, request: int) -> Iterator[KeysValues]:
        """Views of a request's tokens in order: of each block [1, heads, tokens, dim]."""
        with self._lock:
            held = self._held[request]
            blocks, tokens = list(held.blocks), held.tokens
        for number, slot, start, stop in pieces_in_blocks(blocks, tokens, self.block_tokens, self.window):
            slots = slice(slot, slot + stop - start)
            yield KeysValues(*(room[number : number + 1, :, slots] for room in self._rooms[layer]))

    def _blocks_to_take(self, requests: Sequence[int], tokens: Sequence[int]) -> list[int]:
        held = [self._held.get(request) or _Held() for request in requests]
        more = [self.blocks_for(one.tokens + count) - len(one.blocks) for one, count in zip(held, tokens, strict=True)]
        self._check_free(requests, more)
        return more

    def _check_free(self, requests: Sequence[int], more: Sequence[int]) -> None:
        left = len(self._free)
        for request, wanted in zip(requests, more, strict=True):
            if wanted > left:
                raise OutOfMemory(
                    f"request {request} needs {wanted} more blocks of {self.block_tokens} tokens of the KV cache, but "
                    f"{left} of {self.num_blocks} are left: give it more room, or fewer requests at a time"
                )
            left -= wanted

    def _table(self, requests: Sequence[int]) -> BlockTable:
        held = [self._held[request] for request in requests]
        kept = [int(within_window(one.tokens, self.window)) for one in held]
        return BlockTable.of([one.blocks for one in held], kept, self.block_tokens)


def pieces_in_blocks(
    blocks: Sequence[int], tokens: int, block_tokens: int, window: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """Of a request that has had so many tokens: a block, a slot in it, and the tokens that lie from it on, in order."""
    kept = within_window(tokens, window)
    for place, start, stop in ring_pieces(tokens - kept, tokens, window or tokens):
        for at, first, behind in _cut(place, start, stop, block_tokens):
            yield blocks[at // block_tokens], at % block_tokens, first, behind


def _cut(place: int, start: int, stop: int, block_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Places one behind the other, cut where blocks end."""
    while start < stop:
        behind = min(stop, start + block_tokens - place % block_tokens)
        yield place, start, behind
        place, start = place + behind - start, behind


def bytes_per_token(like: KeysValues) -> int:
    """Of one layer: what a token of one request takes."""
    return sum(one.shape[1] * one.shape[3] * one.itemsize for one in like)


def _room(
    like: KeysValues, blocks: tuple[int, int], host: HostBlocks, layer: int, *, by_tokens: bool, locked: bool
) -> tuple[KeysValues, bool]:
    """A layer's room for so many blocks of so many tokens, and whether all of it is page-locked."""
    made, is_locked = [], True
    for name, tensor in zip(KeysValues._fields, like, strict=True):
        heads, dim = tensor.shape[1], tensor.shape[3]
        shape = (*blocks, heads, dim) if by_tokens else (blocks[0], heads, blocks[1], dim)
        num_bytes = torch.Size(shape).numel() * tensor.itemsize
        block = host.take(MemoryPart.KV_CACHE, _name(name, layer), num_bytes, locked=locked)
        room = block.view(shape, tensor.dtype)
        made.append(room.transpose(1, 2) if by_tokens else room)
        is_locked = is_locked and block.locked
    return KeysValues(*made), is_locked


def _name(part: str, layer: int) -> str:
    return f"{part} of layer {layer} in blocks"


def _newest(
    table: BlockTable, width: int, counts: Sequence[int] | None, seen: Sequence[int] | None, window: int | None
) -> tuple[torch.Tensor, ...]:
    """Of new tokens [requests, width]: request and column of each that counts, and block and slot that it goes to."""
    kept = torch.from_numpy(table.tokens)
    tokens = kept if seen is None else torch.as_tensor(seen)
    places = torch.arange(width) + (tokens - width)[:, None]
    first = torch.zeros_like(tokens) if counts is None else (tokens - torch.as_tensor(counts)).clamp(min=0)
    rows, columns = (places >= torch.maximum(first, tokens - kept)[:, None]).nonzero(as_tuple=True)
    place = places[rows, columns] if window is None else places[rows, columns] % window
    blocks = torch.from_numpy(table.blocks)[rows, place // table.block_tokens]
    return rows, columns, blocks, place % table.block_tokens
