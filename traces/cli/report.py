"""What `python -m traces` tells a person: tables that fit 100 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from traces.analysis import NAMED, Account, CriticalPath, Diff, LaneUse, Summary, by_op
from traces.trace import NONE, Span, Trace, lane_name

PLAIN_WIDTH = 100
"""Columns where the output is no terminal."""

WAITS_SHOWN = 3
"""What a lane waited for, at most, in the table of lanes."""

_FACTS = ("schedule", "model", "hardware", "device", "policy")


def print_summary(path: str, summary: Summary) -> None:
    """Print what happened in one run."""
    out = _console()
    _print_head(out, path, summary.metadata, summary.makespan_ns)
    lanes = _table("lane", ">spans", ">busy", ">busy %", ">idle", "waited for", ">moved", ">mean rate")
    for use in summary.lanes:
        lanes.add_row(*_lane(use))
    out.print(lanes)
    ops = _table("op", "lane", ">spans", ">total", ">mean", ">longest")
    for op in summary.ops:
        mean_ns = op.total_ns / op.num_spans
        ops.add_row(
            escape(op.op), op.lane, f"{op.num_spans:,}", _time(op.total_ns), _time(mean_ns), _time(op.longest_ns)
        )
    out.print(ops)
    peaks = ", ".join(f"{escape(tier)} {_bytes(peak)}" for tier, peak in summary.memory_peak_bytes.items())
    out.print(f"Memory peaks: {peaks or 'not recorded in this trace'}")


def print_critical_path(path: str, trace: Trace, chain: CriticalPath, top: int) -> None:
    """Print what made a run as long as it was."""
    out = _console()
    _print_head(out, path, trace.metadata, trace.makespan_ns)
    out.print(
        f"Critical path: {len(chain.spans):,} of {_count(len(trace.spans), 'task')}. Gaps, in which none of them ran: "
        f"{len(chain.gaps):,}, {_time(chain.gaps_ns)} ({chain.gap_share:.1%}) in all."
    )
    for title, ns_by_name in (("by op", chain.ns_by_op()), ("by lane", chain.ns_by_lane())):
        shares = _table(title, ">on the path", ">share of the run", ">gaps before it")
        for name, ns in ns_by_name.items():
            gap_ns = chain.gap_ns_by_op().get(name, 0) if title == "by op" else _gaps_before_lane(chain, name)
            shares.add_row(escape(name), _time(ns), _share(ns, trace.makespan_ns), _time(gap_ns))
        shares.add_row("gaps", _time(chain.gaps_ns), _share(chain.gaps_ns, trace.makespan_ns), "")
        out.print(shares)
    longest = _table("longest stretches on one lane", "lane", ">tasks", ">from", ">on the path", ">share", "mostly")
    for stretch in chain.stretches()[:top]:
        first, share = stretch.first, _share(stretch.on_path_ns, trace.makespan_ns)
        longest.add_row(
            f"{_task(first)} … {_task(stretch.last)}" if len(stretch.spans) > 1 else _task(first),
            lane_name((first.lane, first.rank)),
            f"{len(stretch.spans):,}",
            _time(first.start_ns - trace.start_ns),
            _time(stretch.on_path_ns),
            share,
            escape(next(iter(stretch.ns_by_op))),
        )
    out.print(longest)


def print_diff(path_a: str, path_b: str, found: Diff) -> None:
    """Print how two runs differ, and where the time went."""
    out = _console()
    _print_head(out, f"A  {path_a}", found.a.metadata, found.a.makespan_ns)
    _print_head(out, f"B  {path_b}", found.b.metadata, found.b.makespan_ns)
    relative = f" ({found.change_ns / found.a.makespan_ns:+.1%})" if found.a.makespan_ns else ""
    out.print(f"[bold]B − A: {_signed(found.change_ns)}{relative}[/bold]. {_in_a_sentence(found.account)}")
    out.print(_account(found.account))
    ops = _table("tasks of both", "lane", ">count", ">A", ">B", ">B − A", ">mean |error|", ">bias")
    for op in found.ops:
        change = _signed(op.b_ns - op.a_ns)
        errors = (_percent(op.mean_abs_error), _percent(op.bias, "+"))
        moved = op.lane_a if op.lane_a == op.lane_b else f"{op.lane_a} → {op.lane_b}"
        ops.add_row(escape(op.op), moved, f"{op.pairs:,}", _time(op.a_ns), _time(op.b_ns), change, *errors)
    out.print(ops)
    lanes = _table("lane", ">busy A", ">of A", ">busy B", ">of B", ">B − A")
    for lane, (a_ns, b_ns) in found.busy_ns.items():
        a_share, b_share = _share(a_ns, found.a.makespan_ns), _share(b_ns, found.b.makespan_ns)
        lanes.add_row(lane_name(lane), _time(a_ns), a_share, _time(b_ns), b_share, _signed(b_ns - a_ns))
    out.print(lanes)
    for name, only in (("A", found.alignment.only_a), ("B", found.alignment.only_b)):
        out.print(_only(name, only))


def _console() -> Console:
    """Standard output, at the terminal's width or wide enough for every column."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)


