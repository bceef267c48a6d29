"""The picture of speed against energy: every policy that was simulated, and the front of which none is better in both.

Colours are schedules; what is filled computes experts on the host. Names beside the front say what moves along it.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sim.planning.energy.front import Front, FrontPoint
from sim.planning.report import title
from traces.cli import new_figure, open_frame, save
from traces.page import colours_of

NAMED = 6
"""Points of the front at most that have a name beside them."""

FRONT = "#303030"
FAR = 3.0
"""Times the front's joules up to which other policies are shown."""


def draw_front(front: Front, path: str) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written."""
    every = (*front.points, *front.others)
    colours = colours_of("schedules", (point.candidate.schedule for point in every))
    figure = new_figure(10.5, 7.0)
    ax = figure.subplots()
    _draw_points(ax, front.others, colours, alpha=0.35, size=4.5)
    ax.plot(*_places(front.points), color=FRONT, linewidth=1.2, zorder=3)
    _draw_points(ax, front.points, colours, alpha=1.0, size=8.0)
    _name(ax, front)
    ax.set(xlabel="throughput (tokens/s)", ylabel="energy of the whole machine (J/token)", title=_title(front))
    ax.set_ylim(bottom=0.0, top=_highest(front))
    ax.set_xlim(left=0.0)
    open_frame(ax)
    ax.grid(color="0.93", linewidth=0.6)
    figure.legend(handles=_marks(colours), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save(figure, path)


def _title(front: Front) -> str:
    best = front.fastest.candidate
    return f"{title(best.setup.problem)}:\nspeed against energy, {len(front.points)} policies on the front, simulated"


def _places(points: Sequence[FrontPoint]) -> tuple[list[float], list[float]]:
    return [point.tokens_per_s for point in points], [point.joules for point in points]


def _draw_points(ax: Axes, points: Sequence[FrontPoint], colours: dict[str, str], alpha: float, size: float) -> None:
    for point in points:
        colour = colours[point.candidate.schedule]
        fill = colour if point.experts_on_cpu else "white"
        style: dict[str, Any] = {"markerfacecolor": fill, "markeredgecolor": colour, "alpha": alpha, "markersize": size}
        ax.plot(point.tokens_per_s, point.joules, "o", markeredgewidth=1.4, zorder=2 + 2 * alpha, **style)


def _name(ax: Axes, front: Front) -> None:
    with_caps = any(point.power_cap_w is not None for point in front.points)
    for at, point in enumerate(front.some(NAMED)):
        one = point.candidate
        cap = f", {point.power_cap_w:g} W" if with_caps and point.power_cap_w is not None else ""
        text = f"{one.schedule} {one.policy}{cap}\n{point.tokens_per_s:,.1f} tokens/s, {point.joules:,.3g} J/token"
        place = (point.tokens_per_s, point.joules)
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "right", "va": "top", "zorder": 6}
        style["arrowprops"] = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6}
        ax.annotate(text, place, (-14, -18 - 26 * (at % 2)), **style)


def _highest(front: Front) -> float:
    most = max(point.joules for point in (*front.points, *front.others))
    return 1.05 * min(most, FAR * front.fastest.joules)


def _marks(colours: dict[str, str]) -> list[Line2D]:
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 7}
    marks = [
        Line2D([], [], markeredgecolor=colour, markerfacecolor=colour, label=name, **style)
        for name, colour in colours.items()
    ]
    for label, fill in (("experts on the GPU", "white"), ("some on the CPU", FRONT)):
        marks.append(Line2D([], [], markeredgecolor=FRONT, markerfacecolor=fill, label=label, **style))
    return [*marks, Line2D([], [], color=FRONT, linewidth=1.2, label="front")]
