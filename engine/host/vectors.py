"""Products of rows as vectors, made by hand: what a compiler makes of plain loops is half as fast.

The sums of a tile stay in registers, and an element is widened once for all that it is multiplied with.
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
"""Rows of one side that a tile may have: query heads, or tokens."""

_HALF, FLOAT, _SHORT, _WORD, _INDEX = ir.HalfType(), ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOATS = ir.VectorType(FLOAT, LANES)


def made_by(*files: str) -> str:
    """Tells this file and these from others: what is compiled from them and kept must be renewed with them."""
    contents = (Path(file).read_bytes() for file in (__file__, *files))
    return hashlib.sha256(b"".join(contents)).hexdigest()


# Called from compiled code, these have other types than where they are defined.
typed_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic


def _shifted(b: Any, bits: Any, left: int) -> Any:
    amount = ir.Constant(_WORD, abs(left))
    if isinstance(bits.type, ir.VectorType):
        amount = ir.Constant(bits.type, [abs(left)] * bits.type.count)
    return b.shl(bits, amount) if left > 0 else b.lshr(bits, amount)


def _to_float32(b: Any, element: Any, found: Any) -> Any:
    """A row's element, or a vector of them, as float32."""
    many = found.type.count if isinstance(found.type, ir.VectorType) else 0
    half, float32, word = (ir.VectorType(kind, many) if many else kind for kind in (_HALF, FLOAT, _WORD))
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


class Rows:
    """An array [rows, width], in code that is being made."""

    step: int = LANES
    """Columns that are read at once."""

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

    def read(self, row: Any, column: Any) -> list[Any]:
        """`step` columns of a row as float32, in vectors."""
        return [self.load(self.at(row, column))]

    def store(self, vector: Any, place: Any) -> None:
        self.b.store(vector, self.b.bitcast(place, vector.type.as_pointer()), align=4)

    def repeat(self, place: Any) -> Any:
        """One float32 in all lanes."""
        none = ir.Constant(FLOATS, ir.Undefined)
        return lanes_of(self.b, self.b.insert_element(none, self.b.load(place), index_of(0)), none, [0] * LANES)

    def fetch(self, row: Any, column: Any) -> None:
        """Brings the cache line of an element into the second-level cache."""
        fetch_line(self.b, self.at(row, column))


def fetch_line(b: Any, place: Any) -> None:
    """Brings a cache line into the second-level cache. Never faults, wherever it is."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
    read, into_second_level, data = (ir.Constant(_WORD, value) for value in (0, 2, 1))
    b.call(function, [b.bitcast(place, byte), read, into_second_level, data])


def index_of(value: int) -> Any:
    """An index that is known beforehand."""
    return ir.Constant(_INDEX, value)


def lanes_of(b: Any, one: Any, other: Any, chosen: list[int]) -> Any:
    """A vector of lanes chosen from two, those of the other counted on."""
    return b.shuffle_vector(one, other, ir.Constant(ir.VectorType(_WORD, len(chosen)), chosen))


def loop(b: Any, start: Any, stop: Any, step: int) -> Any:
    """A loop over indices; what is entered gives the index."""
    return cgutils.for_range_slice(b, start, stop, index_of(step))


def in_registers(b: Any, vectors: list[Any]) -> list[Any]:
    """Places for sums that begin as these vectors, and that the compiler keeps in registers."""
    places = [cgutils.alloca_once(b, FLOATS) for _ in vectors]  # type: ignore[no-untyped-call]
    for vector, place in zip(vectors, places, strict=True):
        b.store(vector, place)
    return places


def add_product(b: Any, total: Any, x: Any, y: Any) -> None:
    """Adds x * y to the sum in a place, rounded once."""
    b.store(b.fadd(b.load(total), b.fmul(x, y, flags=("contract",)), flags=("contract",)), total)


def sums_of(b: Any, vectors: list[Any]) -> Any:
    """The sum over the lanes of each of LANES vectors, in their order: of each pair, even and odd lanes are added."""
    folds = 0
    while len(vectors) > 1:
        unit, part = (1, 4) if folds < 2 else (4, LANES)  # within four lanes first: that is quick
        starts = [(v, lane) for start in range(0, LANES, part) for v in (0, 1) for lane in range(start, start + part)]
        even = [v * LANES + lane for v, lane in starts if lane // unit % 2 == 0]
        odd = [lane + unit for lane in even]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [b.fadd(lanes_of(b, x, y, even), lanes_of(b, x, y, odd)) for x, y in pairs]
        folds += 1
    return vectors[0]


def score_tile(b: Any, heads: list[Any], query: Rows, key: Any, rows: list[Any], fetched: list[Any]) -> list[Any]:
    """The products of some rows of `query` with some of `key`, head by head, in vectors. `fetched`: rows next."""
    totals = in_registers(b, [ir.Constant(FLOATS, [0.0] * LANES)] * SUMS)
    with loop(b, index_of(0), query.width, key.step) as (d, _):
        for row in fetched:
            key.fetch(row, d)
        columns = [b.add(d, index_of(column)) for column in range(0, key.step, LANES)]
        for k, row in enumerate(rows):
            for y, column in zip(key.read(row, d), columns, strict=True):
                for q, head in enumerate(heads):
                    add_product(b, totals[q * len(rows) + k], query.load(query.at(head, column)), y)
    found = [b.load(total) for total in totals]
    return [sums_of(b, found[i : i + LANES]) for i in range(0, SUMS, LANES)]


def emit_scores(b: Any, args: Any, query: Rows, key: Any, score: Rows) -> None:
    """score[g : g + size, first : stop] = query[g : g + size] . key; c is row at + c * stride of `key`.

    `args`: size (one of TILES), g, at, stride, first, stop, ahead. Rows `ahead` of them are fetched. What of `score`
    lies behind `stop`, up to a multiple of SUMS, may be overwritten.
    """
    size, g, at, stride, first, stop, ahead = args
    last = b.sub(stop, index_of(1))

    def tile(num_heads: int, c: Any) -> None:
        heads, num_keys = [b.add(g, index_of(q)) for q in range(num_heads)], SUMS // num_heads
        tokens = [b.add(c, index_of(k)) for k in range(num_keys)]
        known = [b.select(b.icmp_signed("<", token, last), token, last) for token in tokens]
        rows = [b.add(at, b.mul(token, stride)) for token in known]
        fetched = [b.add(row, ahead) for row in rows]
        sums, width = score_tile(b, heads, query, key, rows, fetched), min(num_keys, LANES)
        for i in range(0, SUMS, width):
            one, start = sums[i // LANES], i % LANES
            part = lanes_of(b, one, one, list(range(start, start + width)))
            score.store(part, score.at(heads[i // num_keys], tokens[i % num_keys]))

    for num_heads in TILES:
        right = b.if_then(b.icmp_signed("==", size, index_of(num_heads)))
        with right, loop(b, first, stop, SUMS // num_heads) as (c, _):
            tile(num_heads, c)


@typed_intrinsic
def widen(typing_context: Any, element: Any) -> Any:
    """A row's element as float32."""
    return types.float32(element), lambda _, b, signature, args: _to_float32(b, element, args[0])


@typed_intrinsic
def narrow(typing_context: Any, number: Any, like: Any) -> Any:
    """A float32 as an element of rows like `like`."""
    return like.dtype(number, like), lambda _, b, signature, args: _from_float32(b, like.dtype, args[0])


@typed_intrinsic
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 that an int32 has the bits of."""
    return types.float32(types.int32), lambda _, b, signature, args: b.bitcast(args[0], FLOAT)
