"""The picture of a plan: throughput over μ and the number of micro-batches, where memories end, and what was chosen.

Each cell is simulated with the other fields of the policy as they are best there, attention where the plan has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.cost import Setup, Shortage, capacity_bytes
from sim.planning.bounds import least_seconds
from sim.planning.candidates import Floats, candidates_of
from sim.planning.grid import PolicyGrid, sizes_up_to
from sim.planning.hrm import hrm_setup
from sim.planning.planner import Choice
from sim.schedule import Tier
from sim.simulation import predict
from traces.cli import in_processes, new_figure, save
from traces.errors import InputError

PER_DOUBLING = 2
LIMITS = {Tier.DEVICE: "#c1121f", Tier.HOST: "#7b2cbf", Tier.PINNED: "#ff9f1c"}
DASHES: dict[str, Literal["solid", "dashed"]] = {Tier.DEVICE: "solid", Tier.HOST: "solid", Tier.PINNED: "dashed"}
FINE = 48
"""Points of each axis at which the memory limits are looked at."""


@dataclass(frozen=True, slots=True)
class Map:
    """Tokens per second over (μ, number of micro-batches); NaN where nothing fits."""

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    tokens_per_s: Floats


def throughput_map(choice: Choice, sizes: Sequence[int], counts: Sequence[int], jobs: int | None = None) -> Map:
    """Simulate the best policy of each cell, by its bound, with the attention of the plan."""
    best = choice.best.setup
    grid = PolicyGrid(
        tuple(sizes), tuple(counts), pages=(0.5, 1.0), weight_bits=best.policy.weight_bits, kv_bits=best.policy.kv_bits,
        attention=best.policy.attention,
    )  # fmt: skip
    found = candidates_of(choice.problem, best.schedule, grid)
    total_s, _ = least_seconds(found)
    rate = found.of_batches([setup.batch.generated_tokens for setup in found.batch_setups]) / total_s
    rows: dict[tuple[int, int], int] = {}
    for row in np.argsort(rate, kind="stable"):
        policy = found.batch_setups[found.batch[row]].policy
        rows[policy.micro_batch_size, policy.num_micro_batches] = int(row)
    by_count = [[found.setup(rows[key]) for key in rows if key[1] == count] for count in counts]
    values = np.full((len(sizes), len(counts)), np.nan)
    for at, results in enumerate(in_processes(_simulate_all, by_count, jobs)):
        for size, tokens_per_s in results:
            values[list(sizes).index(size), at] = tokens_per_s
    return Map(tuple(sizes), tuple(counts), values)


def _simulate_all(setups: Sequence[Setup]) -> list[tuple[int, float]]:
    return [(one.policy.micro_batch_size, predict(one, compiled=True).throughput_tokens_per_s) for one in setups]


def draw(choice: Choice, path: str, jobs: int | None = None) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written."""
    best = choice.best.setup
    counts = (1,) if best.schedule.system.one_batch else sizes_up_to(192, PER_DOUBLING)
    seen = throughput_map(choice, sizes_up_to(512, PER_DOUBLING), counts, jobs)
    figure = new_figure(10.5, 7.5)
    ax = figure.subplots()
    _draw_map(figure, ax, seen)
    marks = [*_draw_limits(ax, best, seen), *_draw_choices(ax, choice)]
    padding = "padded, " if choice.problem.workload.padded else ""
    ax.set_title(
        f"{choice.problem.model.name} on {choice.problem.hardware.name}, {choice.problem.workload.name} ({padding}"
        f"{choice.problem.workload.gen_len} tokens generated):\n{best.schedule.name}, "
        f"attention on the {best.policy.attention.upper()}, simulated",
        fontsize=12,
    )
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)


def _draw_map(figure: Figure, ax: Axes, seen: Map) -> None:
    x, y = _edges(seen.counts), _edges(seen.sizes)
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    nothing = np.ma.masked_where(~np.isnan(seen.tokens_per_s), np.ones_like(seen.tokens_per_s))
    ax.pcolor(x, y, nothing, cmap=ListedColormap(["#f1f1f1"]), hatch="///", edgecolor="#c4c4c4", linewidth=0.0)
    mesh = ax.pcolormesh(
        x, y, np.ma.masked_invalid(seen.tokens_per_s), cmap="viridis", edgecolors="white", linewidth=0.3
    )
    figure.colorbar(mesh, ax=ax, label="throughput (tokens/s)", pad=0.01)
    for axis, values in ((ax.xaxis, seen.counts), (ax.yaxis, seen.sizes)):
        axis.set_ticks(values[::2], [f"{value:,}" for value in values[::2]])
        axis.set_ticks([], minor=True)
    ax.set_xlabel("number of micro-batches")
    ax.set_ylabel("micro-batch size μ (requests)")


def _edges(values: Sequence[int]) -> Floats:
    """Borders of cells between the values, on a logarithmic axis."""
    logs = np.log(np.array(values, dtype=float))
    if len(logs) == 1:
        return np.array(np.exp([logs[0] - 0.5, logs[0] + 0.5]))
    middle = (logs[1:] + logs[:-1]) / 2
    return np.array(np.exp(np.concatenate(([2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]))))


def _draw_limits(ax: Axes, best: Setup, seen: Map) -> list[Line2D | Patch]:
    """Where each memory is full, all other fields as chosen."""
    sizes, counts = _fine(seen.sizes), _fine(seen.counts)
    used = {tier: np.zeros((len(sizes), len(counts))) for tier in LIMITS}
    limits = capacity_bytes(best.problem.hardware)
    for row, size in enumerate(sizes):
        for column, count in enumerate(counts):
            policy = replace(best.policy, batch_size=size * count, micro_batch_size=size, pages=None)
            peaks = Setup(best.problem, best.schedule, policy).memory.peak_bytes()
            for tier, values in used.items():
                values[row, column] = peaks[tier] / limits[tier]
    marks: list[Line2D | Patch] = [Patch(facecolor="#f1f1f1", hatch="///", edgecolor="0.6", label="no policy fits")]
    for tier, values in used.items():
        if len(counts) > 1 and values.min() < 1 < values.max():
            colour, dashes = LIMITS[tier], DASHES[tier]
            ax.contour(counts, sizes, values, levels=[1.0], colors=colour, linestyles=dashes, linewidths=2.2)
            label = f"{tier} memory full, rest as chosen"
            marks.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=2.2, label=label))
    return marks


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
        note = f"does not fit: {_short(theirs.shortages[0])}"
    else:
        note = f"{predict(theirs, compiled=True).throughput_tokens_per_s:,.1f} tokens/s simulated"
    place = f" (cgopipe, attention on the {theirs.policy.attention.upper()})"
    return [*marks, _mark(ax, theirs, "D", "#ff70a6", 10, f"HRM's choice {theirs.policy}{place}: {note}")]


def _short(shortage: Shortage) -> str:
    return f"{shortage.tier} memory short of {shortage.short_bytes / 1e9:.1f} GB"


def _mark(ax: Axes, setup: Setup, marker: str, colour: str, size: float, label: str) -> Line2D:
    policy = setup.policy
    (line,) = ax.plot(
        [policy.num_micro_batches], [policy.micro_batch_size], marker, color=colour, markersize=size,
        markeredgecolor="black", markeredgewidth=1.2, linestyle="none", label=label, zorder=5, clip_on=False,
    )  # fmt: skip
    return line
