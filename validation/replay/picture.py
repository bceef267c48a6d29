"""The picture of a replay: the measured timeline above the predicted one, at one scale, lanes as rows, ops as colours.

Above, the whole run; below, a piece of one decode step that can be read, which in each run begins where that run does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from sim.schedule import DEFERRED, ENDS_LAYER, LaneKind, Op
from traces.cli import FINEST, ROW_ORDER, draw_lanes, name_ops, new_figure, save
from traces.trace import LaneId, Span, Trace, lane_name
from validation.replay.checks import Replay

READABLE_TURNS = 48
"""Turns (layer, micro-batch) that a window shows at most: more bars than that cannot be told apart."""

S, MS = 1e9, 1e6
"""Nanoseconds in the units of the axes."""


@dataclass(frozen=True, slots=True)
class Window:
    """Some layers of one step, `first` to `last`."""

    step: int
    first: int
    last: int

    def __str__(self) -> str:
        layers = f"layer {self.first}" if self.first == self.last else f"layers {self.first} to {self.last}"
        return f"step {self.step}, {layers}"


def draw(result: Replay, path: str) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written.

    Without a machine to predict for, the lower timeline is that of layer 1.
    """
    measured, other = result.measured, result.predicted or result.replayed
    how = f"predicted for {result.hardware.name}" if result.hardware else "the measured durations replayed"
    titles = (measured.origin, f"{how} (simulated)")
    lanes = sorted({*measured.lanes(), *other.lanes()}, key=_row)
    figure = new_figure(14, 1.9 + 4 * (0.62 + 0.27 * len(lanes)))
    axes = figure.subplots(4, 1)
    figure.suptitle(
        f"{measured.metadata['schedule']}, {measured.metadata.get('model', '')}, {result.num_requests} requests: "
        f"measured above {'predicted' if result.hardware else 'replayed'}",
        fontsize=13,
    )
    window = window_of(measured)
    views = [(trace, trace.start_ns, trace.end_ns, "whole run") for trace in (measured, other)]
    views += [(trace, *bounds_ns(trace, window), str(window)) for trace in (measured, other)]
    for pair, unit in ((slice(0, 2), S), (slice(2, 4), MS)):
        longest = max(stop - start for _, start, stop, _ in views[pair])
        for ax, (trace, start, stop, what), title in zip(axes[pair], views[pair], titles, strict=True):
            _timeline(ax, trace, lanes, (start, start + longest, stop), unit)
            length = f"{(stop - start) / 1e9:,.3f} s" if unit == S else f"{(stop - start) / 1e6:,.1f} ms"
            ax.set_title(f"{what}, {title}: {length}", fontsize=10, loc="left")
    name_ops(figure, (span.op for trace in (measured, other) for span in trace.spans))
    save(figure, path)


def window_of(trace: Trace) -> Window:
    """As many layers in the middle of a step in the middle of decode (or of prefill) as can be read."""
    step = max(span.step for span in trace.spans if span.op == Op.HEAD or span.step == 0) // 2
    step = max(step, 1) if any(span.step == 1 and span.op == Op.HEAD for span in trace.spans) else step
    layers = 1 + max(span.layer for span in trace.spans)
    turns = 1 + max(span.micro_batch for span in trace.spans)
    shown = min(layers, max(1, READABLE_TURNS // turns))
    first = (layers - shown) // 2
    return Window(step, first, first + shown - 1)


def bounds_ns(trace: Trace, window: Window) -> tuple[int, int]:
    """From the end of the layer before the window (or of the step before) to the end of its last layer."""
    start = _layer_end_ns(trace, window.step, window.first - 1)
    if window.first == 0:
        start = max((one.end_ns for one in trace.spans if one.op == Op.HEAD and one.step == window.step - 1), default=0)
    return start or trace.start_ns, _layer_end_ns(trace, window.step, window.last) or trace.end_ns


def _layer_end_ns(trace: Trace, step: int, layer: int) -> int:
    own = (one for one in trace.spans if (one.step, one.layer) == (step, layer) and one.page != DEFERRED)
    return max((one.end_ns for one in own if one.op in ENDS_LAYER), default=0)


def _row(lane: LaneId) -> tuple[bool, int, int]:
    """Sorts lanes from top to bottom: device by device, and last what is between them."""
    kind, rank = lane
    return kind == LaneKind.NET, rank, ROW_ORDER.index(kind)


def _timeline(ax: Axes, trace: Trace, lanes: Sequence[LaneId], bounds: tuple[int, int, int], unit: float) -> None:
    """Bars of the lanes from the first bound on; a line at the third, where this run's part ends."""
    start, stop, end = bounds
    finest = (stop - start) * FINEST
    bars = []
    for lane in lanes:
        shown = [span for span in trace.spans_of(lane) if span.end_ns > start and span.start_ns < end]
        for op in dict.fromkeys(span.op for span in shown):
            spans = [span for span in shown if span.op == op]
            bars += [
                (lane_name(lane), op, left / unit, length / unit) for left, length in _merged(spans, start, end, finest)
            ]
    draw_lanes(ax, list(map(lane_name, lanes)), bars, (stop - start) / unit)
    ax.axvline((end - start) / unit, color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel("s" if unit == S else "ms", fontsize=8, labelpad=0)


def _merged(spans: Sequence[Span], start: int, end: int, finest: float) -> Iterator[tuple[int, int]]:
    """(begin, length) from `start` on, in nanoseconds; neighbours closer than `finest` and as short are one bar."""
    bars: list[tuple[int, int]] = []
    for span in spans:
        left, right = max(span.start_ns, start) - start, min(span.end_ns, end) - start
        joins = bars and left - bars[-1][1] < finest and right - left < finest
        bars.append((bars.pop()[0] if joins else left, right))
    return ((left, right - left) for left, right in bars)
