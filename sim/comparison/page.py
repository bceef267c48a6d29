"""A comparison as a page: every schedule in a row, where its bytes are, and what its lanes do in a layer."""

from collections.abc import Sequence

from sim.comparison.comparison import Outcome
from sim.planning import memory_section, predictions_table, timelines_section, title
from sim.problem import Problem
from traces.page import Paragraphs, Section, render_page


def comparison_page(problem: Problem, outcomes: Sequence[Outcome]) -> str:
    """The page's text."""
    found = [one.prediction for one in outcomes if one.prediction is not None]
    best = max(found, key=lambda one: one.throughput_tokens_per_s)
    summary = (f"{best.schedule} is fastest with {best.throughput_tokens_per_s:,.2f} tokens/s. Simulated.",)
    sections: list[Section] = [
        predictions_table("Schedules", found, found.index(best)),
        timelines_section("One layer of a decode step", found),
        memory_section("Memory", [(one.schedule, one.setup) for one in found]),
    ]
    said = [f"{one.schedule}: {text}" for one in outcomes for text in (one.note, one.reason) if text]
    if said:
        sections.append(Paragraphs("Notes", tuple(said)))
    return render_page(title(problem), summary, sections)
