"""The inner loops of decode attention as vectors, made by hand: what a compiler makes of plain loops is half as fast.

The sums of a tile stay in registers, an element is widened once for all query heads of a tile, and rows further on are
fetched into the second-level cache: the processor's own prefetcher loses track between the rows of a tile.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def registers(features: Mapping[str, bool]) -> tuple[int, int]:
    """float32 numbers in a vector register of a processor, and half of the number of such registers."""
    if features.get("avx512f"):
        return 16, 16
    return (8 if features.get("avx") else 4), (8 if "sse2" in features else 16)


LANES, SUMS = registers(binding.get_host_cpu_features())
"""Numbers in a vector, and the vectors that a tile sums up in."""

TILES: Final = (8, 4, 2, 1)
"""Query heads that a tile may have."""

MADE_BY: Final = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
"""Tells this file from others: what is compiled from it and kept must be renewed with it."""

_HALF, _FLOAT, _SHORT, _WORD, _INDEX = ir.HalfType(), ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)

# Called from compiled code, these have other types than where they are defined.
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic


def _shifted(b: Any, bits: Any, left: int) -> Any:
    amount = ir.Constant(_WORD, abs(left))
    if isinstance(bits.type, ir.VectorType):
        amount = ir.Constant(bits.type, [abs(left)] * bits.type.count)
    return b.shl(bits, amount) if left > 0 else b.lshr(bits, amount)


def _to_float32(b: Any, element: Any, found: Any) -> Any:
    """A row's element, or a vector of them, as float32."""
    many = found.type.count if isinstance(found.type, ir.VectorType) else 0
    half, float32, word = (ir.VectorType(kind, many) if many else kind for kind in (_HALF, _FLOAT, _WORD))
    if element == types.uint16:
        return b.fpext(b.bitcast(found, half), float32)
    if element == types.int16:
        return b.bitcast(_shifted(b, b.zext(found, word), 16), float32)
    return found


def _from_float32(b: Any, element: Any, number: Any) -> Any:
    """A float32 as a row's element, rounded to the nearest, to even if two are."""
    if element == types.uint16:
        return b.bitcast(b.fptrunc(number, _HALF), _SHORT)
    if element == types.int16:
        bits = b.bitcast(number, _WORD)
        one, half, nan = (ir.Constant(_WORD, value) for value in (1, 0x7FFF, 0x7FC0))
        odd = b.and_(_shifted(b, bits, -16), one)
        rounded = _shifted(b, b.add(bits, b.add(odd, half)), -16)
        return b.trunc(b.select(b.fcmp_unordered("uno", number, number), nan, rounded), _SHORT)
    return number


