"""Routed experts as compiled loops: each weight of the experts that tokens use is read once, for all of their tokens.

In two phases, between which all threads meet: from tokens to what lies between an expert's matrices, and from there to
the tokens' results. What is shared out are outputs, so that no two threads write the same number and the order of a sum
does not depend on their number. All sums are in float32.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit

from engine.host.bits import Array
from engine.host.experts.gates import GELU, GELU_TANH, GPT_OSS
from engine.host.experts.products import MADE_BY, add_columns, row_products
from engine.host.turns import all_done, next_piece, piece_done
from engine.host.vectors import SUMS, TILES
from sim.simulation import jitted

BLOCK: Final = 16
"""Rows of a matrix that stay near while all tokens of their expert use them."""

COLUMNS: Final = 256
"""Columns of a matrix that are summed up together where its input comes first."""

_FLOAT32 = np.float32
_HALF, _ONE, _TWO = _FLOAT32(0.5), _FLOAT32(1.0), _FLOAT32(2.0)
_ROOT_HALF, _ROOT_2_OVER_PI, _CUBIC = _FLOAT32(0.5**0.5), _FLOAT32((2 / math.pi) ** 0.5), _FLOAT32(0.044715)

_OPTIONS: Final[dict[str, Any]] = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}


KernelMatrix = tuple[Array, Array, Array]
"""Stored rows of each expert, their scales, and biases."""


def _compiled(function: Callable[..., Any]) -> Any:
    return njit(nogil=True, **_OPTIONS)(function)


@_compiled
def up_unit(is_transposed: bool) -> int:
    """Outputs of a matrix that an item of the first phase makes of each of gate and up."""
    return COLUMNS // 2 if is_transposed else BLOCK


@_compiled
def down_unit(is_transposed: bool) -> int:
    """Outputs of a matrix that an item of the second phase makes."""
    return COLUMNS if is_transposed else BLOCK


@_compiled
def _tile(tokens: int, weight_bytes: int) -> int:
    """The tile for so many tokens, or for the first of them.

    Eight tokens at once need more of the first-level cache than four: that is worth it where weights are unpacked.
    """
    return 8 if tokens > 4 and weight_bytes == 1 else 4 if tokens > 2 else tokens


@_compiled
def _multiply(
    x: Array, count: int, weights: Array, scales: Array, is_transposed: bool, start: int, stop: int, out: Array
) -> None:
    """out[: count, : stop - start] = x[: count] . outputs `start` to `stop` - 1 of a matrix."""
    if not is_transposed:
        g = 0
        while g < count:
            size = _tile(count - g, weights.itemsize)
            row_products(size, g, x, weights, scales, start, stop - start, SUMS, out)
            g += size
        return
    width = stop - start
    out[:count, :width] = _FLOAT32(0)
    for first in range(0, weights.shape[0], BLOCK):
        last = min(first + BLOCK, weights.shape[0])
        g = 0
        while g < count:
            size = _tile(count - g, weights.itemsize)
            add_columns(size, g, x, weights, scales, first, last, start, width, BLOCK, out)
            g += size


@_compiled
def _gated(gate: np.float32, up: np.float32, kind: int, alpha: np.float32, limit: np.float32) -> Any:
    """What is between the matrices. `alpha` is what SiLU counts the gate's exponent by."""
    if kind == GELU:
        return gate * _HALF * (_ONE + _FLOAT32(math.erf(gate * _ROOT_HALF))) * up
    if kind == GELU_TANH:
        inner = _ROOT_2_OVER_PI * (gate + _CUBIC * gate * gate * gate)
        return _HALF * gate * (_ONE + _FLOAT32(math.tanh(inner))) * up
    if kind == GPT_OSS:
        gate = min(gate, limit)
        up = max(min(up, limit), -limit) + _ONE
    return gate / (_ONE + np.exp(-alpha * gate)) * up