def _table(*headings: str) -> Table:
    """A table; a heading that begins with > is of numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        numbers = heading.startswith(">")
        wraps = heading == "waited for"
        table.add_column(heading.removeprefix(">"), justify="right" if numbers else "left", no_wrap=not wraps)
    return table


def _print_head(out: Console, path: str, metadata: Mapping[str, Any], makespan_ns: int) -> None:
    out.print(f"[bold]{escape(path)}[/bold]: {escape(str(metadata['origin']))}, makespan {_time(makespan_ns)}")
    known = [f"{name} {_fact(metadata[name])}" for name in _FACTS if name in metadata]
    if metadata.get("batches", 1) != 1:
        known.append(f"first of {metadata['batches']} batches")
    if known:
        out.print(escape("; ".join(known)))


def _fact(value: Any) -> str:
    """A fact in words: the name of a machine, or the fields of a policy."""
    if isinstance(value, dict):
        parts = (f"{key} {_fact(part)}" for key, part in value.items() if part is not None)
        return str(value["name"]) if "name" in value else ", ".join(parts)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lane(use: LaneUse) -> tuple[str, ...]:
    shown = list(use.waited_ns.items())[:WAITS_SHOWN]
    waits = [f"{escape(what)} {_time(ns)}" for what, ns in shown]
    rest_ns = sum(use.waited_ns.values()) - sum(ns for _, ns in shown)
    if rest_ns:
        waits.append(f"other {_time(rest_ns)}")
    moved = (_bytes(use.moved_bytes), f"{_bytes(use.bytes_per_s)}/s") if use.copies else ("", "")
    times = (_time(use.busy_ns), f"{use.busy_share:.1%}", _time(use.idle_ns))
    return (lane_name(use.lane), f"{use.num_spans:,}", *times, ", ".join(waits), *moved)


def _gaps_before_lane(chain: CriticalPath, lane: str) -> int:
    return sum(gap.duration_ns for gap in chain.gaps if gap.before.lane == lane)


def _account(account: Account) -> Table:
    table = _table(
        "where the time went", "lane", ">on A's path", ">on B's", ">B − A", ">same tasks", ">joined", ">left"
    )
    for part in account.paths:
        split = (_signed(part.same_ns), _signed(part.joined_ns), _signed(-part.left_ns))
        table.add_row(escape(part.op), part.lane, _time(part.a_ns), _time(part.b_ns), _signed(part.change_ns), *split)
    table.add_row("gaps", "", _time(account.a_gaps_ns), _time(account.b_gaps_ns), _signed(account.gaps_ns))
    sums = [sum(values) for values in zip(*((p.a_ns, p.b_ns) for p in account.paths), strict=True)] or [0, 0]
    whole_a, whole_b = sums[0] + account.a_gaps_ns, sums[1] + account.b_gaps_ns
    table.add_row("sum", "", _time(whole_a), _time(whole_b), _signed(account.total_ns), style="bold")
    return table


def _in_a_sentence(account: Account) -> str:
    same_ns = sum(part.same_ns for part in account.paths)
    moved_ns = sum(part.joined_ns - part.left_ns for part in account.paths)
    return (
        f"On the critical paths: tasks on both {_signed(same_ns)}, other tasks instead {_signed(moved_ns)}, "
        f"gaps {_signed(account.gaps_ns)}."
    )


def _only(name: str, spans: list[Span]) -> str:
    if not spans:
        return f"Only in {name}: no task."
    counts = ", ".join(f"{len(found):,} {escape(op)}" for op, found in by_op(spans).items())
    named = "; ".join(_task(span) for span in spans[:NAMED])
    total_ns = sum(span.duration_ns for span in spans)
    return f"Only in {name}: {_count(len(spans), 'task')}, {_time(total_ns)}: {counts}. First: {named}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _task(span: Span) -> str:
    return escape(" ".join((span.op, *_coordinates(span))))


def _coordinates(span: Span) -> list[str]:
    """Step, layer, micro-batch and page, as slices in a viewer are named: `s1 L3 m2 p0`."""
    places = (("s", span.step), ("L", span.layer), ("m", span.micro_batch), ("p", span.page))
    return [f"{letter}{number}" for letter, number in places if number != NONE]


def _time(ns: float) -> str:
    """Three digits, in the unit that suits."""
    size = abs(ns)
    if size >= 1e12:
        return f"{ns / 1e9:,.0f} s"
    for unit, ns_per_unit in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if size >= 0.9995 * ns_per_unit:
            return f"{_digits(ns / ns_per_unit)} {unit}"
    return f"{ns:.3g} ns" if ns else "0"


def _signed(ns: int) -> str:
    return _time(ns) if ns <= 0 else f"+{_time(ns)}"


def _digits(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def _bytes(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= 0.9995 * scale:
            return f"{_digits(size / scale)} {unit}"
    return f"{size:.0f} B"


def _share(ns: int, makespan_ns: int) -> str:
    return f"{ns / makespan_ns:.1%}" if makespan_ns else ""


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1%}"
