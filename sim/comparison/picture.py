"""The picture of a comparison: throughput as bars, and below a timeline of one layer per schedule.

Lanes are rows and ops are colours; what a lane waits shows white. Each timeline spans one layer of one decode step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sim.comparison.comparison import Outcome
from sim.cost import Setup
from sim.problem import Problem
from sim.schedule import LaneKind, Op
from sim.simulation import Executed, simulate_steps
from traces.cli import check_format

COLOURS: dict[Op, str] = {
    Op.PRE_ATTN: "#8ecae6",
    Op.ATTN: "#e76f51",
    Op.POST_ATTN: "#1d6fa5",
    Op.OUT_PROJ: "#5fa8d3",
    Op.EXPERTS: "#1d6fa5",
    Op.HEAD: "#264653",
    Op.OFFLOAD_QKV: "#b56576",
    Op.LOAD_HIDDEN: "#7b2cbf",
    Op.STORE_HIDDEN: "#c8b6ff",
    Op.LOAD_WEIGHTS: "#f4a261",
    Op.LOAD_WEIGHTS_PAGEABLE: "#bc6c25",
    Op.LOAD_KV: "#2a9d8f",
    Op.STORE_KV: "#95d5b2",
    Op.PIN_WEIGHTS: "#e9c46a",
    Op.ALL_REDUCE: "#6c757d",
}

ROW_ORDER = (LaneKind.GPU, LaneKind.CPU, LaneKind.H2D, LaneKind.D2H, LaneKind.PIN, LaneKind.DISK, LaneKind.NET)


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of one decode step as rank 0 ran it: from the end of the layer before to its own end."""

    start_ns: int
    end_ns: int
    tasks: list[Executed]


def layer_view(setup: Setup) -> LayerView:
    """Simulate two decode steps in the middle of the generation, and cut out the middle layer of the second.

    With one layer, or no decode step, the view is the whole of the last step simulated.
    """
    executed: list[Executed] = []
    step = (setup.last_step + 1) // 2
    first = max(step - 1, min(step, 1))
    simulate_steps(setup, first, step + 1, on_task=executed.append)
    layer_ends = {
        one.task.layer: one.end_ns
        for one in executed
        if one.task.op in (Op.POST_ATTN, Op.EXPERTS) and one.task.step == step
    }
    layer = setup.shape.num_layers // 2
    start = layer_ends.get(layer - 1, 0)
    end = layer_ends[layer]
    seen = [one for one in executed if one.task.lane.rank == 0 and one.end_ns > start and one.start_ns < end]
    return LayerView(start, end, seen)


def draw(problem: Problem, outcomes: Sequence[Outcome], path: str) -> None:
    """Draw into a .png, .svg or .pdf file. Raises InputError for another format, OSError if it cannot be written."""
    check_format(path)
    fitting = [one for one in outcomes if one.setup is not None and one.prediction is not None]
    views = [layer_view(one.setup) for one in fitting if one.setup is not None]
    rows = [len({one.task.lane.kind for one in view.tasks}) for view in views]
    heights = [0.5 * len(fitting) + 0.6, *(0.32 * count + 0.55 for count in rows)]
    figure = Figure(figsize=(12, sum(heights) + 1.6), layout="constrained")
    axes = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    padding = "padded, " if problem.workload.padded else ""
    figure.suptitle(
        f"{problem.model.name} on {problem.hardware.name}, {problem.workload.name} ({padding}"
        f"{problem.workload.gen_len} tokens generated): simulated",
        fontsize=13,
    )
    _bars(axes[0], fitting)
    for ax, one, view in zip(axes[1:], fitting, views, strict=True):
        _timeline(ax, one, view)
    used = {task.task.op for view in views for task in view.tasks}
    legend = [Patch(color=colour, label=op.value) for op, colour in COLOURS.items() if op in used]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 6), frameon=False)
    figure.savefig(path, dpi=130)


def _bars(ax: Axes, outcomes: Sequence[Outcome]) -> None:
    predictions = [one.prediction for one in outcomes if one.prediction is not None]
    speeds = [one.throughput_tokens_per_s for one in predictions]
    best = max(speeds, default=0.0)
    places = range(len(predictions))
    ax.barh(places, speeds, color=["#1d6fa5" if speed == best else "#a9bfd0" for speed in speeds], height=0.62)
    for place, one in zip(places, predictions, strict=True):
        speed, why = one.throughput_tokens_per_s, f"{one.bottleneck} busiest, GPU idle {one.gpu_idle:.0%}"
        ax.text(speed, place, f" {speed:,.1f}   ({one.policy}, {why})", va="center", fontsize=9)
    ax.set_yticks(places, [one.schedule for one in predictions])
    ax.invert_yaxis()
    ax.set_xlim(0, best * 1.55)
    ax.set_xlabel("throughput (tokens/s)")
    ax.spines[["top", "right"]].set_visible(False)


def _timeline(ax: Axes, outcome: Outcome, view: LayerView) -> None:
    kinds = [kind for kind in ROW_ORDER if any(one.task.lane.kind is kind for one in view.tasks)]
    for row, kind in enumerate(kinds):
        mine = [one for one in view.tasks if one.task.lane.kind is kind]
        for op in {one.task.op for one in mine}:
            bars = [_clipped(one, view) for one in mine if one.task.op is op]
            ax.broken_barh(
                bars, (row - 0.4, 0.8), facecolors=COLOURS.get(op, "#333333"), edgecolor="white", linewidth=0.4
            )
    length_ms = (view.end_ns - view.start_ns) / 1e6
    ax.set_xlim(0, length_ms)
    ax.set_ylim(len(kinds) - 0.5, -0.5)
    ax.set_yticks(range(len(kinds)), [kind.value for kind in kinds])
    requests = outcome.prediction.num_requests if outcome.prediction else 0
    ax.set_title(
        f"{outcome.schedule}: one layer of a decode step, {length_ms:,.0f} ms for {requests:,} requests "
        f"({length_ms * 1e3 / max(requests, 1):,.0f} µs a request)",
        fontsize=10,
        loc="left",
    )
    ax.set_xlabel("ms", fontsize=8, labelpad=0)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _clipped(one: Executed, view: LayerView) -> tuple[float, float]:
    """(start, length) in ms, within the view."""
    start, end = max(one.start_ns, view.start_ns), min(one.end_ns, view.end_ns)
    return (start - view.start_ns) / 1e6, (end - start) / 1e6
