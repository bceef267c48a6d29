"""What pictures share: lanes as rows of a timeline, what their colours mean, and how a picture is set up and saved."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from traces.page import colours

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


def name_ops(figure: Figure, used: Iterable[str]) -> None:
    """Say below the picture which colour is which op."""
    shown = set(used)
    marks = [Patch(color=colour, label=op) for op, colour in colours().items() if op in shown]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 6), frameon=False)
