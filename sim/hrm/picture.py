"""The picture of `python -m sim roofline`: attention (left) and experts (right) under the roofs of one machine.

In the manner of figures 4 and 5 of MoE-Lightning (arXiv 2411.11217). Both axes are logarithmic; a diagonal is a
bandwidth, a horizontal line a peak, a vertical line a piece of work.
"""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from sim.hrm.roofline import CPU, GPU, KV_BITS, Roofline, RooflinePoint
from sim.hrm.roofs import Level
from traces.cli import new_figure, save
from traces.page import colours

_LINK = "link"
_COLOURS = {GPU: colours("lanes")["GPU"], CPU: colours("lanes")["CPU"], _LINK: colours("lanes")["H2D"]}
_SMALL = 8.5
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}


def draw_roofline(result: Roofline, path: str) -> None:
    """Draw the picture into a file. Raises ValueError for a format that is none, OSError where it cannot be written."""
    figure = new_figure(15, 6.8)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    figure.suptitle(f"{result.model} on {result.hardware}: Hierarchical Roofline Model", fontsize=14)
    for axes in (left, right):
        _draw_roofs(axes, result)
    _draw_attention(left, result)
    _draw_experts(right, result)
    figure.draw_without_rendering()  # fixes the axes, which the slope of the names depends on
    for axes in (left, right):
        _name_diagonals(axes, result)
    save(figure, path, dpi=150)


def _roofs(result: Roofline) -> list[Level]:
    """Return the levels, and the link as a level whose peak is the device's."""
    link_bytes_per_s = result.machine.link_bytes_per_s(CPU, GPU)
    return [*result.machine.levels, Level(_LINK, result.machine[GPU].peak_flops_per_s, link_bytes_per_s)]


def _draw_roofs(axes: Axes, result: Roofline) -> None:
    first, *_, last = sorted(point.intensity for point in result.points if point.intensity > 0)
    margin = (last / first) ** 0.35  # room for the names of diagonals and peaks
    low, high = first / margin, last * margin
    for level in _roofs(result):
        colour, peak = _COLOURS[level.name], level.peak_flops_per_s / 1e9
        xs = [low, level.peak_flops_per_s / level.bandwidth_bytes_per_s, high]
        axes.loglog(xs, [float(level.attainable(x)) / 1e9 for x in xs], color=colour, linewidth=1.8)
        if level.name != _LINK:
            above = level.name == GPU
            text = f"{level.name} peak {level.peak_flops_per_s / 1e12:.4g} TFLOP/s"
            style = {"ha": "right", "va": "bottom" if above else "top", "color": colour, "zorder": 2.5}
            _note(axes, text, (high / 1.15, peak), (0, 3 if above else -4), bbox=_BACKGROUND, **style)
    lowest = result.machine.link_bytes_per_s(CPU, GPU) * low / 1e9
    axes.set(xlim=(low, high), ylim=(lowest / 12, result.machine[GPU].peak_flops_per_s / 1e9 * 30))
    axes.set_xlabel("operational intensity: FLOP per byte of host memory")
    axes.grid(which="major", color="0.93", linewidth=0.6)


def _name_diagonals(axes: Axes, result: Roofline) -> None:
    """Write each bandwidth along its diagonal: the link's below it, the memories' above."""
    low, _ = axes.get_xlim()
    (x0, y0), (x1, y1) = axes.transData.transform([(1.0, 1.0), (10.0, 10.0)])
    slope = math.degrees(math.atan2(y1 - y0, x1 - x0))
    for level in _roofs(result):
        under = level.name == _LINK
        name = "CPU→GPU link" if under else f"{level.name} memory"
        point = (low * 1.15, level.bandwidth_bytes_per_s * low * 1.15 / 1e9)
        along = {"rotation": slope, "rotation_mode": "anchor", "va": "top" if under else "bottom"}
        text, colour = f"{name} {level.bandwidth_bytes_per_s / 1e9:.4g} GB/s", _COLOURS[level.name]
        _note(axes, text, point, (4, -4) if under else (0, 3), color=colour, **along)


def _draw_attention(axes: Axes, result: Roofline) -> None:
    axes.set_title(f"Attention in decode, context {result.context:,}\n", fontsize=11)
    axes.set_ylabel("GFLOP/s")
    _draw_regions(axes, [(result.p1.intensity, "stay on the CPU"), (math.inf, "move to the GPU")])
    for point, kind in zip(result.attention, KV_BITS, strict=True):
        on_cpu, over_link = point.on_cpu_flops_per_s, point.over_link_flops_per_s
        _draw_vertical(axes, point, f"KV {kind}")
        _draw_mark(axes, point.intensity, point.on_gpu_flops_per_s, _COLOURS[GPU])
        _draw_mark(axes, point.intensity, on_cpu, _COLOURS[CPU], above=on_cpu > over_link)
        _draw_mark(axes, point.intensity, over_link, _COLOURS[_LINK], above=over_link >= on_cpu)
    _draw_turn(axes, result.p1, result.p1.on_cpu_flops_per_s, "P1")


