"""Sections of pages that plans and comparisons share: predictions in rows, memories as bars, a layer as a timeline."""

from collections.abc import Iterable, Sequence
from typing import Any

from sim.cost import Setup
from sim.planning.explanation import MemoryUse
from sim.planning.report import in_short, peaks_gb, speeds
from sim.simulation import Prediction, layer_view
from traces.cli import legend
from traces.page import (
    MemoryBar,
    MemoryBars,
    PageColumn,
    SortableTable,
    TimelineBars,
    Timelines,
    colours,
    colours_of,
    merged,
)

LANES = ("GPU", "CPU", "H2D", "D2H", "PIN", "DISK", "NET")
"""From top to bottom."""


def _column(name: str, digits: int | None = None) -> PageColumn:
    words = {word: text for chapter in legend(name).values() for word, text in chapter.items()}
    return PageColumn(name, digits, "; ".join(f"{word}: {text}" for word, text in words.items()))


def predictions_table(heading: str, found: Iterable[Prediction], marked: int | None = 0) -> SortableTable:
    """A row for each."""
    columns = (
        _column("schedule"),
        _column("policy"),
        _column("tokens/s", 2),
        _column("prefill tokens/s", 1),
        _column("first token (s)", 1),
        _column("decode tokens/s", 1),
        _column("a request", 2),
        _column("requests", 0),
        _column("busiest"),
        *(_column(f"GB {tier}", 1) for tier in ("device", "host", "pinned")),
    )
    return SortableTable(heading, columns, tuple(map(_row, found)), marked)


def _row(one: Prediction) -> tuple[Any, ...]:
    prefill, _, decode, of_each = speeds(one)
    rates = (one.throughput_tokens_per_s, prefill, one.time_to_first_token_s, decode, of_each)
    return (one.schedule, in_short(one.policy), *rates, one.num_requests, one.bottleneck, *peaks_gb(one.setup))


def memory_section(heading: str, setups: Sequence[tuple[str, Setup]]) -> MemoryBars:
    """Every memory of each setup, with a name in front if it has one."""
    bars = [
        MemoryBar(f"{name} {use.name}".strip(), use.capacity_bytes, use.parts)
        for name, setup in setups
        for use in MemoryUse.of(setup.memory, setup.problem.hardware)
    ]
    return MemoryBars(heading, tuple(bars), colours_of("parts", (part for one in bars for part in one.parts)))


def timelines_section(heading: str, found: Iterable[Prediction]) -> Timelines:
    """The middle layer of a decode step in the middle of each generation."""
    shown = tuple(map(_timeline, found))
    ops = {op for one in shown for bars in one.lanes.values() for op, _, _ in bars}
    words = {op: text for chapter in legend(" ".join(ops)).values() for op, text in chapter.items()}
    return Timelines(heading, shown, {op: colour for op, colour in colours().items() if op in ops}, words)


def _timeline(one: Prediction) -> TimelineBars:
    view = layer_view(one.setup)
    length, bars = view.length_ms, view.bars()
    lanes = {lane: merged(bars[lane], length) for lane in LANES if lane in bars}
    each = length * 1e3 / one.num_requests
    note = f"{view.took} for {one.num_requests:,} requests, {each:,.0f} µs a request"
    return TimelineBars(one.schedule, note, length, lanes)
