"""The picture of a plan: throughput over μ and the number of micro-batches, where memories end, and what was chosen.

Each cell is simulated with the other fields of the policy as they are best there, attention where the plan has it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.cost import Setup, usable_bytes
from sim.planning.policies import Floats, PolicyGrid, candidates_of, sizes_up_to
from sim.planning.report import title
from sim.planning.search import Choice, at_best, hrm_setup
from sim.problem import NoRoomError, Policy
from sim.schedule import Tier
from sim.simulation import predict
from traces.cli import in_processes, new_figure, save
from traces.errors import InputError
from traces.page import colours

PER_DOUBLING = 2
PER_DOUBLING_SPLIT = 1
"""Of schedules that split experts off fewer sizes are looked at: each cell of these is one of them."""
LIMITS: dict[str, tuple[str, Literal["solid", "dashed"]]] = {
    tier: (colour, "dashed" if tier == Tier.PINNED else "solid") for tier, colour in colours("memories").items()
}
FINE = 48
"""Points of each axis at which the memory limits are looked at."""


def throughput_map(choice: Choice, sizes: tuple[int, ...], counts: tuple[int, ...], jobs: int | None) -> Floats:
    """Tokens a second of each cell's best policy by its bound, with the plan's attention; NaN where nothing fits."""
    best, policy = choice.best.setup, choice.best.policy
    grid = PolicyGrid(sizes, counts, pages=(0.5, 1.0), attention=policy.attention)
    grid = replace(grid, weight_bits=policy.weight_bits, kv_bits=policy.kv_bits)
    values = np.full((len(sizes), len(counts)), np.nan)
    try:
        found = candidates_of(choice.problem, best.schedule, grid)
    except NoRoomError:
        return values
    rows: dict[tuple[int, int], int] = {}
    for row in np.argsort(at_best(found)[0], kind="stable"):
        policy = found.policy(row)
        rows[policy.micro_batch_size, policy.num_micro_batches] = int(row)
    by_count = [[found.setup(rows[key]) for key in rows if key[1] == count] for count in counts]
    for at, results in enumerate(in_processes(_simulate_all, by_count, jobs)):
        for size, tokens_per_s in results:
            values[sizes.index(size), at] = tokens_per_s
    return values


def _simulate_all(setups: Sequence[Setup]) -> list[tuple[int, float]]:
    return [(one.policy.micro_batch_size, predict(one, compiled=True).throughput_tokens_per_s) for one in setups]


def draw(choice: Choice, path: str, jobs: int | None = None) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written."""
    best = choice.best.setup
    per_doubling = PER_DOUBLING_SPLIT if best.schedule.system.splits_experts else PER_DOUBLING
    sizes = sizes_up_to(512, per_doubling)
    counts = (1,) if best.schedule.system.one_batch else sizes_up_to(192, per_doubling)
    tokens_per_s = throughput_map(choice, sizes, counts, jobs)
    figure = new_figure(10.5, 7.5)
    ax = figure.subplots()
    _draw_map(figure, ax, sizes, counts, tokens_per_s)
    marks = [*_draw_limits(ax, best, sizes, counts), *_draw_choices(ax, choice)]
    how = f"{best.schedule.name}, attention on the {best.policy.attention.upper()}, simulated"
    ax.set_title(f"{title(choice.problem)}:\n{how}", fontsize=12)
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)


def _draw_map(figure: Figure, ax: Axes, sizes: Sequence[int], counts: Sequence[int], tokens_per_s: Floats) -> None:
    x, y = _edges(counts), _edges(sizes)
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.set(xlabel="number of micro-batches", ylabel="micro-batch size μ (requests)")
    nothing = np.ma.masked_where(~np.isnan(tokens_per_s), np.ones_like(tokens_per_s))
    ax.pcolor(x, y, nothing, cmap=ListedColormap(["#f1f1f1"]), hatch="///", edgecolor="#c4c4c4", linewidth=0.0)
    something = np.ma.masked_invalid(tokens_per_s)
    mesh = ax.pcolormesh(x, y, something, cmap="viridis", edgecolors="white", linewidth=0.3)
    figure.colorbar(mesh, ax=ax, label="throughput (tokens/s)", pad=0.01)
    for axis, values in ((ax.xaxis, counts[::2]), (ax.yaxis, sizes[::2])):
        axis.set_ticks(values, [f"{value:,}" for value in values])
        axis.set_ticks([], minor=True)