def _draw_experts(axes: Axes, result: Roofline) -> None:
    p1, p2, balance = result.p1, result.p2, result.balance
    kernel = p2.on_gpu_flops_per_s
    axes.set_title(
        f"Experts of one layer, batch of N tokens in micro-batches of μ = {result.micro_batch_size:,}\n"
        f"dashed: at this μ with all weights on the GPU, {kernel / 1e9:,.0f} GFLOP/s",
        fontsize=11,
    )
    axes.axhline(kernel / 1e9, color="black", linestyle=(0, (5, 3)), linewidth=1)
    for point in result.experts:
        _draw_vertical(axes, point, f"N = {point.tokens:,}")
        _draw_mark(axes, point.intensity, point.over_link_flops_per_s, _COLOURS[_LINK])
    if kernel <= result.machine[CPU].peak_flops_per_s:
        _draw_regions(axes, [(math.inf, "stay on the CPU: at this μ the GPU is no faster")])
        return
    _draw_regions(axes, [(p1.intensity, "stay on the CPU"), (p2.intensity, "link binds"), (math.inf, "GPU binds")])
    _draw_turn(axes, p1, p1.on_cpu_flops_per_s, "P1", with_tokens=True)
    same = math.isclose(p2.intensity, balance.intensity)
    _draw_turn(axes, p2, kernel, "P2 = balance point" if same else "P2", with_tokens=True)
    if not same:
        _draw_turn(axes, balance, balance.over_link_flops_per_s, "balance point", with_tokens=True)


def _draw_regions(axes: Axes, ends: Sequence[tuple[float, str]]) -> None:
    """Shade the picture from left to right up to each intensity, and say at the top what to do there."""
    start, last = axes.get_xlim()
    for (unbounded_end, text), colour in zip(ends, ("#eef3fa", "#fdf3ec", "#eef8f0"), strict=False):
        end = min(unbounded_end, last)
        if end > start:
            axes.axvspan(start, end, color=colour, zorder=0, linewidth=0)
            box = {"facecolor": colour, "edgecolor": "none", "pad": 2.0}
            style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 9.5, "style": "italic", "color": "0.25"}
            place = axes.get_xaxis_transform()
            axes.text(math.sqrt(start * end), 0.97, text, transform=place, bbox=box, **style)
            start = end


def _draw_vertical(axes: Axes, point: RooflinePoint, name: str) -> None:
    axes.axvline(point.intensity, color="0.45", linestyle=":", linewidth=1.2, zorder=1)
    style = {"rotation": 90, "ha": "right", "va": "bottom", "color": "0.25", "xycoords": axes.get_xaxis_transform()}
    _note(axes, f"{name}: {_number(point.intensity)} FLOP/B", (point.intensity, 0.015), (-3, 0), **style)


def _draw_mark(axes: Axes, intensity: float, flops_per_s: float, colour: str, *, above: bool = False) -> None:
    axes.plot(intensity, flops_per_s / 1e9, "o", color=colour, markersize=5, zorder=4)
    side = {"ha": "right", "va": "bottom"} if above else {"ha": "left", "va": "top"}
    offset, style = (-5, 3) if above else (5, -3), {"color": colour, "zorder": 3, "bbox": _BACKGROUND}
    _note(axes, f"{flops_per_s / 1e9:,.0f}", (intensity, flops_per_s / 1e9), offset, **side, **style)


def _draw_turn(axes: Axes, point: RooflinePoint, flops_per_s: float, name: str, *, with_tokens: bool = False) -> None:
    """Mark a turning point; its name stands below to the right, or to the left where the picture ends."""
    if point.intensity <= 0:
        return
    low, high = axes.get_xlim()
    at_the_end = math.log(point.intensity / low) > 0.75 * math.log(high / low)
    tokens = f", N = {point.tokens:,}" if with_tokens and point.tokens is not None else ""
    axes.plot(point.intensity, flops_per_s / 1e9, "*", color="black", markersize=13, zorder=5)
    text = f"{name}\n{_number(point.intensity)} FLOP/B{tokens}"
    offset, side = ((-20, 22), "right") if at_the_end else ((16, -38), "left")
    arrow = {"arrowstyle": "-", "color": "0.4", "linewidth": 0.8}
    style = {"ha": side, "zorder": 4, "arrowprops": arrow, "bbox": _BACKGROUND}
    _note(axes, text, (point.intensity, flops_per_s / 1e9), offset, **style)


def _note(axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Write beside a point, so many points of type away."""
    axes.annotate(text, point, offset, textcoords="offset points", fontsize=_SMALL, **style)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
