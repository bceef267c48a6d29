"""What `replay` tells a person: each layer apart, with its bar where it has one."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from traces.cli import console
from validation.replay.checks import ORDER_BAR, DurationCheck, OrderCheck, PhaseError, Replay, RunCheck

GAPS_SHOWN = 6
PATH_SHOWN = 8


def print_replay(result: Replay) -> None:
    """Print the whole report."""
    out = console()
    metadata = result.measured.metadata
    out.print(
        f"[bold]{metadata['schedule']}[/bold], {metadata.get('model', 'an unnamed model')}, {result.num_requests} "
        f"requests: {result.measured.origin}, {result.measured.makespan_ns / 1e9:.3f} s."
    )
    _print_order(out, result.order_check)
    if result.duration_check is None or result.run_check is None or result.hardware is None:
        out.print(f"Layers 2 and 3, the cost model: not done, {result.why_not}.")
        return
    out.print(f"Prediction for {result.hardware.name}: simulated.")
    handed_over = result.order_check.error_with_hand_over
    if handed_over is not None and result.hardware.hand_over_s:
        microseconds = f"{1e6 * result.hardware.hand_over_s:.0f} µs"
        out.print(f"Layer 1 with that machine's hand-over between lanes, {microseconds}: {_percent(handed_over)}.")
    _print_durations(out, result.duration_check)
    _print_run(out, result.run_check)


def _print_order(out: Console, layer: OrderCheck) -> None:
    met = "within" if abs(layer.error) <= ORDER_BAR else "above"
    absent = f" ({layer.absent} more had nothing to do, and take no time)" if layer.absent else ""
    out.print(
        f"[bold]Layer 1[/bold], the trace's own durations of {layer.tasks} tasks{absent} through its schedule: "
        f"{layer.replayed_s:.3f} s, {_percent(layer.error)}, {met} the bar of {ORDER_BAR:.0%}. With the median gap "
        f"of each pair of lanes between tasks: {layer.with_dispatch_s:.3f} s, {_percent(layer.error_with_dispatch)}."
    )
    table = _table("gaps: from when a task could start to when it did", "after a task on", "gap of", "tasks")
    for heading in ("median µs", "9 of 10 below µs", "total ms"):
        table.add_column(heading, justify="right")
    for gap in layer.gaps[:GAPS_SHOWN]:
        times = (f"{gap.median_s * 1e6:,.0f}", f"{gap.p90_s * 1e6:,.0f}", f"{gap.total_s * 1e3:,.1f}")
        table.add_row(gap.before, gap.after, f"{gap.count:,}", *times)
    if any(gap.total_s for gap in layer.gaps):
        out.print(table)


def _print_durations(out: Console, layer: DurationCheck) -> None:
    out.print(
        f"[bold]Layer 2[/bold], durations by the cost model: WAPE {layer.wape:.1%}, bias {_percent(layer.bias)} over "
        f"all tasks."
    )
    table = _table("", "op", "lane", "phase")
    for heading in ("tasks", "measured s", "predicted s", "MAPE", "WAPE", "bias", "bias alone"):
        table.add_column(heading, justify="right")
    for one in layer.ops:
        seconds = (f"{one.measured_s:.3f}", f"{one.predicted_s:.3f}")
        errors = (f"{one.mape:.1%}", f"{one.wape:.1%}", _percent(one.bias), _percent(one.solo_bias))
        table.add_row(one.op, one.lane, one.phase, f"{one.count:,}", *seconds, *errors)
    out.print(table)
    out.print("bias alone: of the durations before tasks slow each other down.")


def _print_run(out: Console, layer: RunCheck) -> None:
    out.print(f"[bold]Layer 3[/bold], the simulated run: throughput {_percent(layer.throughput_error)}.")
    table = _table("", "phase")
    for heading in ("measured s", "predicted s", "error of time", "measured tokens/s", "predicted tokens/s"):
        table.add_column(heading, justify="right")
    for name, period in (("whole", layer.run), ("prefill", layer.prefill), ("decode", layer.decode)):
        if period is not None:
            table.add_row(name, *_period(period))
    out.print(table)
    lanes = _table("busy, of each run's makespan", "lane")
    for heading in ("measured", "predicted", "points"):
        lanes.add_column(heading, justify="right")
    for one in layer.lanes:
        lanes.add_row(one.lane, f"{one.measured:.1%}", f"{one.predicted:.1%}", f"{one.points:+.1f}")
    out.print(lanes)
    path = _table("critical path, of each run's makespan", "op", "lane")
    for heading in ("measured", "predicted"):
        path.add_column(heading, justify="right")
    for row in layer.path[:PATH_SHOWN]:
        path.add_row(row.op, row.lane, f"{row.measured:.1%}", f"{row.predicted:.1%}")
    out.print(path)
    out.print(
        f"Critical paths agree in {layer.path_agreement:.0%} of the measured one's time by op and lane, and in "
        f"{layer.path_tasks_agreement:.0%} task by task."
    )


def _period(period: PhaseError) -> tuple[str, ...]:
    seconds = (f"{period.measured_s:.3f}", f"{period.predicted_s:.3f}", _percent(period.error))
    return (*seconds, f"{period.measured_tokens_per_s:,.2f}", f"{period.predicted_tokens_per_s:,.2f}")


def _table(title: str, *headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{share:+.2%}"
