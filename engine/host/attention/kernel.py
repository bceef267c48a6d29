"""Decode attention as compiled loops: one query token per request, over keys and values where they lie.

Bound by reading the cache once, if nothing is done twice to an element that was read: rows go by a few at a time, which
stay in the first-level cache for all query heads of their group, in tiles of up to 8. A row that is no whole number of
vectors is first copied to where it is one.

Tokens of a request lie in blocks, in any order, as a table says. A cache in one piece is the case of one block each. A
sum has the same terms in the same order either way, so that it is the same number.

Rows are float32, or bits of half precision: uint16 holds float16, int16 holds bfloat16. All sums are in float32.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit

from engine.host.attention.tiles import MADE_BY, add, highest, score
from engine.host.bits import Array
from engine.host.turns import all_done, next_piece, piece_done
from engine.host.vectors import LANES, TILES, float_of_bits, narrow, widen
from sim.simulation import jitted

NEAR_ROWS: Final = 16
"""Rows that stay near while all query heads of a group use them: 8 KiB at head_dim 128 in float32."""

AHEAD_BYTES: Final = 12 * 1024
"""From the row in use to the one that is fetched, at least."""

ONE_BLOCK: Final = 62
"""As `block_bits`: all tokens of a request in one block."""

Strides = tuple[int, int, int]
"""Rows from one block, one head, one token to the next."""
Scratch = tuple[Array, Array, Array, Array]
"""A worker's own: see `scratch_for`."""

_FLOAT32 = np.float32
_LOG2_E = np.float32(1.44269504088896341)
_LN_2_HIGH = np.float32(0.693359375)
_LN_2_LOW = np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87.0)  # below it, e^x is no normal float32

_OPTIONS: Final[dict[str, Any]] = {
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},  # sums may be reordered; NaN and infinity stay what they are
    "error_model": "numpy",
}


def _compiled(function: Callable[..., Any]) -> Any:
    return njit(nogil=True, **_OPTIONS)(function)


@_compiled
def _exp(x: Any) -> Any:
    """e^x for x <= 0 to about one unit in the last place, in a form that compilers vectorise (Cephes' expf)."""
    x = _LOWEST if x < _LOWEST else x
    n = np.floor(x * _LOG2_E + _FLOAT32(0.5))
    r = x - n * _LN_2_HIGH - n * _LN_2_LOW
    p = _FLOAT32(1.9875691500e-4)
    p = p * r + _FLOAT32(1.3981999507e-3)
    p = p * r + _FLOAT32(8.3334519073e-3)
    p = p * r + _FLOAT32(4.1665795894e-2)
    p = p * r + _FLOAT32(1.6666665459e-1)
    p = p * r + _FLOAT32(5.0000001201e-1)
    p = p * r * r + r + _FLOAT32(1.0)
    return p * float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@_compiled
