"""The report of a campaign as Markdown: each layer with its bar, and where the prediction is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from traces.cli import TEXT, legend, markdown_table, meanings
from validation.campaign.findings import CaseResult, Findings

BARS = {"layer 1": 0.03, "layer 2": 0.10, "layer 3 median": 0.03, "layer 3 worst": 0.12, "regret": 0.01, "energy": 0.25}
WORST_SHOWN = 5

IN_SHORT = {"layer": TEXT, "question": TEXT, "found": TEXT, "bar": TEXT, "": TEXT}
RUNS = {"run": TEXT, "measured tok/s": ">", "predicted": ".1f", "error": "+.1%", "prefill": "+.1%", "decode": "+.1%"}
RUNS |= {"layer 1 worst": "+.1%", "lanes": ".1f", "path agrees": ".0%", "HRM": "+.0%"}
ENERGY = {"run": TEXT, "measured J/token": ">", "predicted": ".3g", "error": "+.1%", "counted": TEXT}
OPS = {"op": TEXT, "lane": TEXT, "phase": TEXT, "tasks": ",", "measured s": ".2f", "predicted s": ".2f"}
OPS |= {"MAPE": ".1%", "WAPE": ".1%", "bias": "+.1%"}
DECISIONS = {"model": TEXT, "order of": TEXT, "runs": "d", "Kendall τ": ".2f", "pairs told apart": "d"}
DECISIONS |= {"within noise": "d"}
REGRETS = {"model": TEXT, "the planner's choice": TEXT, "its tok/s": ".1f", "best measured": TEXT, "best tok/s": ".1f"}
REGRETS |= {"regret": ".1%"}
MECHANICS = {"case": TEXT, "expected": ",", "got": ",", "exact": TEXT}
RUNS_TOLD = (
    "prefill, decode: error of their times. lanes: largest difference of a lane's busy share in percentage points. "
    "HRM: its error in throughput on the same machine."
)
ENERGY_TOLD = "Of what was counted alone, idle watts included: joules of prefill and decode for each generated token."
OPS_TOLD = "Each task at its median over the repeats, slowed down by what it shares with others as simulated."


def report_markdown(findings: Findings, facts: Sequence[str], pictures: Sequence[tuple[str, str]]) -> str:
    """The whole report. `facts` describe the machine, `pictures` are (file, caption)."""
    decisions = ((one.model, one.what, len(one.cases), *astuple(one.ranking)) for one in findings.decisions)
    energy = [row for run in findings.runs for row in _energy_rows(run)]
    exact = ((*astuple(one), "yes" if one.exact else "**no**") for one in findings.mechanics)
    chapters = {
        "In short": [
            *markdown_table(IN_SHORT, layer_rows(findings)),
            *(line for file, caption in pictures for line in (f"![{caption}]({file})", "", f"*{caption}*", "")),
        ],
        "Layer 1 and 3: every run": [*markdown_table(RUNS, map(_run_row, findings.runs)), RUNS_TOLD, ""],
        **({"Energy": [*markdown_table(ENERGY, energy), ENERGY_TOLD, ""]} if energy else {}),
        "Layer 2: durations by the cost model": [*markdown_table(OPS, map(astuple, findings.ops)), OPS_TOLD, ""],
        "Layer 4: decisions": [
            *markdown_table(DECISIONS, decisions),
            *markdown_table(REGRETS, map(astuple, findings.regrets)),
        ],
        "Where it is wrong": [*_wrong(findings), ""],
        "Layer 0: mechanics": markdown_table(MECHANICS, exact),
    }
    told = (
        f"Every run was made {findings.repeats} times by the engine ({findings.origin}) and predicted from a "
        "calibration that shares no run with it (simulated). Throughputs are medians; ± is half of the range."
    )
    return whole_report(f"Predicted and measured: {findings.origin}", told, facts, chapters, findings.missing)


def whole_report(
    title: str, told: str, facts: Sequence[str], chapters: Mapping[str, Sequence[str]], missing: Sequence[str]
) -> str:
    """Chapters of lines under a title, with the facts of the machine before them, what is missing, and its words."""
    named = {**chapters, **({"Missing": [*(f"- {one}" for one in missing), ""]} if missing else {})}
    lines = [
        f"# {title}",
        "",
        told,
        "",
        *(f"- {fact}" for fact in facts),
        "",
        *(line for title, text in named.items() for line in (f"## {title}", "", *text)),
    ]
    shown = "\n".join(line for line in lines if line.startswith("|")).replace("**", "")
    words = {word: text for chapter in legend(shown).values() for word, text in chapter.items()}
    return "\n".join([*lines, "## Words", "", *meanings(words)]).rstrip() + "\n"


def layer_rows(findings: Findings) -> Iterator[tuple[str, ...]]:
    """A row for each question of each layer, as IN_SHORT heads them: what was found, and its bar."""
    exact = sum(check.exact for check in findings.mechanics)
    whole = len(findings.mechanics)
    yield "0", "do the mechanics hold?", f"{exact} of {whole} exact", "all", met_or_missed(exact == whole)
    bar = BARS["layer 1"]
    errors = findings.order_errors()
    within = f"{sum(error <= bar for error in errors)} of {len(errors)} traces within {bar:.0%}"
    yield answer_row("1", f"measured durations replayed: worst makespan error ({within})", findings.order_worst, bar)
    yield answer_row("1", "the same with the hand-over between lanes, as calibrated", findings.handed_over_worst, bar)
    yield answer_row("2", "durations, all tasks together: WAPE", findings.duration_wape, BARS["layer 2"])
    op, error = max(findings.duration_errors.items(), key=lambda one: one[1])
    worst = f"durations by op: worst WAPE ({op}, {findings.share_of_time(op):.1%} of all time)"
    yield answer_row("2", worst, error, BARS["layer 2"])
    yield answer_row("3", "throughput: median error", findings.run_median, BARS["layer 3 median"])
    yield answer_row("3", "throughput: worst error", findings.run_worst, BARS["layer 3 worst"])
    if errors := findings.energy_errors:
        yield answer_row("3", "joules per token of what has counters: worst error", max(errors), BARS["energy"])
    for one in findings.decisions:
        tau = one.ranking.tau
        found = "no pair told apart" if tau is None else f"τ = {tau:.2f}"
        yield "4", f"order of {one.what}, {one.model}", found, "τ = 1", met_or_missed(tau is None or tau == 1)
    for lost in findings.regrets:
        yield answer_row("4", f"regret of {lost.chosen}", lost.regret, BARS["regret"])


def answer_row(layer: str, question: str, found: float, bar: float) -> tuple[str, ...]:
    """A row of IN_SHORT for an error, which is met up to its bar."""
    return layer, question, f"{found:.1%}", f"≤ {bar:.0%}", met_or_missed(found <= bar)


def met_or_missed(is_met: bool) -> str:
    """What stands behind a bar."""
    return "met" if is_met else "**missed**"


def _run_row(run: CaseResult) -> tuple[Any, ...]:
    measured = run.measured
    hrm = run.hrm_tokens_per_s and run.hrm_tokens_per_s / measured.median - 1
    speeds = (f"{measured.median:.1f} ± {measured.half_width:.1f}", run.predicted_tokens_per_s)
    errors = (run.error, run.prefill_error, run.decode_error, max(run.order_errors, key=abs))
    return run.case.name, *speeds, *errors, run.busy_points, run.path_agreement, hrm


def _energy_rows(run: CaseResult) -> Iterator[tuple[Any, ...]]:
    """A row, if its joules were counted."""
    if (found := run.energy) is not None:
        measured = f"{found.measured.median:.3g} ± {found.measured.half_width:.2g}"
        yield run.case.name, measured, found.predicted_j_per_token, found.error, ", ".join(found.counted)


def _wrong(findings: Findings) -> Iterator[str]:
    yield "The runs whose throughput is furthest off, and the op whose time is (predicted less measured):"
    yield ""
    for run in sorted(findings.runs, key=lambda one: -abs(one.error))[:WORST_SHOWN]:
        law = max(run.order_errors, key=abs)
        blame = "the order of work (layer 1)" if abs(law) > abs(run.error) / 2 else "durations (layer 2)"
        yield f"- {run.case.name}: {run.error:+.1%}, mostly by {blame}. {run.blame}."
