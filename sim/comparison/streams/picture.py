"""The picture of a comparison on a stream: tokens a second as bars, and how soon most requests have a first token."""

from sim.comparison.streams.served import ServedComparison
from sim.planning import PROMPTS_IN_WORDS, seconds, title
from traces.cli import new_figure, open_frame, save
from traces.page import colours_of


def draw_served(found: ServedComparison, path: str) -> None:
    """Draw into a .png, .svg or .pdf file. Raises ValueError for another format, OSError if it cannot be written."""
    rows = [(one, one.result) for one in found if one.result is not None]
    figure = new_figure(12, 0.5 * len(rows) + 1.8)
    ax, count = figure.subplots(), len(found.stream.requests)
    figure.suptitle(f"{title(found.problem)}, {count:,} requests: simulated", fontsize=13)
    speeds = [result.throughput_tokens_per_s for _, result in rows]
    best, places = max(speeds, default=0.0), range(len(rows))
    known = colours_of("schedules", (one.schedule for one, _ in rows))
    ax.barh(places, speeds, color=[known[one.schedule] for one, _ in rows], height=0.62)
    for place, (_, result) in zip(places, rows, strict=True):
        waits = f"{result.bottleneck} busiest, 9 of 10 first tokens within {seconds(result.first_token_s.p90)}"
        weight = "bold" if speeds[place] == best else None
        text = f" {speeds[place]:,.1f}   ({waits})"
        ax.text(speeds[place], place, text, va="center", fontsize=9, fontweight=weight)
    ax.set_yticks(places, [f"{one.schedule}, {PROMPTS_IN_WORDS[one.prompts]}" for one, _ in rows])
    ax.invert_yaxis()
    ax.set(xlim=(0, best * 1.6), xlabel="throughput (tokens/s)")
    open_frame(ax)
    save(figure, path)
