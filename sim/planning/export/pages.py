"""A plan as a page: the choice and its rivals, where the bytes are, what the lanes do, and what if."""

from collections.abc import Callable, Iterator

from sim.planning.explanation import FACTORS, RESOURCES, Explanation, sentences
from sim.planning.export.exported import Exported
from sim.planning.export.page_sections import memory_section, predictions_table, timelines_section
from sim.planning.export.report import COMMAND_WIDTH
from sim.planning.export.what_ifs import slider_grid
from sim.planning.report import in_short, title
from sim.planning.search import MEANING, Choice
from traces.page import PageColumn, Paragraphs, Section, SortableTable, render_page


def plan_page(
    choice: Choice,
    why: Explanation,
    exported: Exported | None = None,
    *,
    top: int = 10,
    jobs: int | None = None,
    done: Callable[[int, int], object] = lambda *_: None,
) -> str:
    """The page's text; `done` is told how much of how much is done."""
    best = choice.best
    summary = (
        f"Best {choice.objective}: {best.schedule} with {in_short(best.policy)}: "
        f"{best.throughput_tokens_per_s:,.2f} tokens/s, {best.token_s:.3g} s a token of a request. Simulated.",
        f"{choice.objective.capitalize()} means {MEANING[choice.objective]}.",
    )
    sections = [*_sections(choice, why, exported, top), slider_grid(choice, jobs, done)]
    return render_page(title(choice.problem), summary, sections)


def _sections(choice: Choice, why: Explanation, exported: Exported | None, top: int) -> Iterator[Section]:
    best_of_each = [plan.best for plan in choice.plans.values()]
    yield predictions_table("Each schedule's best", best_of_each)
    if len(choice.ranked) > 1:
        yield predictions_table("Best policies", choice.ranked[:top])
    yield memory_section("Memory", [("", choice.best.setup)])
    yield timelines_section("One layer of a decode step", best_of_each[:2])
    yield Paragraphs("Why", tuple(sentences(choice, why)))
    if why.replanned:
        yield _other_machines(why)
    if choice.failed:
        yield Paragraphs("What does not fit", tuple(f"{name}: {reason}" for name, reason in choice.failed.items()))
    if exported is not None:
        yield from _exported(exported)


def _other_machines(why: Explanation) -> SortableTable:
    """What each resource would give, in percent of the objective."""
    found = {(one.resource, one.factor): one for one in why.replanned}
    columns = (PageColumn("resource"), *(PageColumn(f"× {factor:g} (%)", 1) for factor in FACTORS))
    changes = {name: [found[name, factor].change for factor in FACTORS] for name in RESOURCES}
    rows = ((name, *(one if one is None else 100 * one for one in of)) for name, of in changes.items())
    return SortableTable("Planned anew with other machines", columns, tuple(rows))


def _exported(found: Exported) -> Iterator[Section]:
    told = [found.launch.serve, *([found.launch.measure] if found.launch.measure else [])]
    code = "\n\n".join("\n".join(one.lines(COMMAND_WIDTH)) for one in told)
    said = (
        f"Options as of {found.version}. {found.best.throughput_tokens_per_s:,.2f} tokens/s predicted of what it can "
        f"do, {found.of_plan:.0%} of the plan; the program itself was not run.",
        *(f"{note}." for note in found.launch.notes),
    )
    yield Paragraphs(f"For {found.target}", said, code)
    if found.differences:
        columns = (PageColumn("matter"), PageColumn("the plan"), PageColumn(found.target))
        rows = tuple((one.matter, one.plan, one.there) for one in found.differences)
        yield SortableTable(f"What {found.target} does otherwise", columns, rows)
