"""Where tokens lie in a KV cache that is kept in blocks: the block table of some requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np

from engine.host.bits import Array
from traces.errors import InputError


def check_block_tokens(block_tokens: int) -> int:
    """The same number. Raises InputError where a block cannot have so many tokens."""
    if block_tokens < 1 or block_tokens & (block_tokens - 1):
        raise InputError(f"block_tokens = {block_tokens}: a power of two is needed, such as 16")
    return block_tokens


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The blocks of some requests, the same ones in every layer; made by `of`, once a step, for all layers."""

    blocks: Array
    """int64 [requests, blocks of the longest one], in order of tokens; behind a request's last one, any number."""
    tokens: Array
    """int64 [requests]: how many each has, at least one."""
    block_tokens: int
    most_tokens: int
    num_blocks: int
    """A cache that it is a table of has at least so many."""

    @classmethod
    def of(cls, blocks: Sequence[Sequence[int]], tokens: Sequence[int], block_tokens: int) -> Self:
        """Of each request's blocks, in order of its tokens, and of how many tokens it has. Raises ValueError."""
        check_block_tokens(block_tokens)
        counts, lengths = np.array(tokens, np.int64), np.array([len(one) for one in blocks], np.int64)
        if len(counts) != len(lengths) or (counts < 1).any() or (counts > lengths * block_tokens).any():
            raise ValueError(
                f"block table: {counts.tolist()} tokens in {lengths.tolist()} blocks of {block_tokens}: each "
                f"request needs at least one token, and blocks for all of them"
            )
        table = np.zeros((len(lengths), lengths.max(initial=0)), np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = np.fromiter(chain.from_iterable(blocks), np.int64)
        if table.min(initial=0) < 0:
            raise ValueError("block table: a block has a number below 0")
        return cls(table, counts, block_tokens, int(counts.max(initial=0)), 1 + int(table.max(initial=-1)))