def _edges(values: Sequence[int]) -> Floats:
    """Borders of cells between the values, on a logarithmic axis."""
    logs = np.log(values)
    around = np.pad(logs, 1, "reflect", reflect_type="odd") if len(logs) > 1 else logs + np.array([-1.0, 0.0, 1.0])
    return np.array(np.exp((around[1:] + around[:-1]) / 2))


def _draw_limits(ax: Axes, best: Setup, sizes: Sequence[int], counts: Sequence[int]) -> list[Line2D | Patch]:
    """Where each memory is full, all other fields as chosen."""
    sizes, counts = _fine(sizes), _fine(counts)
    limits = usable_bytes(best.problem.hardware)
    policies = (
        replace(best.policy, batch_size=mu * n, micro_batch_size=mu, pages=None) for mu in sizes for n in counts
    )
    peaks = [_peaks(best, policy) for policy in policies]
    shape = len(sizes), len(counts)
    used = {tier: np.reshape([peak.get(tier, np.nan) / limits[tier] for peak in peaks], shape) for tier in LIMITS}
    marks: list[Line2D | Patch] = [Patch(facecolor="#f1f1f1", hatch="///", edgecolor="0.6", label="no policy fits")]
    for tier, values in used.items():
        if len(counts) > 1 and np.nanmin(values) < 1 < np.nanmax(values):
            colour, dashes = LIMITS[tier]
            ax.contour(counts, sizes, values, levels=[1.0], colors=colour, linestyles=dashes, linewidths=2.2)
            label = f"{tier} memory full, rest as chosen"
            marks.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=2.2, label=label))
    return marks


def _peaks(best: Setup, policy: Policy) -> dict[str, int]:
    """Of the memories; nothing of a policy whose micro-batches hold no request."""
    try:
        return replace(best, policy=policy).memory.peak_bytes()
    except NoRoomError:
        return {}


def _fine(values: Sequence[int]) -> list[int]:
    return sorted({round(value) for value in np.geomspace(min(values), max(values), FINE)})


def _draw_choices(ax: Axes, choice: Choice) -> list[Line2D | Patch]:
    best = choice.best
    mine = f"plan {best.setup.policy}: {best.throughput_tokens_per_s:,.1f} tokens/s"
    marks: list[Line2D | Patch] = [_mark(ax, best.setup, "*", "#ffffff", 20, mine)]
    try:
        theirs, _ = hrm_setup(choice.problem)
    except InputError:
        return marks
    if theirs.shortages:
        short = theirs.shortages[0]
        note = f"does not fit: {short.tier} memory short of {short.short_bytes / 1e9:.1f} GB"
    else:
        note = f"{predict(theirs, compiled=True).throughput_tokens_per_s:,.1f} tokens/s simulated"
    place = f" (cgopipe, attention on the {theirs.policy.attention.upper()})"
    return [*marks, _mark(ax, theirs, "D", "#ff70a6", 10, f"HRM's choice {theirs.policy}{place}: {note}")]


def _mark(ax: Axes, setup: Setup, marker: str, colour: str, size: float, label: str) -> Line2D:
    style: dict[str, Any] = {"color": colour, "markersize": size, "linestyle": "none", "zorder": 5, "clip_on": False}
    place = [setup.policy.num_micro_batches], [setup.policy.micro_batch_size]
    return ax.plot(*place, marker, markeredgecolor="black", markeredgewidth=1.2, label=label, **style)[0]
