"""One picture of a proof: copies by size, throughput measured and predicted, and how busy the lanes were."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from traces.cli import ROW_ORDER, new_figure, open_frame, save
from traces.page import colours
from validation.gpu.piece import SAID
from validation.gpu.reporting.summary import ProofSummary, shown_name
from validation.gpu.reporting.text import ONE_WAY

GIGA = 1e9


def draw_proof(summary: ProofSummary, path: Path) -> None:
    """Draw what of it there is."""
    facts, peers = (summary.record.results(stage) for stage in ("facts", "peers"))
    runs, said = summary.runs, {case: one["tokens_per_s"] for case, one in summary.predicted.items()}
    figure = new_figure(13, 4 + 0.3 * (len(runs) + len(peers)))
    figure.suptitle(f"A proof on {summary.record.settings['origin']}, scale {summary.record.settings['scale']}")
    axes = figure.subplot_mosaic([["copies", "rates"], ["lanes", "rates"]], width_ratios=[1, 1.25])
    _draw_copies(axes["copies"], facts)
    _draw_lanes(axes["lanes"], runs)
    _draw_rates(axes["rates"], runs, said, peers)
    save(figure, path)


def _draw_copies(ax: Axes, facts: Mapping[str, Any]) -> None:
    for name, one in facts.items():
        if name.startswith(ONE_WAY):
            rates = {int(size) / 1024**2: rate / GIGA for size, rate in one["bytes_per_s"].items()}
            dashed = "--" if "from" in name else "-"
            ax.plot(list(rates), list(rates.values()), dashed, marker="o", ms=3, label=name.removeprefix("copies "))
    ax.set(xscale="log", xlabel="MiB a copy", ylabel="GB/s", ylim=(0, None), title="copies over the link")
    if ax.lines:
        ax.legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.28))
    else:
        ax.text(0.5, 0.5, "stage 0 was not run", transform=ax.transAxes, ha="center", color="0.4")
    open_frame(ax)


def _draw_lanes(ax: Axes, runs: Mapping[str, Any]) -> None:
    names = list(runs)
    lanes = [lane for lane in ROW_ORDER if any(lane in one["lanes"] for one in runs.values())]
    height = 0.8 / max(1, len(lanes))
    for number, lane in enumerate(lanes):
        rows = [row + (number + 0.5) * height - 0.4 for row in range(len(names))]
        busy = [100 * runs[name]["lanes"].get(lane, {}).get("busy", 0.0) for name in names]
        ax.barh(rows, busy, height, label=lane, color=colours("lanes")[lane])
    ax.set_yticks(range(len(names)), [shown_name(name) for name in names], fontsize=7)
    ax.set(xlim=(0, 100), xlabel="busy, % of the run", title="lanes")
    ax.invert_yaxis()
    if names:
        ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    open_frame(ax)


def _draw_rates(ax: Axes, runs: Mapping[str, Any], said: Mapping[str, float], peers: Mapping[str, Any]) -> None:
    others = {name: one["tokens_per_s"] for name, one in peers.items() if SAID not in one}
    bars = {shown_name(name): one["tokens_per_s"] for name, one in runs.items()} | others
    rows = range(len(bars))
    colours = ["C0"] * len(runs) + ["0.6"] * len(others)
    ax.barh(rows, list(bars.values()), 0.7, color=colours)
    expected = [said[name] for name in runs]
    ax.plot(expected, range(len(runs)), "D", color="C1", ms=5, label="predicted before the run (simulated)")
    ax.plot([], [], "s", color="C0", label="measured")
    if others:
        ax.plot([], [], "s", color="0.6", label="others, measured")
    ax.set_yticks(rows, list(bars), fontsize=7)
    ax.set(xlabel="tokens/s", title="throughput")
    ax.invert_yaxis()
    ax.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    open_frame(ax)
