"""What `python -m traces` tells a person."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from rich.markup import escape

from traces.analysis import NAMED, Account, CriticalPath, Diff, LaneUse, OpChange, Stretch, Summary, count_by_op
from traces.cli.tables import PROSE, TEXT, Columns, Report
from traces.trace import NONE, Span, Trace, lane_name

_WAITS_SHOWN = 3  # of what a lane waited for, in the table of lanes
_FACTS = ("schedule", "model", "hardware", "device", "policy")


def print_summary(path: str, summary: Summary) -> None:
    """Print what happened in one run."""
    out = Report()
    _print_head(out, path, summary.metadata, summary.makespan_ns)
    work: Columns = {"lane": TEXT, "spans": ",", "busy": _time, "busy %": ".1%", "idle": _time}
    out.table([work, {"moved": _bytes, "mean rate": _rate}, {"waited for": PROSE}], map(_lane, summary.lanes))
    ops: Columns = {"op": TEXT, "lane": TEXT, "spans": ",", "total": _time, "mean": _time, "longest": _time}
    uses = (
        (one.op, one.lane, one.num_spans, one.total_ns, one.total_ns / one.num_spans, one.longest_ns)
        for one in summary.ops
    )
    out.table(ops, uses, keys=2)
    peaks = ", ".join(f"{escape(tier)} {_bytes(peak)}" for tier, peak in summary.memory_peak_bytes.items())
    out.say(f"Memory peaks: {peaks or 'not recorded in this trace'}")
    drawn: Columns = {"draws": TEXT, "mean W": ",.0f", "peak W": ",.0f", "joules": ",.4g"}
    if summary.power:
        out.table(drawn, ((one.name, one.mean_w, one.peak_w, one.joules) for one in summary.power))


def print_critical_path(path: str, trace: Trace, chain: CriticalPath, top: int) -> None:
    """Print what made a run as long as it was."""
    out = Report()
    _print_head(out, path, trace.metadata, trace.makespan_ns)
    out.say(
        f"Critical path: {len(chain.spans):,} of {_count(len(trace.spans))}. Gaps, in which none of them ran: "
        f"{len(chain.gaps):,}, {_time(chain.gaps_ns)} ({chain.gap_share:.1%}) in all."
    )
    share = partial(_share, makespan_ns=trace.makespan_ns)
    for what in ("op", "lane"):
        gaps_ns = chain.gap_ns_by(what)
        rows = [(name, ns, ns, gaps_ns.get(name, 0)) for name, ns in chain.ns_by(what).items()]
        shares: Columns = {f"by {what}": TEXT, "on the path": _time, "share of the run": share, "gaps before it": _time}
        out.table(shares, [*rows, ("gaps", chain.gaps_ns, chain.gaps_ns, None)])
    columns: Columns = {"longest stretches on one lane": PROSE, "lane": TEXT, "tasks": ",", "from": _time}
    stretches = (_stretch(one, trace.start_ns) for one in chain.stretches()[:top])
    out.table({**columns, "on the path": _time, "share": share, "mostly": TEXT}, stretches)


def print_diff(path_a: str, path_b: str, found: Diff) -> None:
    """Print how two runs differ, and where the time went."""
    out = Report()
    a_ns, b_ns = found.a.makespan_ns, found.b.makespan_ns
    _print_head(out, f"A  {path_a}", found.a.metadata, a_ns)
    _print_head(out, f"B  {path_b}", found.b.metadata, b_ns)
    relative = f" ({found.change_ns / a_ns:+.1%})" if a_ns else ""
    out.say(f"[bold]B − A: {_signed(found.change_ns)}{relative}[/bold]. {_in_a_sentence(found.account)}")
    path: Columns = {"where the time went": TEXT, "lane": TEXT, "on A's path": _time, "on B's": _time, "B − A": _signed}
    out.table({**path, "same tasks": _signed, "joined": _signed, "left": _signed}, _account(found.account), keys=2)
    columns: Columns = {"tasks of both": TEXT, "lane": TEXT, "count": ",", "A": _time, "B": _time, "B − A": _signed}
    out.table({**columns, "mean |error|": ".1%", "bias": "+.1%"}, map(_op, found.ops), keys=2)
    shares = [partial(_share, makespan_ns=ns) for ns in (a_ns, b_ns)]
    lanes = ((lane_name(lane), a, a, b, b, b - a) for lane, (a, b) in found.busy_ns.items())
    busy: Columns = {"lane": TEXT, "busy A": _time, "of A": shares[0], "busy B": _time, "of B": shares[1]}
    out.table({**busy, "B − A": _signed}, lanes)
    out.say(_only("A", found.alignment.only_a), _only("B", found.alignment.only_b))


def _print_head(out: Report, path: str, metadata: Mapping[str, Any], makespan_ns: int) -> None:
    out.say(f"[bold]{escape(path)}[/bold]: {escape(str(metadata['origin']))}, makespan {_time(makespan_ns)}")
    known = [f"{name} {_fact(metadata[name])}" for name in _FACTS if name in metadata]
    if metadata.get("batches", 1) != 1:
        known.append(f"first of {metadata['batches']} batches")
    if known:
        out.say(escape("; ".join(known)))


def _fact(value: Any) -> str:
    """A fact in words: the name of a machine, or the fields of a policy."""
    if isinstance(value, dict):
        parts = (f"{key} {_fact(part)}" for key, part in value.items() if part is not None)
        return str(value["name"]) if "name" in value else ", ".join(parts)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lane(use: LaneUse) -> tuple[Any, ...]:
    shown = list(use.waited_ns.items())[:_WAITS_SHOWN]
    rest_ns = sum(use.waited_ns.values()) - sum(ns for _, ns in shown)
    waits = [f"{what} {_time(ns)}" for what, ns in [*shown, ("other", rest_ns)] if ns]
    moved = (use.moved_bytes, use.bytes_per_s) if use.copies else (None, None)
    return lane_name(use.lane), use.num_spans, use.busy_ns, use.busy_share, use.idle_ns, *moved, ", ".join(waits)


def _stretch(one: Stretch, start_ns: int) -> tuple[Any, ...]:
    first = one.spans[0]
    tasks = f"{_task(first)} to {_task(one.spans[-1])}" if len(one.spans) > 1 else _task(first)
    times = (first.start_ns - start_ns, one.on_path_ns, one.on_path_ns)
    return tasks, lane_name((first.lane, first.rank)), len(one.spans), *times, next(iter(one.ns_by_op))


def _op(one: OpChange) -> tuple[Any, ...]:
    lanes = " → ".join(dict.fromkeys((one.lane_a, one.lane_b)))
    return one.op, lanes, one.tasks, one.a_ns, one.b_ns, one.change_ns, one.mean_abs_error, one.bias


def _account(account: Account) -> Iterator[tuple[Any, ...]]:
    parts = (*account.paths, account.gaps)
    for part in parts:
        split = (part.same_tasks_ns, part.joined_path_ns, -part.left_path_ns) if part.lane else (None, None, None)
        yield part.op, part.lane, part.a_ns, part.b_ns, part.change_ns, *split
    a_ns, b_ns = sum(part.a_ns for part in parts), sum(part.b_ns for part in parts)
    yield "sum", "", a_ns, b_ns, account.total_ns, None, None, None


def _in_a_sentence(account: Account) -> str:
    same_ns = sum(part.same_tasks_ns for part in account.paths)
    moved_ns = sum(part.joined_path_ns - part.left_path_ns for part in account.paths)
    return (
        f"On the critical paths: tasks on both {_signed(same_ns)}, other tasks instead {_signed(moved_ns)}, "
        f"gaps {_signed(account.gaps.change_ns)}."
    )


def _only(name: str, spans: list[Span]) -> str:
    if not spans:
        return f"Only in {name}: no task."
    counts = ", ".join(f"{number:,} {op}" for op, number in count_by_op(spans).items())
    named = "; ".join(_task(span) for span in spans[:NAMED])
    total_ns = sum(span.duration_ns for span in spans)
    return escape(f"Only in {name}: {_count(len(spans))}, {_time(total_ns)}: {counts}. First: {named}.")


def _count(tasks: int) -> str:
    return f"{tasks:,} task{'s' if tasks != 1 else ''}"


def _task(span: Span) -> str:
    """Op, step, layer, micro-batch and page, as slices in a viewer are named: `PostAttn s1 L3 m2 p0`."""
    places = zip("sLmp", (span.step, span.layer, span.micro_batch, span.page), strict=True)
    return " ".join((span.op, *(f"{letter}{number}" for letter, number in places if number != NONE)))


def _time(ns: float) -> str:
    return _scaled(ns, {"s": 1e9, "ms": 1e6, "µs": 1e3}) or (f"{ns:.3g} ns" if ns else "0")


def _signed(ns: int) -> str:
    return _time(ns) if ns <= 0 else f"+{_time(ns)}"


def _bytes(size: float) -> str:
    return _scaled(size, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}) or f"{size:.0f} B"


def _scaled(value: float, units: Mapping[str, float]) -> str:
    """Three digits in the largest unit that suits; nothing if all are too large."""
    for unit, scale in units.items():
        size = abs(value) / scale
        if size >= 0.9995:
            return f"{value / scale:,.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f} {unit}"
    return ""


def _rate(bytes_per_s: float) -> str:
    return f"{_bytes(bytes_per_s)}/s"


def _share(ns: int, makespan_ns: int) -> str:
    return f"{ns / makespan_ns:.1%}" if makespan_ns else ""
