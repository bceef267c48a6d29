"""Products of tokens with an expert's matrix as vectors, whatever its weights are: whole, half or packed numbers.

A matrix is an array of rows as they are stored. Types of elements say what they are: float32; uint16, float16's bits;
int16, bfloat16's; int8, numbers of 8 bits that share a float16 scale, 32 along the input; uint8, pairs of numbers of 4
bits with 8 added, 32 of which share a scale: the low halves of 16 bytes are the first, the high halves the others.
"""

from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from engine.host import turns
from engine.host.vectors import (
    FLOAT,
    FLOATS,
    LANES,
    SUMS,
    TILES,
    Rows,
    add_product,
    emit_scores,
    fetch_line,
    in_registers,
    index_of,
    lanes_of,
    loop,
    made_by,
    typed_intrinsic,
)

MADE_BY: Final = made_by(__file__, turns.__file__)

GROUP: Final = 32
"""Packed numbers that share a scale."""

LINE_BYTES: Final = 64

_BYTE, _WORD, _HALF = ir.IntType(8), ir.IntType(32), ir.HalfType()
_ZERO = 8.0
"""What numbers of 4 bits are stored with on top."""


class _Lines(Rows):
    """Rows that are read by whole cache lines."""

    def __init__(self, context: Any, b: Any, kind: Any, array: Any) -> None:
        super().__init__(context, b, kind, array)
        self.step = max(LANES, LINE_BYTES * 8 // self.element.bitwidth)

    def read(self, row: Any, column: Any) -> list[Any]:
        places = (self.at(row, self.b.add(column, index_of(v))) for v in range(0, self.step, LANES))
        return [self.load(place) for place in places]


class _Numbers(Rows):
    """What packed rows have in common: rows of bytes, and beside them rows of scales."""

    def __init__(self, context: Any, b: Any, kinds: Any, arrays: Any) -> None:
        super().__init__(context, b, kinds[0], arrays[0])
        self.scales = Rows(context, b, kinds[1], arrays[1])
        self.by_bytes = 2 if self.element == types.uint8 else 1

    def numbers(self, place: Any, count: int) -> list[Any]:
        """The numbers of `count` bytes as floats, in vectors; of low halves first, then of high ones."""
        b, words = self.b, ir.VectorType(_WORD, count)
        found = b.load(b.bitcast(place, ir.VectorType(_BYTE, count).as_pointer()), align=1)
        floats = ir.VectorType(FLOAT, count)
        if self.by_bytes == 1:
            wide = [b.sitofp(b.sext(found, words), floats)]
        else:
            bits = b.zext(found, words)
            low, shift = (ir.Constant(words, [value] * count) for value in (15, 4))
            wide = [b.sitofp(half, floats) for half in (b.and_(bits, low), b.lshr(bits, shift))]
        parts = range(0, count, LANES)
        return [lanes_of(b, one, one, list(range(part, part + LANES))) for one in wide for part in parts]

    def weights(self, numbers: list[Any], scale: Any) -> list[Any]:
        """Numbers times their scale: exact, in any order."""
        b = self.b
        if self.by_bytes == 1:
            return [b.fmul(number, scale) for number in numbers]
        shift = b.fmul(scale, ir.Constant(FLOATS, [-_ZERO] * LANES))
        return [b.fadd(b.fmul(number, scale, flags=("contract",)), shift, flags=("contract",)) for number in numbers]


class _PackedRows(_Numbers):
    """Packed numbers of rows whose groups lie along them; columns count numbers."""

    step = GROUP

    def read(self, row: Any, column: Any) -> list[Any]:
        b = self.b
        place = self.at(row, b.udiv(column, index_of(self.by_bytes)))
        half = b.load(b.bitcast(self.scales.at(row, b.udiv(column, index_of(GROUP))), _HALF.as_pointer()), align=2)
        none = ir.Constant(FLOATS, ir.Undefined)
        scale = lanes_of(b, b.insert_element(none, b.fpext(half, FLOAT), index_of(0)), none, [0] * LANES)
        count = GROUP // self.by_bytes
        if self.by_bytes == 2:
            return self.weights(self.numbers(place, count), scale)
        places = (b.gep(place, [index_of(at)]) for at in range(0, count, LANES))
        return self.weights([self.numbers(one, LANES)[0] for one in places], scale)

    def fetch(self, row: Any, column: Any) -> None:
        b, line, line_of_scales = self.b, LINE_BYTES * self.by_bytes, LINE_BYTES // 2 * GROUP
        with b.if_then(b.icmp_signed("==", b.urem(column, index_of(line)), index_of(0))):
            fetch_line(b, self.at(row, b.udiv(column, index_of(self.by_bytes))))
        with b.if_then(b.icmp_signed("==", b.urem(column, index_of(line_of_scales)), index_of(0))):
            fetch_line(b, self.scales.at(row, b.udiv(column, index_of(GROUP))))


def _rows_of(context: Any, b: Any, kinds: Any, arrays: Any) -> Any:
    if kinds[0].dtype.bitwidth == 8:
        return _PackedRows(context, b, kinds, arrays)
    return _Lines(context, b, kinds[0], arrays[0])


@typed_intrinsic
def row_products(
    _: Any, size: Any, g: Any, x: Any, weights: Any, scales: Any, at: Any, stop: Any, ahead: Any, out: Any
) -> Any:
    """out[g : g + size, : stop] = x[g : g + size] . weights[at : at + stop], row with row.

    `size` is one of TILES, and the rows that are `ahead` on are fetched. What of `out` lies behind `stop`, up to a
    multiple of SUMS, may be overwritten.
    """

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        size, g, *_, at, stop, ahead, _ = args
        query, found = (Rows(context, b, signature.args[i], args[i]) for i in (2, 8))
        matrix = _rows_of(context, b, signature.args[3:5], args[3:5])
        emit_scores(b, (size, g, at, index_of(1), index_of(0), stop, ahead), query, matrix, found)
        return context.get_dummy_value()

    return types.void(size, g, x, weights, scales, at, stop, ahead, out), emit


class _Columns:
    """A matrix whose input comes first: what the elements of a stored row are, and which inputs they belong to."""

    def __init__(self, context: Any, b: Any, kinds: Any, arrays: Any) -> None:
        self.b, self.packed = b, kinds[0].dtype.bitwidth == 8
        self.rows: Any = _Numbers(context, b, kinds, arrays) if self.packed else Rows(context, b, kinds[0], arrays[0])

    def inputs(self, row: Any) -> list[Any]:
        """The inputs that the elements of a stored row belong to: two where two share a byte."""
        if not self.packed or self.rows.by_bytes == 1:
            return [row]
        b, half = self.b, index_of(GROUP // 2)
        first = b.add(row, b.mul(b.udiv(row, half), half))
        return [first, b.add(first, half)]

    def read(self, row: Any, column: Any) -> list[Any]:
        """LANES columns, for each input."""
        if not self.packed:
            return [self.rows.load(self.rows.at(row, column))]
        group = self.b.udiv(row, index_of(GROUP // self.rows.by_bytes))
        scale = self.rows.scales.load(self.rows.scales.at(group, column))
        found: list[Any] = self.rows.weights(self.rows.numbers(self.rows.at(row, column), LANES), scale)
        return found


@typed_intrinsic
def add_columns(
    _: Any,
    size: Any,
    g: Any,
    x: Any,
    weights: Any,
    scales: Any,
    first: Any,
    stop: Any,
    at: Any,
    width: Any,
    ahead: Any,
    out: Any,
) -> Any:
    """out[g : g + size, :width] += x[g : g + size] . weights[first : stop, at : at + width], stored rows of it.

    `width` is a multiple of LANES. Otherwise as `row_products`.
    """

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        size, g, *_, first, stop, at, width, ahead, _ = args
        token, total = (Rows(context, b, signature.args[i], args[i]) for i in (2, 10))
        matrix = _Columns(context, b, signature.args[3:5], args[3:5])
        line = max(1, LINE_BYTES * 8 // (LANES * matrix.rows.element.bitwidth))

        def tile(heads: list[Any], columns: list[Any]) -> None:
            places = [total.at(head, column) for head in heads for column in columns]
            totals = in_registers(b, [total.load(place) for place in places])
            with loop(b, first, stop, 1) as (c, _):
                for column in columns[::line]:
                    matrix.rows.fetch(b.add(c, ahead), b.add(at, column))
                found = [matrix.read(c, b.add(at, column)) for column in columns]
                for i, given in enumerate(matrix.inputs(c)):
                    for q, head in enumerate(heads):
                        factor = token.repeat(token.at(head, given))
                        for v, vectors in enumerate(found):
                            add_product(b, totals[q * len(columns) + v], factor, vectors[i])
            for place, sums in zip(places, totals, strict=True):
                total.store(b.load(sums), place)

        for num_heads in TILES:
            heads, many = [b.add(g, index_of(q)) for q in range(num_heads)], min(4, SUMS // num_heads)
            with b.if_then(b.icmp_signed("==", size, index_of(num_heads))):
                whole = b.sub(width, b.urem(width, index_of(many * LANES)))
                for num, start, end in ((many, index_of(0), whole), (1, whole, width)):
                    with loop(b, start, end, num * LANES) as (d, _):
                        tile(heads, [b.add(d, index_of(v * LANES)) for v in range(num)])
        return context.get_dummy_value()

    return types.void(size, g, x, weights, scales, first, stop, at, width, ahead, out), emit
