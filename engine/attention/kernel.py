"""Decode attention as compiled loops: one query token per request, over keys and values where they lie.

Bound by reading the cache once, if all arithmetic on a row happens while it is near. So rows are taken in blocks that
stay in the first-level cache for all query heads of their group, products are formed for QUERIES x 2 (keys) or x 4
(values) rows at a time to spare loads, and rows ahead are fetched into the second-level cache: without this the
processor's own prefetcher loses track between the two rows of a tile and half of the bandwidth is lost.

Rows are float32, or half-precision bits that widen to float32 in registers: uint16 holds float16, int16 holds bfloat16.
All sums are in float32.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sim.simulation import jitted

QUERIES: Final = 4
"""Query heads of a tile; a group of query heads is padded to a multiple of it."""

BLOCK: Final = 16
"""Rows that stay near while all query heads of a group use them: 8 KiB at head_dim 128 in float32."""

AHEAD_BYTES: Final = 12 * 1024
"""From the row in use to the one that is fetched."""

Array = np.ndarray[Any, Any]

Strides = tuple[int, int, int]
"""Rows from one request, one head, one token to the next."""
Scratch = tuple[Array, Array, Array]
"""A worker's own: see `scratch_for`."""

_FLOAT32 = np.float32
_LOG2_E = np.float32(1.44269504088896341)
_LN_2_HIGH = np.float32(0.693359375)
_LN_2_LOW = np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87.0)  # below it, e^x is no normal float32

_FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity stay what they are

# Called from compiled code, these have other types than where they are defined.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic


def _compiled(function: Callable[..., Any]) -> Any:
    return jitted(function, fastmath=_FAST, error_model="numpy")


