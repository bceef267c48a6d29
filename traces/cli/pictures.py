"""What pictures share: lanes as rows of a timeline, what their colours mean, and how a picture is set up and saved."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from traces.analysis import power_series
from traces.page import colours
from traces.trace import Trace, lane_name

OTHER = "#333333"  # the colour of an op that has none of its own
ROW_ORDER = ("GPU", "CPU", "H2D", "D2H", "PIN", "DISK", "NET")  # lanes from top to bottom
FINEST = 1 / 1500  # of the picture's width is the least that a bar takes, so that it is seen
EDGED = 5  # times as wide as the finest are bars that have a white edge, which would hide a narrower one


def new_figure(width: float, height: float) -> Figure:
    """A picture of so many inches whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path, dpi: int = 130) -> None:
    """Write a .png, .svg or .pdf file. Raises ValueError for no such format, OSError if it cannot be written."""
    figure.savefig(path, dpi=dpi)


def open_frame(ax: Axes) -> None:
    """Leave out the frame's upper and right side."""
    ax.spines[["top", "right"]].set_visible(False)


def draw_lanes(ax: Axes, kinds: Sequence[str], bars: Iterable[tuple[str, str, float, float]], length: float) -> None:
    """Draw bars (lane, op, begin, length) as a timeline from 0 to `length`, a row per lane."""
    finest = length * FINEST
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for lane, op, begin, long in bars:
        found[lane, op].append((begin, max(long, finest)))
    for (lane, op), spans in found.items():
        edges = [0.4 if long > EDGED * finest else 0.0 for _, long in spans]
        row = (kinds.index(lane) - 0.4, 0.8)
        ax.broken_barh(spans, row, facecolors=colours().get(op, OTHER), edgecolor="white", linewidths=edges)
    ax.set(xlim=(0, length), ylim=(len(kinds) - 0.5, -0.5))
    ax.set_yticks(range(len(kinds)), kinds)
    ax.tick_params(labelsize=8)
    open_frame(ax)


def draw_power(ax: Axes, trace: Trace, start_ns: int, length_s: float) -> None:
    """Draw what each part of the machine draws, one upon the other, devices together, from 0 to `length_s`."""
    edges = sorted({ns for samples in power_series(trace).values() for ns, _ in samples})
    stacked: dict[str, np.ndarray] = {}
    for (part, _), samples in power_series(trace).items():
        times, watts = np.array(samples).T
        held = watts[np.maximum(0, np.searchsorted(times, edges, side="right") - 1)]
        stacked[part] = stacked.get(part, 0.0) + held
    shades = colours("power")
    parts = [part for part in shades if part in stacked]
    at_s = [(ns - start_ns) / 1e9 for ns in edges]
    areas = [stacked[part] for part in parts]
    ax.stackplot(at_s, areas, labels=parts, colors=[shades[part] for part in parts], step="post")
    ax.set(xlim=(0, length_s), ylim=(0, None), ylabel="W")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, reverse=True)
    open_frame(ax)


def draw_run(trace: Trace, path: str | Path) -> None:
    """Draw a trace: its lanes, and below them what the machine draws, where that is known."""
    has_power = bool(power_series(trace))
    start_ns, length_s = trace.start_ns, trace.makespan_ns / 1e9
    lanes = [lane_name(lane) for lane in trace.lanes()]
    figure = new_figure(12, 0.35 * len(lanes) + 1.3 + 2.4 * has_power)
    ratios = [0.35 * len(lanes) + 0.3, *([2.4] if has_power else [])]
    first, *below = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    bars = (
        (lane_name((one.lane, one.rank)), one.op, (one.start_ns - start_ns) / 1e9, one.duration_ns / 1e9)
        for one in trace.spans
    )
    draw_lanes(first, lanes, bars, length_s)
    for ax in below:
        draw_power(ax, trace, start_ns, length_s)
    (below or [first])[-1].set_xlabel("seconds")
    name_ops(figure, (one.op for one in trace.spans))
    save(figure, path)


def name_ops(figure: Figure, used: Iterable[str]) -> None:
    """Say below the picture which colour is which op."""
    shown = set(used)
    marks = [Patch(color=colour, label=op) for op, colour in colours().items() if op in shown]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 6), frameon=False)
