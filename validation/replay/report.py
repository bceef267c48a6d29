"""What `replay` tells a person: each layer apart, with its bar where it has one."""

from dataclasses import astuple

from traces.cli import TEXT, Columns, Report
from validation.replay.checks import ORDER_BAR, DurationCheck, OrderCheck, Replay, RunCheck
from validation.replay.energy import EnergyCheck
from validation.replay.streams import StreamCheck

DELAYS_SHOWN = 6
PATH_SHOWN = 8


def print_replay(result: Replay) -> None:
    """Print the whole report."""
    out = Report()
    metadata = result.measured.metadata
    out.say(
        f"[bold]{metadata['schedule']}[/bold], {metadata.get('model', 'an unnamed model')}, {result.num_requests} "
        f"requests: {result.measured.origin}, {result.measured.makespan_ns / 1e9:.3f} s."
    )
    _print_order(out, result.order_check)
    if result.stream_check is not None:
        _print_stream(out, result.stream_check)
    if result.duration_check is None or result.run_check is None or result.hardware is None:
        out.say(f"Layers 2 and 3, the cost model: not done, {result.why_not}.")
        return
    out.say(f"Prediction for {result.hardware.name}: simulated.")
    handed_over = result.order_check.error_with_hand_over
    if handed_over is not None and result.hardware.hand_over_s:
        microseconds = f"{1e6 * result.hardware.hand_over_s:.0f} µs"
        out.say(f"Layer 1 with that machine's hand-over between lanes, {microseconds}: {_percent(handed_over)}.")
    _print_durations(out, result.duration_check)
    _print_run(out, result.run_check)
    if result.energy_check is not None:
        _print_energy(out, result.energy_check)


def _print_order(out: Report, layer: OrderCheck) -> None:
    met = "within" if abs(layer.error) <= ORDER_BAR else "above"
    absent = f" ({layer.absent} more had nothing to do, and take no time)" if layer.absent else ""
    out.say(
        f"[bold]Layer 1[/bold], the trace's own durations of {layer.tasks} tasks{absent} through its schedule: "
        f"{layer.replayed_s:.3f} s, {_percent(layer.error)}, {met} the bar of {ORDER_BAR:.0%}. With the median "
        f"hand-over delay of each pair of lanes: {layer.with_dispatch_s:.3f} s, {_percent(layer.error_with_dispatch)}."
    )
    if any(one.total_s for one in layer.gaps):
        shown = layer.gaps[:DELAYS_SHOWN]
        delays = ((*names, s * 1e6, p90_s * 1e6, all_s * 1e3) for *names, s, p90_s, all_s in map(astuple, shown))
        columns = {"after a task on": TEXT, "before one on": TEXT, "tasks": ",", "median µs": ",.0f"}
        columns |= {"9 of 10 below µs": ",.0f", "total ms": ",.1f"}
        out.table(columns, delays, "hand-over delays: from when a task could start to when it did", keys=2)


def _print_stream(out: Report, found: StreamCheck) -> None:
    """What a stream has beside the layers."""
    alike = f"{found.steps_alike} of {found.steps} steps carried what the rules of admission decide anew"
    out.say(f"[bold]Stream[/bold]: {alike}{f': {found.different}' if found.different else ''}.")
    latencies: Columns = {"time": TEXT, "of": TEXT, "measured s": ".3f", "predicted s": ".3f", "error": _percent}
    if found.latencies:
        out.table(latencies, map(astuple, found.latencies), "latencies, in the steps that the trace has")


def _print_durations(out: Report, layer: DurationCheck) -> None:
    over = f"WAPE {layer.wape:.1%}, bias {_percent(layer.bias)} over all tasks"
    out.say(f"[bold]Layer 2[/bold], durations by the cost model: {over}.")
    tasks = {"op": TEXT, "lane": TEXT, "phase": TEXT, "tasks": ",", "measured s": ".3f", "predicted s": ".3f"}
    errors: Columns = {"MAPE": ".1%", "WAPE": ".1%", "bias": _percent, "bias alone": _percent}
    out.table([tasks, errors], map(astuple, layer.ops), keys=3)


def _print_run(out: Report, layer: RunCheck) -> None:
    out.say(f"[bold]Layer 3[/bold], the simulated run: throughput {_percent(layer.throughput_error)}.")
    phases = {"whole": layer.run, "prefill": layer.prefill, "decode": layer.decode}
    rows = ((name, *astuple(one)) for name, one in phases.items() if one is not None)
    columns: Columns = {"phase": TEXT, "measured s": ".3f", "predicted s": ".3f", "error of time": _percent}
    out.table({**columns, "measured tokens/s": ",.2f", "predicted tokens/s": ",.2f"}, rows)
    shares = {"measured": ".1%", "predicted": ".1%"}
    lanes = {"lane": TEXT, **shares, "points": "+.1f"}
    out.table(lanes, map(astuple, layer.lanes), "busy, of each run's makespan")
    path = map(astuple, layer.path[:PATH_SHOWN])
    out.table({"op": TEXT, "lane": TEXT, **shares}, path, "critical path, of each run's makespan", keys=2)
    out.say(
        f"Critical paths agree in {layer.path_agreement:.0%} of the measured one's time by op and lane, and in "
        f"{layer.path_tasks_agreement:.0%} task by task."
    )


def _print_energy(out: Report, found: EnergyCheck) -> None:
    """Of what has counters alone."""
    out.say(
        f"[bold]Energy[/bold], of what was counted: {found.measured_j_per_token:.3g} J/token measured, "
        f"{found.predicted_j_per_token:.3g} predicted, {_percent(found.run.error or 0.0)}.",
        *(f"Not counted: {name}: {why}." for name, why in found.missing.items()),
    )
    columns: Columns = {"joules of": TEXT, "measured J": ",.1f", "predicted J": ",.1f", "error": _percent}
    out.table(columns, map(astuple, (found.run, *found.phases, *found.components)))


def _percent(share: float) -> str:
    return f"{share:+.2%}"