@_intrinsic
def _widen(typing_context: Any, value: Any) -> Any:
    """A row's element as float32."""

    def keep(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0]

    def float16(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    def bfloat16(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(bits, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    convert = {types.float32: keep, types.uint16: float16, types.int16: bfloat16}[value]
    return types.float32(value), convert


@_intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def reinterpret(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), reinterpret


@_intrinsic
def _prefetch(typing_context: Any, rows: Any, row: Any, element: Any) -> Any:
    """Fetches the cache line of an element into the second-level cache. Never faults, wherever it points."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        width = builder.extract_value(array.shape, 1)
        pointer = builder.gep(array.data, [builder.add(builder.mul(args[1], width), args[2])])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        read, into_second_level, data = (ir.Constant(word, value) for value in (0, 2, 1))
        builder.call(function, [builder.bitcast(pointer, byte), read, into_second_level, data])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), emit


@_compiled
def _fetch_row(rows: Array, row: int, width: int) -> None:
    if rows.itemsize == 4:  # half precision takes as long to compute with but half as long to come
        for d in range(0, width, 16):
            _prefetch(rows, row, d)


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
    return p * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@_compiled
def _score_block(
    query: Array, g: int, keys: Array, at: int, stride: int, first: int, stop: int, last: int, scores: Array
) -> None:
    """scores[g : g + 4, first : stop] = query[g : g + 4] . keys; token c is row `at` + c * `stride`."""
    width = query.shape[1]
    ahead = (1 + AHEAD_BYTES // (4 * width)) * stride
    for c in range(first, stop, 2):
        a, b = at + c * stride, at + min(c + 1, last) * stride
        if g == 0:
            _fetch_row(keys, a + ahead, width)
            _fetch_row(keys, b + ahead, width)
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = _FLOAT32(0)
        for d in range(width):
            x, y = _widen(keys[a, d]), _widen(keys[b, d])
            q0, q1, q2, q3 = query[g, d], query[g + 1, d], query[g + 2, d], query[g + 3, d]
            a0 += q0 * x
            a1 += q1 * x
            a2 += q2 * x
            a3 += q3 * x
            b0 += q0 * y
            b1 += q1 * y
            b2 += q2 * y
            b3 += q3 * y
        scores[g, c + 1], scores[g + 1, c + 1], scores[g + 2, c + 1], scores[g + 3, c + 1] = b0, b1, b2, b3
        scores[g, c], scores[g + 1, c], scores[g + 2, c], scores[g + 3, c] = a0, a1, a2, a3


@_compiled
def _softmax(scores: Array, count: int) -> None:
    """The first `count` scores of one query into shares, in place."""
    highest = scores[0]
    for c in range(count):
        highest = max(highest, scores[c])
    total = _FLOAT32(0)
    for c in range(count):
        share = _exp(scores[c] - highest)
        scores[c] = share
        total += share
    for c in range(count):
        scores[c] /= total


@_compiled
def _add_block(shares: Array, g: int, values: Array, at: int, stride: int, first: int, stop: int, out: Array) -> None:
    """out[g : g + 4] += shares[g : g + 4, first : stop] . values; token c is row `at` + c * `stride`."""
    width = out.shape[1]
    s0, s1, s2, s3 = shares[g], shares[g + 1], shares[g + 2], shares[g + 3]
    ahead = (1 + AHEAD_BYTES // (4 * width)) * stride
    whole = stop - (stop - first) % 4
    for c in range(first, whole, 4):
        i = at + c * stride
        j, k, m = i + stride, i + 2 * stride, i + 3 * stride
        if g == 0:
            for row in (i, j, k, m):
                _fetch_row(values, row + ahead, width)
        s00, s01, s02, s03 = s0[c], s0[c + 1], s0[c + 2], s0[c + 3]
        s10, s11, s12, s13 = s1[c], s1[c + 1], s1[c + 2], s1[c + 3]
        s20, s21, s22, s23 = s2[c], s2[c + 1], s2[c + 2], s2[c + 3]
        s30, s31, s32, s33 = s3[c], s3[c + 1], s3[c + 2], s3[c + 3]
        for d in range(width):
            v0, v1, v2, v3 = _widen(values[i, d]), _widen(values[j, d]), _widen(values[k, d]), _widen(values[m, d])
            out[g, d] += s00 * v0 + s01 * v1 + s02 * v2 + s03 * v3
            out[g + 1, d] += s10 * v0 + s11 * v1 + s12 * v2 + s13 * v3
            out[g + 2, d] += s20 * v0 + s21 * v1 + s22 * v2 + s23 * v3
            out[g + 3, d] += s30 * v0 + s31 * v1 + s32 * v2 + s33 * v3
    for c in range(whole, stop):
        i = at + c * stride
        for d in range(width):
            v0 = _widen(values[i, d])
            out[g, d] += s0[c] * v0
            out[g + 1, d] += s1[c] * v0
            out[g + 2, d] += s2[c] * v0
            out[g + 3, d] += s3[c] * v0


def scratch_for(group: int, head_dim: int, tokens: int) -> Scratch:
    """Room for one item: queries [padded group, head_dim], scores [padded group, tokens, made even], sums like queries.

    Rows of the padding stay zero.
    """
    padded = -(-group // QUERIES) * QUERIES
    shapes = ((padded, head_dim), (padded, tokens + tokens % 2), (padded, head_dim))
    queries, scores, sums = (np.zeros(shape, np.float32) for shape in shapes)
    return queries, scores, sums


@_compiled
def attend(
    query: Array,
    scaling: np.float32,
    keys: Array,
    key_strides: Strides,
    values: Array,
    value_strides: Strides,
    starts: Array,
    stop: int,
    out: Array,
    first: int,
    last: int,
    scratch: Scratch,
) -> None:
    """Attention of items `first` to `last` - 1, where item = request * kv_heads + kv_head.

    query [requests, query_heads, head_dim]; keys, values [rows, head_dim]; all contiguous. Token c of request r for
    head h is row (r, h, c) . strides. Request r sees its tokens starts[r] to stop - 1, at least one.
    out [requests, kv_heads, group, head_dim]: float32, contiguous.
    """
    kv_heads, group, width = out.shape[1:]
    queries, scores, sums = scratch
    padded = queries.shape[0]
    for item in range(first, last):
        r, h = item // kv_heads, item % kv_heads
        count = stop - starts[r]
        for g in range(group):
            for d in range(width):
                queries[g, d] = _widen(query[r, h * group + g, d]) * scaling
        at = r * key_strides[0] + h * key_strides[1] + starts[r] * key_strides[2]
        for c in range(0, count, BLOCK):
            for g in range(0, padded, QUERIES):
                _score_block(queries, g, keys, at, key_strides[2], c, min(c + BLOCK, count), count - 1, scores)
        for g in range(group):
            _softmax(scores[g], count)
        sums[:] = _FLOAT32(0)
        at = r * value_strides[0] + h * value_strides[1] + starts[r] * value_strides[2]
        for c in range(0, count, BLOCK):
            for g in range(0, padded, QUERIES):
                _add_block(scores, g, values, at, value_strides[2], c, min(c + BLOCK, count), sums)
        out[r, h] = sums[:group]
