"""The picture of a comparison: throughput as bars, and below a timeline of one layer per schedule.

Lanes are rows and ops are colours; what a lane waits shows white. Each timeline spans one layer of one decode step, all
on one time axis, so that what is longer took longer. A line on each bar is the band that most runs lie in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from sim.comparison.comparison import Outcome
from sim.cost import Setup
from sim.planning import title
from sim.problem import Problem
from sim.schedule import DEFERRED, ENDS_LAYER
from sim.simulation import LEVEL, Band, Executed, Prediction, simulate_steps
from traces.cli import ROW_ORDER, draw_lanes, name_ops, new_figure, open_frame, save


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of one decode step as rank 0 ran it: from the end of the layer before to its own end."""

    start_ns: int
    end_ns: int
    tasks: list[Executed]

    @property
    def length_ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6


def layer_view(setup: Setup) -> LayerView:
    """Simulate two decode steps in the middle of the generation, and cut out the middle layer of the second.

    With one layer, or no decode step, the view is the whole of the last step simulated.
    """
    executed: list[Executed] = []
    step = (setup.last_step + 1) // 2
    first = max(step - 1, min(step, 1))
    simulate_steps(setup, first, step + 1, on_task=executed.append)
    layer_ends: dict[int, int] = {}
    for one in executed:
        if one.task.op in ENDS_LAYER and one.task.step == step and one.task.page != DEFERRED:
            layer_ends[one.task.layer] = max(one.end_ns, layer_ends.get(one.task.layer, 0))
    layer = setup.shape.num_layers // 2
    start, end = layer_ends.get(layer - 1, 0), layer_ends[layer]
    seen = [one for one in executed if one.task.lane.rank == 0 and one.end_ns > start and one.start_ns < end]
    return LayerView(start, end, seen)


def draw(problem: Problem, outcomes: Sequence[Outcome], path: str, bands: Mapping[str, Band]) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written."""
    predictions = [one.prediction for one in outcomes if one.prediction is not None]
    views = [layer_view(one.setup) for one in predictions]
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
    ax.barh(places, speeds, color=["#1d6fa5" if speed == best else "#a9bfd0" for speed in speeds], height=0.62)
    for place, one, within, end in zip(places, predictions, ranges, ends, strict=True):
        speed, why = one.throughput_tokens_per_s, f"{one.bottleneck} busiest, GPU idle {one.gpu_idle:.0%}"
        if within:
            ax.plot([within.low, within.high], [place, place], color="#303030", linewidth=1.6, solid_capstyle="butt")
        how_sure = f" ({within})" if within else ""
        ax.text(end, place, f" {speed:,.1f}{how_sure}   ({one.policy}, {why})", va="center", fontsize=9)
    ax.set_yticks(places, [one.schedule for one in predictions])
    ax.invert_yaxis()
    about = f"; line: {LEVEL:.0%} of runs" if bands else ""
    ax.set(xlim=(0, max(ends, default=0.0) * 1.65), xlabel=f"throughput (tokens/s{about})")
    open_frame(ax)


def _timeline(ax: Axes, one: Prediction, view: LayerView, longest_ms: float) -> None:
    kinds = [kind for kind in ROW_ORDER if any(done.task.lane.kind == kind for done in view.tasks)]
    draw_lanes(ax, kinds, (_bar(done, view) for done in view.tasks), longest_ms)
    took = f"{view.length_ms:,.0f} ms for {one.num_requests:,} requests"
    each = f"{view.length_ms * 1e3 / one.num_requests:,.0f} µs a request"
    ax.set_title(f"{one.schedule}: one layer of a decode step, {took} ({each})", fontsize=10, loc="left")
    ax.set_xlabel("time (ms)", fontsize=8, labelpad=0)


def _bar(one: Executed, view: LayerView) -> tuple[str, str, float, float]:
    """(lane, op, start, length) in ms, within the view."""
    start, end = max(one.start_ns, view.start_ns), min(one.end_ns, view.end_ns)
    return one.task.lane.kind, one.task.op, (start - view.start_ns) / 1e6, (end - start) / 1e6