def _kept_up(made_by: str) -> Any:
    """Compiled once for all processes: numba compiles again when this file changes, or what is closed over."""

    def up_phase(
        x: Array,
        starts: Array,
        experts: Array,
        weights: Array,
        scales: Array,
        bias: Array,
        is_transposed: bool,
        is_interleaved: bool,
        kind: int,
        alpha: np.float32,
        limit: np.float32,
        out: Array,
        unit: int,
        first: int,
        last: int,
    ) -> None:
        """Items `first` to `last` - 1 of the first phase: `unit` numbers of `out` of one expert each.

        x [pairs, input], with room for a tile behind; out [pairs, between]. Expert i's pairs are starts[i] to
        starts[i + 1] - 1. `bias` [experts, 2 * between], or nothing.
        """
        assert made_by
        width = out.shape[1]
        units = -(-width // unit)
        most = 0
        for i in range(len(experts)):
            most = max(most, starts[i + 1] - starts[i])
        room = -(-most // TILES[0]) * TILES[0]
        gates = np.empty((room, 2 * unit if is_interleaved else unit), np.float32)
        ups = np.empty((room, unit), np.float32)
        for item in range(first, last):
            i, start = item // units, item % units * unit
            stop = min(start + unit, width)
            e, at, count = experts[i], starts[i], starts[i + 1] - starts[i]
            own, own_weights, own_scales = x[at:], weights[e], scales[e % scales.shape[0]]
            if is_interleaved:
                _multiply(own, count, own_weights, own_scales, is_transposed, 2 * start, 2 * stop, gates)
            else:
                _multiply(own, count, own_weights, own_scales, is_transposed, start, stop, gates)
                _multiply(own, count, own_weights, own_scales, is_transposed, width + start, width + stop, ups)
            for p in range(count):
                for c in range(stop - start):
                    gate_at, up_at = start + c, width + start + c
                    if is_interleaved:
                        gate, up = gates[p, 2 * c], gates[p, 2 * c + 1]
                        gate_at, up_at = 2 * gate_at, 2 * gate_at + 1
                    else:
                        gate, up = gates[p, c], ups[p, c]
                    if bias.shape[0]:
                        gate += bias[e, gate_at]
                        up += bias[e, up_at]
                    out[at + p, start + c] = _gated(gate, up, kind, alpha, limit)

    return jitted(up_phase, **_OPTIONS)


def _kept_down(made_by: str) -> Any:
    def down_phase(
        x: Array,
        starts: Array,
        experts: Array,
        tokens: Array,
        shares: Array,
        weights: Array,
        scales: Array,
        bias: Array,
        is_transposed: bool,
        out: Array,
        unit: int,
        first: int,
        last: int,
    ) -> None:
        """Items `first` to `last` - 1 of the second phase: `unit` numbers each of what all tokens get in `out`.

        x [pairs, between], with room for a tile behind; out [tokens, output]; pair p counts shares[p] for tokens[p].
        """
        assert made_by
        width = out.shape[1]
        out[:, first * unit : min(last * unit, width)] = _FLOAT32(0)
        most = 0
        for i in range(len(experts)):
            most = max(most, starts[i + 1] - starts[i])
        found = np.empty((-(-most // TILES[0]) * TILES[0], unit), np.float32)
        for i in range(len(experts)):
            e, at, count = experts[i], starts[i], starts[i + 1] - starts[i]
            own_weights, own_scales = weights[e], scales[e % scales.shape[0]]
            for item in range(first, last):
                start = item * unit
                stop = min(start + unit, width)
                _multiply(x[at:], count, own_weights, own_scales, is_transposed, start, stop, found)
                for p in range(count):
                    share, to = shares[at + p], tokens[at + p]
                    for c in range(stop - start):
                        made = found[p, c]
                        if bias.shape[0]:
                            made += bias[e, start + c]
                        out[to, start + c] += share * made

    return jitted(down_phase, **_OPTIONS)


@jitted
def sorted_pairs(
    index: Array, weights: Array, on_host: Array, experts: Array, starts: Array, tokens: Array, shares: Array
) -> int:
    """Counts pairs out by their experts, those of one expert in the order of tokens; returns how many experts have any.

    index, weights [tokens, k]; `on_host`: for each expert, whether it is there. Pairs of other experts are left out. Of
    what is filled, `experts` and `starts` have room for an expert a pair (and one more), `tokens` and `shares` for all
    pairs.
    """
    place = np.zeros(len(on_host), np.int64)
    for token in range(index.shape[0]):
        for i in range(index.shape[1]):
            expert = index[token, i]
            if 0 <= expert < len(on_host) and on_host[expert]:
                place[expert] += 1
    used = pairs = 0
    for expert in range(len(on_host)):
        if place[expert]:
            experts[used], starts[used] = expert, pairs
            used, pairs, place[expert] = used + 1, pairs + place[expert], pairs
    starts[used] = pairs
    for token in range(index.shape[0]):
        for i in range(index.shape[1]):
            expert = index[token, i]
            if 0 <= expert < len(on_host) and on_host[expert]:
                tokens[place[expert]], shares[place[expert]] = token, weights[token, i]
                place[expert] += 1
    return used


up_phase = _kept_up(MADE_BY)
down_phase = _kept_down(MADE_BY)


def _kept_both(made_by: str) -> Any:
    def both_phases(
        hidden: Array,
        index: Array,
        shares: Array,
        on_host: Array,
        up: KernelMatrix,
        down: KernelMatrix,
        laid_out: tuple[bool, bool, int],
        constants: tuple[np.float32, np.float32],
        between: int,
        out: Array,
    ) -> None:
        """Pairs, both phases and what is between them, in one thread and one call.

        A thread that asks Python for less waits less for the others: between two lanes that are at work, each step
        back into Python takes 50 to 100 us, as long as an expert of a small model. hidden, out [tokens, hidden size]
        """
        assert made_by
        is_transposed, is_interleaved, kind = laid_out
        most = index.shape[0] * index.shape[1]
        experts, starts, tokens = np.empty(most, np.int64), np.empty(most + 1, np.int64), np.empty(most, np.int64)
        weights = np.empty(most, np.float32)
        used = sorted_pairs(index, shares, on_host, experts, starts, tokens, weights)
        pairs = starts[used]
        x = np.zeros((pairs + TILES[0], hidden.shape[1]), np.float32)
        middle = np.zeros((pairs + TILES[0], between), np.float32)
        for p in range(pairs):
            x[p] = hidden[tokens[p]]
        experts, starts, tokens, weights = experts[:used], starts[: used + 1], tokens[:pairs], weights[:pairs]
        unit = up_unit(is_transposed)
        items = used * -(-between // unit)
        up_phase(x, starts, experts, *up, is_transposed, is_interleaved, kind, *constants, middle, unit, 0, items)
        columns = down_unit(is_transposed)
        items = -(-out.shape[1] // columns)
        down_phase(middle, starts, experts, tokens, weights, *down, is_transposed, out, columns, 0, items)

    return jitted(both_phases, **_OPTIONS)


both_phases = _kept_both(MADE_BY)


def _kept_turns(made_by: str) -> Any:
    def phases_in_turns(
        x: Array,
        experts: Array,
        starts: Array,
        tokens: Array,
        shares: Array,
        up: KernelMatrix,
        down: KernelMatrix,
        laid_out: tuple[bool, bool, int],
        constants: tuple[np.float32, np.float32],
        middle: Array,
        out: Array,
        turns: Array,
    ) -> bool:
        """Both phases of sorted pairs by one of several threads; whether all is done, by whichever of them.

        x [pairs, hidden size] and middle [pairs, between], each with room for a tile behind; out [tokens, hidden size].
        A thread that is told no has nothing left to take, and calls once more.
        """
        assert made_by
        is_transposed, is_interleaved, kind = laid_out
        unit, columns = up_unit(is_transposed), down_unit(is_transposed)
        first, last = next_piece(turns, 0)
        while first < last:
            one = first, last
            up_phase(x, starts, experts, *up, is_transposed, is_interleaved, kind, *constants, middle, unit, *one)
            piece_done(turns, 0, first, last)
            first, last = next_piece(turns, 0)
        if not all_done(turns, 0):
            return False
        first, last = next_piece(turns, 1)
        while first < last:
            one = first, last
            down_phase(middle, starts, experts, tokens, shares, *down, is_transposed, out, columns, *one)
            piece_done(turns, 1, first, last)
            first, last = next_piece(turns, 1)
        return bool(all_done(turns, 1))

    return jitted(phases_in_turns, **_OPTIONS)


phases_in_turns = _kept_turns(MADE_BY)
