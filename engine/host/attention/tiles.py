"""The tiles of decode attention: products of query heads with keys, and of shares with values.

Rows further on are fetched into the second-level cache: the processor's own prefetcher loses track between the rows of
a tile.
"""

from typing import Any, Final

from numba import types

from engine.host import turns
from engine.host.vectors import (
    LANES,
    SUMS,
    TILES,
    Rows,
    add_product,
    emit_scores,
    in_registers,
    index_of,
    lanes_of,
    loop,
    made_by,
    typed_intrinsic,
)

MADE_BY: Final = made_by(__file__, turns.__file__)


def _add_tile(b: Any, heads: list[Any], columns: list[Any], share: Rows, value: Rows, total: Rows, walk: Any) -> None:
    """Adds shares . values to some columns of some query heads. `walk` = first, stop, row of a token, rows ahead."""
    first, stop, row_of, ahead = walk
    places = [total.at(head, column) for head in heads for column in columns]
    totals = in_registers(b, [total.load(place) for place in places])
    line = max(1, 64 // (LANES * value.element.bitwidth // 8))
    with loop(b, first, stop, 1) as (c, _):
        row = row_of(c)
        for column in columns[::line]:
            value.fetch(b.add(row, ahead), column)
        values = [value.load(value.at(row, column)) for column in columns]
        for q, head in enumerate(heads):
            x = share.repeat(share.at(head, c))
            for v, y in enumerate(values):
                add_product(b, totals[q * len(columns) + v], x, y)
    for place, sums in zip(places, totals, strict=True):
        total.store(b.load(sums), place)


@typed_intrinsic
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

    `size` is one of TILES, and the rows that lie `ahead` rows on are fetched. What of `out` lies behind `stop`, up to
    a multiple of SUMS, may be overwritten.
    """

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        query, key, score = (Rows(context, b, signature.args[i], args[i]) for i in (2, 3, 9))
        emit_scores(b, (*args[:2], *args[4:9]), query, key, score)
        return context.get_dummy_value()

    return types.void(size, g, queries, keys, at, stride, first, stop, ahead, out), emit


@typed_intrinsic
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
        share, value, total = (Rows(context, b, signature.args[i], args[i]) for i in (2, 3, 9))

        def row_of(c: Any) -> Any:
            return b.add(at, b.mul(c, stride))

        for num_heads in TILES:
            heads, many = [b.add(g, index_of(q)) for q in range(num_heads)], min(4, SUMS // num_heads)
            with b.if_then(b.icmp_signed("==", size, index_of(num_heads))):
                whole = b.sub(total.width, b.urem(total.width, index_of(many * LANES)))
                for num, start, end in ((many, index_of(0), whole), (1, whole, total.width)):
                    with loop(b, start, end, num * LANES) as (d, _):
                        columns = [b.add(d, index_of(v * LANES)) for v in range(num)]
                        _add_tile(b, heads, columns, share, value, total, (first, stop, row_of, ahead))
        return context.get_dummy_value()

    return types.void(size, g, shares, values, at, stride, first, stop, ahead, out), emit


@typed_intrinsic
def highest(typing_context: Any, scores: Any, g: Any, stop: Any) -> Any:
    """The highest of scores[g, :stop], stop being a multiple of LANES; or one of them, if there are NaN."""

    def emit(context: Any, b: Any, signature: Any, args: Any) -> Any:
        score = Rows(context, b, signature.args[0], args[0])
        (best,) = in_registers(b, [score.load(score.at(args[1], index_of(0)))])
        with loop(b, index_of(0), args[2], LANES) as (c, _):
            one, other = b.load(best), score.load(score.at(args[1], c))
            b.store(b.select(b.fcmp_ordered(">", other, one), other, one), best)
        found, width = b.load(best), LANES
        while width > 1:
            width //= 2
            other = lanes_of(b, found, found, [lane % width + width for lane in range(LANES)])
            found = b.select(b.fcmp_ordered(">", other, found), other, found)
        return b.extract_element(found, index_of(0))

    return types.float32(scores, g, stop), emit
