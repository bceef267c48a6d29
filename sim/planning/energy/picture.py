"""The picture of speed against energy: the policies that were simulated, and the front of which none is better in both.

Colours are schedules; what is filled computes experts on the host. Numbers on the front are named below the picture.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sim.planning.energy.front import Front, FrontPoint
from sim.planning.report import title
from traces.cli import new_figure, open_frame, save
from traces.page import colours_of

NAMED = 8
"""Points of the front at most that have a number and a name."""

FRONT = "#303030"
SLOWER, FASTER = 0.75, 1.04
LESS, MORE = 0.85, 1.35
"""How far beyond the ends of the front other policies are shown: times its rates, and its joules."""


def draw_front(front: Front, path: str) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written."""
    seen = [point for point in front.others if _is_near(point, front)]
    colours = colours_of("schedules", (point.candidate.schedule for point in (*front.points, *seen)))
    figure = new_figure(10.5, 7.5)
    ax = figure.subplots()
    _draw_points(ax, seen, colours, alpha=0.35, size=4.5)
    ax.plot(*_places(front.points), color=FRONT, linewidth=1.2, zorder=3)
    _draw_points(ax, front.points, colours, alpha=1.0, size=8.0)
    names = _number(ax, front)
    ax.set(xlabel="throughput (tokens/s)", ylabel="energy of the whole machine (J/token)")
    ax.set_title(f"{title(front.fastest.candidate.setup.problem)}:\nspeed against energy, simulated", fontsize=12)
    ax.set(xlim=(SLOWER * front.thriftiest.tokens_per_s, FASTER * front.fastest.tokens_per_s))
    ax.set(ylim=(LESS * front.thriftiest.joules, MORE * front.fastest.joules))
    open_frame(ax)
    ax.grid(color="0.93", linewidth=0.6)
    ax.legend(handles=_marks(colours), loc="upper left", fontsize=9)
    figure.legend(handles=names, loc="outside lower center", ncols=1, frameon=False, fontsize=9, handlelength=0)
    save(figure, path)


def _is_near(point: FrontPoint, front: Front) -> bool:
    return point.tokens_per_s > SLOWER * front.thriftiest.tokens_per_s and point.joules < MORE * front.fastest.joules


def _places(points: Sequence[FrontPoint]) -> tuple[list[float], list[float]]:
    return [point.tokens_per_s for point in points], [point.joules for point in points]


def _draw_points(ax: Axes, points: Sequence[FrontPoint], colours: dict[str, str], alpha: float, size: float) -> None:
    for point in points:
        colour = colours[point.candidate.schedule]
        fill = colour if point.experts_on_cpu else "white"
        style: dict[str, Any] = {"markerfacecolor": fill, "markeredgecolor": colour, "alpha": alpha, "markersize": size}
        ax.plot(point.tokens_per_s, point.joules, "o", markeredgewidth=1.4, zorder=2 + 2 * alpha, **style)


def _number(ax: Axes, front: Front) -> list[Line2D]:
    """Number the points that have a name, and return the names."""
    names = []
    for number, point in enumerate(front.some(NAMED), 1):
        place = (point.tokens_per_s, point.joules)
        ax.annotate(str(number), place, (6, -13), textcoords="offset points", fontsize=10, zorder=6)
        names.append(Line2D([], [], linestyle="none", label=f"{number}: {_name(point)}"))
    return names


def _name(point: FrontPoint) -> str:
    one = point.candidate
    cap = "" if point.power_cap_w is None else f", devices held to {point.power_cap_w:g} W"
    where = f"attention on the {one.policy.attention.upper()}, {point.experts_on_cpu:.0%} of the experts on the CPU"
    rates = f"{point.tokens_per_s:,.1f} tokens/s, {point.joules:,.3g} J/token"
    return f"{one.schedule} {one.policy}, {where}{cap}: {rates}"


def _marks(colours: dict[str, str]) -> list[Line2D]:
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 7}
    marks = [
        Line2D([], [], markeredgecolor=colour, markerfacecolor=colour, label=name, **style)
        for name, colour in colours.items()
    ]
    for label, fill in (("experts on the GPU", "white"), ("some on the CPU", FRONT)):
        marks.append(Line2D([], [], markeredgecolor=FRONT, markerfacecolor=fill, label=label, **style))
    return [*marks, Line2D([], [], color=FRONT, linewidth=1.2, label="no policy is better in both")]