class _Rows:
    """An array [rows, width], in code that is being made."""

    def __init__(self, context: Any, b: Any, kind: Any, array: Any) -> None:
        made = context.make_array(kind)(context, b, array)
        self.b, self.element = b, kind.dtype
        self._data, self.width = made.data, b.extract_value(made.shape, 1)

    def at(self, row: Any, column: Any) -> Any:
        """Where an element lies."""
        return self.b.gep(self._data, [self.b.add(self.b.mul(row, self.width), column)])

    def load(self, place: Any) -> Any:
        """LANES elements as float32."""
        kind = ir.VectorType(place.type.pointee, LANES)
        found = self.b.load(self.b.bitcast(place, kind.as_pointer()), align=self.element.bitwidth // 8)
        return _to_float32(self.b, self.element, found)

    def store(self, vector: Any, place: Any) -> None:
        self.b.store(vector, self.b.bitcast(place, vector.type.as_pointer()), align=4)

    def repeat(self, place: Any) -> Any:
        """One float32 in all lanes."""
        none = ir.Constant(_FLOATS, ir.Undefined)
        return _lanes(self.b, self.b.insert_element(none, self.b.load(place), _index(0)), none, [0] * LANES)

    def fetch(self, place: Any) -> None:
        """Brings a cache line into the second-level cache. Never faults, wherever it is."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        read, into_second_level, data = (ir.Constant(_WORD, value) for value in (0, 2, 1))
        self.b.call(function, [self.b.bitcast(place, byte), read, into_second_level, data])


def _index(value: int) -> Any:
    return ir.Constant(_INDEX, value)


def _lanes(b: Any, one: Any, other: Any, chosen: list[int]) -> Any:
    return b.shuffle_vector(one, other, ir.Constant(ir.VectorType(_WORD, len(chosen)), chosen))


def _loop(b: Any, start: Any, stop: Any, step: int) -> Any:
    return cgutils.for_range_slice(b, start, stop, _index(step))


def _registers(b: Any, vectors: list[Any]) -> list[Any]:
    """Places for sums that begin as these vectors, and that the compiler keeps in registers."""
    places = [cgutils.alloca_once(b, _FLOATS) for _ in vectors]  # type: ignore[no-untyped-call]
    for vector, place in zip(vectors, places, strict=True):
        b.store(vector, place)
    return places


def _add_product(b: Any, total: Any, x: Any, y: Any) -> None:
    b.store(b.fadd(b.load(total), b.fmul(x, y, flags=("contract",)), flags=("contract",)), total)


def _sums_of(b: Any, vectors: list[Any]) -> Any:
    """The sum over the lanes of each of LANES vectors, in their order: of each pair, even and odd lanes are added."""
    folds = 0
    while len(vectors) > 1:
        unit, part = (1, 4) if folds < 2 else (4, LANES)  # within four lanes first: that is quick
        starts = [(v, lane) for start in range(0, LANES, part) for v in (0, 1) for lane in range(start, start + part)]
        even = [v * LANES + lane for v, lane in starts if lane // unit % 2 == 0]
        odd = [lane + unit for lane in even]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [b.fadd(_lanes(b, x, y, even), _lanes(b, x, y, odd)) for x, y in pairs]
        folds += 1
    return vectors[0]


def _score_tile(b: Any, heads: list[Any], query: _Rows, key: _Rows, rows: list[Any], fetched: list[Any]) -> list[Any]:
    """The products of some query heads with some keys, head by head, in vectors."""
    totals = _registers(b, [ir.Constant(_FLOATS, [0.0] * LANES)] * SUMS)
    with _loop(b, _index(0), query.width, LANES) as (d, _):
        for row in fetched:
            key.fetch(key.at(row, d))
        keys = [key.load(key.at(row, d)) for row in rows]
        for q, head in enumerate(heads):
            x = query.load(query.at(head, d))
            for k, y in enumerate(keys):
                _add_product(b, totals[q * len(rows) + k], x, y)
    found = [b.load(total) for total in totals]
    return [_sums_of(b, found[i : i + LANES]) for i in range(0, SUMS, LANES)]


def _add_tile(
    b: Any, heads: list[Any], columns: list[Any], share: _Rows, value: _Rows, total: _Rows, walk: Any
) -> None:
    """Adds shares . values to some columns of some query heads. `walk` = first, stop, row of a token, row to fetch."""
    first, stop, row_of, fetched_of = walk
    places = [total.at(head, column) for head in heads for column in columns]
    totals = _registers(b, [total.load(place) for place in places])
    line = max(1, 64 // (LANES * value.element.bitwidth // 8))
    with _loop(b, first, stop, 1) as (c, _):
        for column in columns[::line]:
            value.fetch(value.at(fetched_of(c), column))
        values = [value.load(value.at(row_of(c), column)) for column in columns]
        for q, head in enumerate(heads):
            x = share.repeat(share.at(head, c))
            for v, y in enumerate(values):
                _add_product(b, totals[q * len(columns) + v], x, y)
    for place, sums in zip(places, totals, strict=True):
        total.store(b.load(sums), place)


@_intrinsic
def score(
    _: Any,
    size: Any,
    g: Any,
    queries: Any,
    keys: Any,
    at: Any,
    stride: Any,
    first: Any,
    stop: Any,
    ahead: Any,
    out: Any,
) -> Any:
    """out[g : g + size, first : stop] = queries[g : g + size] . keys; token c is row `at` + c * `stride`.

    `size` is one of TILES, and the rows that are `ahead` tokens on are fetched. What of `out` lies behind `stop`, up to
    a multiple of SUMS, may be overwritten.
    """

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        size, g, *_, at, stride, first, stop, ahead, _ = args
        query, key, score = (_Rows(context, b, signature.args[i], args[i]) for i in (2, 3, 9))
        last = b.sub(stop, _index(1))

        def tile(num_heads: int, c: Any) -> None:
            heads, num_keys = [b.add(g, _index(q)) for q in range(num_heads)], SUMS // num_heads
            tokens = [b.add(c, _index(k)) for k in range(num_keys)]
            known = [b.select(b.icmp_signed("<", token, last), token, last) for token in tokens]
            rows, fetched = (
                [b.add(at, b.mul(b.add(token, further), stride)) for token in known] for further in (_index(0), ahead)
            )
            sums, width = _score_tile(b, heads, query, key, rows, fetched), min(num_keys, LANES)
            for i in range(0, SUMS, width):
                one, start = sums[i // LANES], i % LANES
                part = _lanes(b, one, one, list(range(start, start + width)))
                score.store(part, score.at(heads[i // num_keys], tokens[i % num_keys]))

        for num_heads in TILES:
            right = b.if_then(b.icmp_signed("==", size, _index(num_heads)))
            with right, _loop(b, first, stop, SUMS // num_heads) as (c, _):
                tile(num_heads, c)
        return context.get_dummy_value()

    return types.void(size, g, queries, keys, at, stride, first, stop, ahead, out), emit


@_intrinsic
def add(
    _: Any,
    size: Any,
    g: Any,
    shares: Any,
    values: Any,
    at: Any,
    stride: Any,
    first: Any,
    stop: Any,
    ahead: Any,
    out: Any,
) -> Any:
    """out[g : g + size] += shares[g : g + size, first : stop] . values; otherwise as `score`."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        size, g, *_, at, stride, first, stop, ahead, _ = args
        share, value, total = (_Rows(context, b, signature.args[i], args[i]) for i in (2, 3, 9))
        row_of, fetched_of = (
            lambda c, further=further: b.add(at, b.mul(b.add(c, further), stride)) for further in (_index(0), ahead)
        )
        for num_heads in TILES:
            heads, many = [b.add(g, _index(q)) for q in range(num_heads)], min(4, SUMS // num_heads)
            with b.if_then(b.icmp_signed("==", size, _index(num_heads))):
                whole = b.sub(total.width, b.urem(total.width, _index(many * LANES)))
                for num, start, end in ((many, _index(0), whole), (1, whole, total.width)):
                    with _loop(b, start, end, num * LANES) as (d, _):
                        columns = [b.add(d, _index(v * LANES)) for v in range(num)]
                        _add_tile(b, heads, columns, share, value, total, (first, stop, row_of, fetched_of))
        return context.get_dummy_value()

    return types.void(size, g, shares, values, at, stride, first, stop, ahead, out), emit


@_intrinsic
def highest(typing_context: Any, scores: Any, g: Any, stop: Any) -> Any:
    """The highest of scores[g, :stop], stop being a multiple of LANES; or one of them, if there are NaN."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        score = _Rows(context, b, signature.args[0], args[0])
        (best,) = _registers(b, [score.load(score.at(args[1], _index(0)))])
        with _loop(b, _index(0), args[2], LANES) as (c, _):
            one, other = b.load(best), score.load(score.at(args[1], c))
            b.store(b.select(b.fcmp_ordered(">", other, one), other, one), best)
        found, width = b.load(best), LANES
        while width > 1:
            width //= 2
            other = _lanes(b, found, found, [lane % width + width for lane in range(LANES)])
            found = b.select(b.fcmp_ordered(">", other, found), other, found)
        return b.extract_element(found, _index(0))

    return types.float32(scores, g, stop), emit


@_intrinsic
def widen(typing_context: Any, element: Any) -> Any:
    """A row's element as float32."""
    return types.float32(element), lambda _, b, signature, args: _to_float32(b, element, args[0])


@_intrinsic
def narrow(typing_context: Any, number: Any, like: Any) -> Any:
    """A float32 as an element of rows like `like`."""
    return like.dtype(number, like), lambda _, b, signature, args: _from_float32(b, like.dtype, args[0])


@_intrinsic
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 that an int32 has the bits of."""
    return types.float32(types.int32), lambda _, b, signature, args: b.bitcast(args[0], _FLOAT)
