"""A map of a sweep: two columns of its rows span the plane, and each further one is the colour of a panel.

Where rows share a cell (schedules, or axes that are not drawn), the fastest stands for it. Cells without a feasible row
are hatched.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

from sim.sweep.sweep import Row
from sim.sweep.units import unit_of
from traces.cli import new_figure, save
from traces.errors import InputError, nearest, shown
from traces.page import colours_of

THROUGHPUT = "throughput_tokens_per_s"
KINDS_OF_COLUMNS = {"schedule": "schedules", "bottleneck": "lanes", "best": "schedules"}
"""Columns of names that have colours of their own in every picture."""
WIDEST = 12
"""Inches of a picture; more panels stand below."""

MOST_LABELLED = 160
"""Cells of a panel up to which each shows its number."""


def check_columns(text: str, columns: Sequence[str]) -> list[str]:
    """The columns of x, y and the panels in `x,y,value,...`. Raises InputError for one that the rows do not have."""
    names = [name.strip() for name in text.split(",")]
    if len(names) < 3 or not all(names):
        raise InputError(f"--map {shown(text)}: give X,Y,VALUE: two columns of the rows and one or more to colour by")
    for name in names:
        if name not in columns:
            raise InputError(f"--map {name}: no such column{nearest(name, columns)}; there are {', '.join(columns)}")
    return names


def draw_map(rows: Sequence[Row], text: str, path: str) -> None:
    """Draw the panels that `text` asks for into the file."""
    x, y, *values = check_columns(text, list(rows[0]))
    across, up = _ticks(rows, x), _ticks(rows, y)
    cells = _fastest(rows, x, y, across, up)
    wide, high = max(4.2, 1.6 + 0.52 * len(across)), max(2.6, 1.3 + 0.32 * len(up))
    columns = min(len(values), max(1, int(WIDEST / wide)))
    lines = -(-len(values) // columns)
    figure = new_figure(wide * columns, 0.3 + high * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for empty in panels[len(values) :]:
        empty.remove()
    for panel, value in zip(panels, values, strict=False):
        _panel(panel, cells, value, unit_of(rows, value))
        panel.set_xticks(range(len(across)), [_short(tick) for tick in across])
        panel.set_yticks(range(len(up)), [_short(tick) for tick in up])
        panel.set(xlabel=_with_unit(rows, x), ylabel=_with_unit(rows, y))
    figure.suptitle(_title(rows), fontsize=9)
    save(figure, path)


def _ticks(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a column: numbers sorted, names in the order in which they come."""
    found = list(dict.fromkeys(row[name] for row in rows))
    return sorted(found) if _are_numbers(found) else found


def _fastest(rows: Sequence[Row], x: str, y: str, across: list[Any], up: list[Any]) -> list[list[Row | None]]:
    """The fastest feasible row of each cell, from the lowest y on."""
    cells: list[list[Row | None]] = [[None] * len(across) for _ in up]
    for row in rows:
        if row["feasible"]:
            line, at = cells[up.index(row[y])], across.index(row[x])
            known = line[at]
            if known is None or row[THROUGHPUT] > known[THROUGHPUT]:
                line[at] = row
    return cells


def _with_unit(rows: Sequence[Row], column: str) -> str:
    unit = unit_of(rows, column)
    return f"{column} ({unit})" if unit else column


def _panel(panel: Axes, cells: list[list[Row | None]], value: str, unit: str) -> None:
    found = [[None if row is None else row[value] for row in line] for line in cells]
    flat = [one for line in found for one in line if one is not None]
    title = value
    if any(row is None for line in cells for row in line):
        panel.patch.set(facecolor="#f2f2f2", hatch="///", edgecolor="#b0b0b0")
        title += " (hatched: nothing fits)"
    panel.set_title(title)
    if _are_numbers(flat):
        _numbers(panel, found, unit)
    else:
        _categories(panel, found, KINDS_OF_COLUMNS.get(value, ""), sorted({str(one) for one in flat}))


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def _mesh(panel: Axes, colours: NDArray[np.float64], cmap: str | ListedColormap) -> tuple[QuadMesh, Colorbar]:
    """Cells of one size with their middles at whole numbers, and what their colours mean."""
    edges = (np.arange(size + 1) - 0.5 for size in reversed(colours.shape))
    mesh = panel.pcolormesh(*edges, colours, cmap=cmap, edgecolors="white", linewidth=0.5)
    return mesh, panel.figure.colorbar(mesh, ax=panel)


def _numbers(panel: Axes, found: list[list[Any]], unit: str) -> None:
    colours = np.array([[np.nan if one is None else float(one) for one in line] for line in found])
    _, bar = _mesh(panel, colours, "viridis")
    bar.set_label(unit)
    if colours.size > MOST_LABELLED or np.isnan(colours).all():
        return
    middle = (np.nanmin(colours) + np.nanmax(colours)) / 2
    for (line, at), number in np.ndenumerate(colours):
        if not np.isnan(number):
            ink = "black" if number > middle else "white"
            text = f"{number:.3g}" if number < 1000 else f"{number:,.0f}"
            panel.text(at, line, text, ha="center", va="center", fontsize=7, color=ink)


def _categories(panel: Axes, found: list[list[Any]], kind: str, names: list[str]) -> None:
    colours = np.array([[np.nan if one is None else float(names.index(str(one))) for one in line] for line in found])
    known = colours_of(kind, names)
    palette = ListedColormap([known[name] for name in names])
    mesh, bar = _mesh(panel, colours, palette)
    mesh.set_clim(-0.5, len(names) - 0.5)
    bar.set_ticks(range(len(names)), labels=names)
    bar.ax.tick_params(length=0)


def _short(tick: Any) -> str:
    return f"{tick:.4g}" if isinstance(tick, float) else str(tick)


def _title(rows: Sequence[Row]) -> str:
    """Where the rows come from, and what all of them share."""
    shared = [_one(rows, name) for name in ("model", "hardware", "workload")]
    gen_len = _one(rows, "gen_len")
    parts = [part for part in (*shared, gen_len and f"gen_len {gen_len}") if part]
    schedules = [*dict.fromkeys(str(row["schedule"]) for row in rows)]
    which = schedules[0] if len(schedules) == 1 else f"fastest of {', '.join(schedules)}"
    origin = {"simulator": "simulated", "hrm": "HRM's own estimate"}.get(_one(rows, "by"), "simulated and HRM")
    return f"{origin}: {', '.join(parts)}; {which}"


def _one(rows: Sequence[Row], name: str) -> str:
    found = {_short(row[name]) for row in rows}
    return found.pop() if len(found) == 1 else ""
