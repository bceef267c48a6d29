"""The blocks of all layers: those whose caches keep as much of a request share blocks, each window has its own."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from engine.host import BlockTable
from engine.memory.caches.kv_blocks import KVBlocks
from engine.memory.host_blocks import HostBlocks
from engine.model import Anatomy
from sim.admission import BLOCK_TOKENS, KvLayers


class KVPools:
    """The blocks of one run by the window of their layers; each request has some in every pool."""

    def __init__(
        self,
        num_blocks: Mapping[int | None, int],
        host: HostBlocks,
        windows: Sequence[int | None] = (),
        *,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        """`num_blocks` by window, None for those that keep all; `windows` by layer, None for layers beyond them."""
        self._windows = windows
        self.pools = {
            window: KVBlocks({}, count, host, block_tokens=block_tokens, window=window)
            for window, count in num_blocks.items()
        }

    def of(self, layer: int) -> KVBlocks:
        """The blocks that a layer's keys and values lie in."""
        return self.pools[self._windows[layer] if layer < len(self._windows) else None]

    def take_rooms(self, token_bytes: Mapping[int, tuple[int, int]], *, locked: bool) -> None:
        """Takes the memory of layers whose keys and values are known by their size alone: what is new takes long."""
        for layer, sizes in token_bytes.items():
            self.of(layer).take_rooms({layer: sizes}, locked=locked)

    def extend(self, requests: Sequence[int], tokens: Sequence[int]) -> dict[int | None, BlockTable]:
        """Makes room for so many tokens more of each request; their tables with these tokens, by window.

        Raises OutOfMemory, having changed nothing, if there are not blocks for all.
        """
        for pool in self.pools.values():
            pool.check_room(requests, tokens)
        return {window: pool.extend(requests, tokens) for window, pool in self.pools.items()}

    def seen_tokens(self, requests: Sequence[int]) -> list[int]:
        """Tokens that each request has had, those that windows have dropped included."""
        return next(iter(self.pools.values())).seen_tokens(requests)

    def release(self, request: int) -> None:
        """A request leaves: its blocks are free. Raises KeyError for one that is not there."""
        for pool in self.pools.values():
            pool.release(request)


def kv_layers(anatomy: Anatomy) -> tuple[KvLayers, ...]:
    """A model's layers by their windows: a block of each counts in proportion to its bytes, where all are known."""
    widths, known = Counter[int | None](), all(anatomy.kv_widths)
    for window, both in zip(anatomy.windows, anatomy.kv_widths, strict=True):
        widths[window] += sum(both) if known and both else 1
    unit = math.gcd(*widths.values())
    return tuple(KvLayers(width // unit, window) for window, width in widths.items())


def blocks_of_all(layers: Sequence[KvLayers], tokens: Sequence[int], block_tokens: int = BLOCK_TOKENS) -> int:
    """Blocks of requests that have so many tokens each, all together; at least one."""
    return max(1, int(sum(one.blocks_of(count, block_tokens) for one in layers for count in tokens)))