def _softmax(scores: Array, g: int, count: int) -> Any:
    """The first `count` scores of one query into shares of the sum that is returned, in place."""
    padded = -(-count // LANES) * LANES
    row = scores[g]
    row[count:padded] = row[0]
    best = highest(scores, g, padded)
    total = _FLOAT32(0)
    for c in range(count):
        share = _exp(row[c] - best)
        row[c] = share
        total += share
    return total


@_compiled
def _tile(heads: int) -> int:
    """The tile for so many query heads, or for the first of them."""
    return 8 if heads > 4 else 4 if heads > 2 else heads


@_compiled
def _score_few(
    group: int, queries: Array, keys: Array, at: int, stride: int, first: int, stop: int, ahead: int, scores: Array
) -> None:
    g = 0
    while g < group:
        size = _tile(group - g)
        score(size, g, queries, keys, at, stride, first, stop, ahead, scores)
        g += size


@_compiled
def _add_few(
    group: int, shares: Array, values: Array, at: int, stride: int, first: int, stop: int, ahead: int, sums: Array
) -> None:
    g = 0
    while g < group:
        size = _tile(group - g)
        add(size, g, shares, values, at, stride, first, stop, ahead, sums)
        g += size


@_compiled
def _copy_rows(rows: Array, at: int, stride: int, first: int, stop: int, near: Array) -> None:
    for c in range(first, stop):
        near[c - first, : rows.shape[1]] = rows[at + c * stride]


Walk = tuple[int, int, int, int, int]
"""Tokens of one block: token c is row at + c * stride for first <= c < stop, and what is ahead lies so many rows on."""


@_compiled
def _score_block(group: int, queries: Array, keys: Array, walk: Walk, copied: bool, near: Array, scores: Array) -> None:
    at, stride, first, stop, ahead = walk
    for c in range(first, stop, NEAR_ROWS):
        end = min(c + NEAR_ROWS, stop)
        if copied:
            _copy_rows(keys, at, stride, c, end, near)
            _score_few(group, queries, near, -c, 1, c, end, 0, scores)
        else:
            _score_few(group, queries, keys, at, stride, c, end, ahead, scores)


@_compiled
def _add_block(group: int, shares: Array, values: Array, walk: Walk, copied: bool, near: Array, sums: Array) -> None:
    at, stride, first, stop, ahead = walk
    for c in range(first, stop, NEAR_ROWS):
        end = min(c + NEAR_ROWS, stop)
        if copied:
            _copy_rows(values, at, stride, c, end, near)
            _add_few(group, shares, near, -c, 1, c, end, 0, sums)
        else:
            _add_few(group, shares, values, at, stride, c, end, ahead, sums)


def scratch_for(group: int, head_dim: int, tokens: int, element: np.dtype[Any]) -> Scratch:
    """Room for one item: queries and sums [padded group, padded head_dim], scores [padded group, padded tokens].

    And for the rows of `element` that are near. What pads queries and rows stays zero. A tile of scores may reach
    behind the last token by all but one of its own.
    """
    heads, width = -(-group // TILES[0]) * TILES[0], -(-head_dim // LANES) * LANES
    queries, sums = (np.zeros((heads, width), np.float32) for _ in range(2))
    scores = np.zeros((heads, (tokens // NEAR_ROWS + 2) * NEAR_ROWS), np.float32)
    return queries, sums, scores, np.zeros((NEAR_ROWS, width), element)


@_compiled
def _row(blocks: Array, block_bits: int, strides: Strides, r: int, h: int, token: int) -> Any:
    """Where a token of a request lies, for a head. Behind the table, it is somewhere in the request's last block."""
    block = blocks[r, min(token >> block_bits, blocks.shape[1] - 1)]
    return block * strides[0] + h * strides[1] + (token & ((1 << block_bits) - 1)) * strides[2]


@_compiled
def _row_ahead(
    blocks: Array, block_bits: int, strides: Strides, starts: Array, stop: int, item: int, heads: int, token: int
) -> Any:
    """Where what comes next lies: a token of this item's, or behind its last one a token of the item that follows."""
    if token >= stop and item + 1 < len(starts) * heads:
        item += 1
        token += starts[item // heads] - stop
    return _row(blocks, block_bits, strides, item // heads, item % heads, token)


def _kept(made_by: str) -> Any:
    """Compiled once for all processes: numba compiles again when this file changes, or what is closed over."""

    def attend(
        query: Array,
        scaling: np.float32,
        keys: Array,
        key_strides: Strides,
        values: Array,
        value_strides: Strides,
        blocks: Array,
        block_bits: int,
        starts: Array,
        stops: Array,
        out: Array,
        first: int,
        last: int,
        scratch: Scratch,
    ) -> None:
        """Attention of items `first` to `last` - 1, where item = request * kv_heads + kv_head.

        query [requests, query_heads, head_dim]; keys, values [rows, head_dim]; all contiguous. A block has
        2 ** `block_bits` tokens: token c of request r for head h is row (b, h, c % tokens of a block) . strides, where
        b = blocks[r, c // tokens of a block]. Request r sees its tokens starts[r] to stops[r] - 1, at least one.
        out [requests, kv_heads, group, head_dim]: contiguous.
        """
        assert made_by
        kv_heads, group, width = out.shape[1:]
        queries, sums, scores, near = scratch
        copied = width != near.shape[1]
        last_in_block = (1 << block_bits) - 1
        ahead = 1 + AHEAD_BYTES // (keys.itemsize * width)
        if block_bits != ONE_BLOCK:  # whole blocks, so that what is ahead of a block lies in one block, too
            ahead = ((ahead - 1) | last_in_block) + 1
        for item in range(first, last):
            r, h = item // kv_heads, item % kv_heads
            start, stop = starts[r], stops[r]
            for g in range(group):
                for d in range(width):
                    queries[g, d] = widen(query[r, h * group + g, d]) * scaling
            c = start
            while c < stop:
                end = min((c | last_in_block) + 1, stop)
                row = _row(blocks, block_bits, key_strides, r, h, c)
                after = _row_ahead(blocks, block_bits, key_strides, starts, stop, item, kv_heads, c + ahead)
                walk = row - (c - start) * key_strides[2], key_strides[2], c - start, end - start, after - row
                _score_block(group, queries, keys, walk, copied, near, scores)
                c = end
            sums[:] = _FLOAT32(0)
            totals = np.empty(group, np.float32)
            for g in range(group):
                totals[g] = _softmax(scores, g, stop - start)
            c = start
            while c < stop:
                end = min((c | last_in_block) + 1, stop)
                row = _row(blocks, block_bits, value_strides, r, h, c)
                after = _row_ahead(blocks, block_bits, value_strides, starts, stop, item, kv_heads, c + ahead)
                walk = row - (c - start) * value_strides[2], value_strides[2], c - start, end - start, after - row
                _add_block(group, scores, values, walk, copied, near, sums)
                c = end
            for g in range(group):
                for d in range(width):
                    out[r, h, g, d] = narrow(sums[g, d] / totals[g], out)

    return jitted(attend, **_OPTIONS)


attend = _kept(MADE_BY)


def _kept_turns(made_by: str) -> Any:
    def attend_in_turns(
        query: Array,
        scaling: np.float32,
        keys: Array,
        key_strides: Strides,
        values: Array,
        value_strides: Strides,
        blocks: Array,
        block_bits: int,
        starts: Array,
        stops: Array,
        out: Array,
        scratch: Scratch,
        turns: Array,
    ) -> bool:
        """`attend`, by one of several threads, each with scratch of its own; whether all is done."""
        assert made_by
        lie = keys, key_strides, values, value_strides, blocks, block_bits
        first, last = next_piece(turns, 0)
        while first < last:
            attend(query, scaling, *lie, starts, stops, out, first, last, scratch)
            piece_done(turns, 0, first, last)
            first, last = next_piece(turns, 0)
        return bool(all_done(turns, 0))

    return jitted(attend_in_turns, **_OPTIONS)


attend_in_turns = _kept_turns(MADE_BY)
