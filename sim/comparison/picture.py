"""The picture of a comparison: throughput as bars, and below a timeline of one layer per schedule.

Lanes are rows and ops are colours; what a lane waits shows white. Each timeline spans one layer of one decode step, all
on one time axis, so that what is longer took longer. A line on each bar is the band that most runs lie in.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from sim.comparison.comparison import Outcome
from sim.planning import title
from sim.problem import Problem
from sim.simulation import LEVEL, Band, LayerView, Prediction, layer_view
from traces.cli import ROW_ORDER, draw_lanes, name_ops, new_figure, open_frame, save

BEST, OTHERS = "#7694a3", "#c3cbcf"
"""Bars have their names beside them; colours are for the ops below."""


def draw(problem: Problem, outcomes: Sequence[Outcome], path: str, bands: Mapping[str, Band]) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written."""
    predictions = [one.prediction for one in outcomes if one.prediction is not None]
    views = [layer_view(one.setup) for one in predictions]
    longest_ms = max((view.length_ms for view in views), default=0.0)
    rows = [len({one.task.lane.kind for one in view.tasks}) for view in views]
    heights = [0.5 * len(predictions) + 0.6, *(0.32 * count + 0.55 for count in rows)]
    figure = new_figure(12, sum(heights) + 1.6)
    axes = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    figure.suptitle(f"{title(problem)}: simulated", fontsize=13)
    _bars(axes[0], predictions, bands)
    longest_ms = max((view.length_ms for view in views), default=0.0)
    for ax, one, view in zip(axes[1:], predictions, views, strict=True):
        _timeline(ax, one, view, longest_ms)
    name_ops(figure, (task.task.op for view in views for task in view.tasks))
    save(figure, path)


def _bars(ax: Axes, predictions: Sequence[Prediction], bands: Mapping[str, Band]) -> None:
    speeds = [one.throughput_tokens_per_s for one in predictions]
    ranges = [bands[one.schedule].throughput_tokens_per_s if bands else None for one in predictions]
    ends = [within.high if within else speed for within, speed in zip(ranges, speeds, strict=True)]
    best = max(speeds, default=0.0)
    places = range(len(predictions))
    ax.barh(places, speeds, color=[BEST if speed == best else OTHERS for speed in speeds], height=0.62)
    for place, one, within, end in zip(places, predictions, ranges, ends, strict=True):
        speed, why = one.throughput_tokens_per_s, f"{one.bottleneck} busiest, GPU idle {one.gpu_idle:.0%}"
        if within:
            ax.plot([within.low, within.high], [place, place], color="#303030", linewidth=1.6, solid_capstyle="butt")
        how_sure = f" ({within})" if within else ""
        text, weight = f" {speed:,.1f}{how_sure}   ({one.policy}, {why})", "bold" if speed == best else None
        ax.text(end, place, text, va="center", fontsize=9, fontweight=weight)
    ax.set_yticks(places, [one.schedule for one in predictions])
    ax.invert_yaxis()
    about = f"; line: {LEVEL:.0%} of runs" if bands else ""
    ax.set(xlim=(0, max(ends, default=0.0) * 1.65), xlabel=f"throughput (tokens/s{about})")
    open_frame(ax)


def _timeline(ax: Axes, one: Prediction, view: LayerView, axis_ms: float) -> None:
    lanes = view.bars()
    kinds = [kind for kind in ROW_ORDER if kind in lanes]
    length_ms = view.length_ms
    draw_lanes(ax, kinds, ((lane, *bar) for lane, bars in lanes.items() for bar in bars), axis_ms)
    took = f"{view.took} for {one.num_requests:,} requests"
    each = f"{length_ms * 1e3 / one.num_requests:,.0f} µs a request"
    ax.set_title(f"{one.schedule}: one layer of a decode step, {took} ({each})", fontsize=10, loc="left")
    ax.set_xlabel("ms", fontsize=8, labelpad=0)
