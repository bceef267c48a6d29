"""The picture of a campaign over streams: latencies predicted over measured, a point a quantile of each stream."""

from pathlib import Path

from matplotlib.ticker import LogLocator

from traces.cli import new_figure, open_frame, save
from validation.campaign.streams.findings import StreamFindings

BAND = 0.10
MARKERS = {"p50": "o", "p90": "^"}


def draw_latencies(findings: StreamFindings, path: Path) -> None:
    """A panel for each kind of latency, with a band of ±10 %; a colour for each stream."""
    measures = list(dict.fromkeys(one.measure for run in findings.runs for one in run.latencies))
    figure = new_figure(4.6 * len(measures), 5.6)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for ax, measure in zip(panels, measures, strict=True):
        points = [
            (colour, one) for colour, run in enumerate(findings.runs) for one in run.latencies if one.measure == measure
        ]
        for colour, one in points:
            ax.plot(
                one.measured_s, one.predicted_s, MARKERS[one.quantile], color=f"C{colour}", markersize=6, alpha=0.85
            )
        values = [value for _, one in points for value in (one.measured_s, one.predicted_s) if value > 0]
        ends = [min(values) * 0.85, max(values) * 1.15]
        ax.plot(ends, ends, color="black", linewidth=1)
        ax.fill_between(ends, [x * (1 - BAND) for x in ends], [x * (1 + BAND) for x in ends], color="0.9", zorder=0)
        ax.set(xscale="log", yscale="log", title=measure, xlabel=f"measured s ({findings.origin})")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        open_frame(ax)
    panels[0].set_ylabel("predicted s (simulated)")
    for colour, run in enumerate(findings.runs):
        panels[-1].plot([], [], "s", color=f"C{colour}", label=run.case.name.partition("_")[2])
    for quantile, marker in MARKERS.items():
        panels[-1].plot([], [], marker, color="0.4", label=quantile)
    panels[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)
