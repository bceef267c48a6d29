"""Pictures of a campaign: predicted over measured throughput of every run, and the error of every op."""

from pathlib import Path

from matplotlib.ticker import LogLocator

from traces.cli import new_figure, open_frame, save
from traces.page import colours_of
from validation.campaign.findings import Findings

MARKERS = "osD^v"
BAND = 0.05


def draw_runs(findings: Findings, path: Path) -> None:
    """Every run as a point: measured throughput with its range, predicted throughput, and a band of ±5 %."""
    figure = new_figure(8, 7)
    ax = figure.subplots()
    models = list(dict.fromkeys(run.case.model for run in findings.runs))
    schedules = list(dict.fromkeys(run.case.schedule for run in findings.runs))
    known = colours_of("schedules", schedules)
    for run in findings.runs:
        x, y, spread = run.measured.median, run.predicted_tokens_per_s, run.measured
        marker, colour = MARKERS[models.index(run.case.model) % len(MARKERS)], known[run.case.schedule]
        reach = [[x - spread.low], [spread.high - x]]
        ax.errorbar(x, y, xerr=reach, fmt=marker, color=colour, markersize=6, elinewidth=1, alpha=0.85)
    values = [run.measured.low for run in findings.runs] + [run.measured.high for run in findings.runs]
    ends = [min(values) * 0.9, max(values) * 1.1]
    ax.plot(ends, ends, color="black", linewidth=1)
    ax.fill_between(ends, [x * (1 - BAND) for x in ends], [x * (1 + BAND) for x in ends], color="0.88", zorder=0)
    ax.set(xscale="log", yscale="log", ylabel="predicted tokens/s (simulated)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
        axis.set_tick_params(which="both", labelsize=8)
    ax.set_xlabel(f"measured tokens/s ({findings.origin}), median and range of {findings.repeats}")
    ax.set_title(f"{len(findings.runs)} runs; grey: ±{BAND:.0%}", loc="left", fontsize=11)
    for schedule in schedules:
        ax.plot([], [], "o", color=known[schedule], label=schedule)
    for at, model in enumerate(models):
        ax.plot([], [], MARKERS[at % len(MARKERS)], color="0.4", label=model)
    ax.legend(frameon=False, fontsize=9)
    ax.grid(which="both", color="0.93", linewidth=0.6)
    save(figure, path)


def draw_ops(findings: Findings, path: Path) -> None:
    """Measured and predicted seconds of every op, with its weighted error."""
    ops = findings.ops
    figure = new_figure(10, 1.2 + 0.36 * len(ops))
    ax = figure.subplots()
    rows = range(len(ops))
    ax.barh([row - 0.2 for row in rows], [one.measured_s for one in ops], 0.38, label=f"measured ({findings.origin})")
    ax.barh([row + 0.2 for row in rows], [one.predicted_s for one in ops], 0.38, label="predicted (simulated)")
    for row, one in zip(rows, ops, strict=True):
        ax.text(max(one.measured_s, one.predicted_s), row, f"  WAPE {one.wape:.0%}, bias {one.bias:+.0%}", va="center")
    ax.set_yticks(rows, [f"{one.op}, {one.lane}, {one.phase}" for one in ops])
    ax.invert_yaxis()
    ax.set(xlabel="seconds over all runs", xlim=(0, 1.25 * max(max(one.measured_s, one.predicted_s) for one in ops)))
    open_frame(ax)
    ax.legend(frameon=False)
    save(figure, path)
