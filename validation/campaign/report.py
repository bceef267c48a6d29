"""The report of a campaign as Markdown: each layer with its bar, and where the prediction is wrong."""

from collections.abc import Iterable, Iterator, Sequence

from validation.campaign.analyse import CaseResult, Findings

BARS = {"layer 1": 0.03, "layer 2": 0.10, "layer 3 median": 0.05, "layer 3 worst": 0.12, "regret": 0.03}
WORST_SHOWN = 5


def markdown(findings: Findings, facts: Sequence[str], pictures: Sequence[tuple[str, str]]) -> str:
    """The whole report. `facts` describe the machine, `pictures` are (file, caption)."""
    parts = [
        f"# Predicted and measured: {findings.origin}",
        "",
        f"Every run was made {findings.repeats} times by the engine ({findings.origin}) and predicted from a "
        "calibration that shares no run with it (simulated). Throughputs are medians; ± is half of the range.",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "## In short",
        "",
        *_table(("layer", "question", "found", "bar", ""), _summary(findings)),
        *(line for file, caption in pictures for line in (f"![{caption}]({file})", "", f"*{caption}*", "")),
        "## Layer 1 and 3: every run",
        "",
        *_table(
            (
                "run",
                "measured tok/s",
                "predicted",
                "error",
                "prefill",
                "decode",
                "layer 1 worst",
                "lanes",
                "path",
                "HRM",
            ),
            map(_run_row, findings.runs),
        ),
        "prefill, decode: error of their times. lanes: largest difference of a lane's busy share in percentage points. "
        "path: how far the critical paths agree by op and lane. HRM: its error in throughput on the same machine.",
        "",
        "## Layer 2: durations by the cost model",
        "",
        *_table(
            ("op", "lane", "phase", "tasks", "measured s", "predicted s", "MAPE", "WAPE", "bias"), _op_rows(findings)
        ),
        "Each task at its median over the repeats, slowed down by what it shares with others as simulated.",
        "",
        "## Layer 4: decisions",
        "",
        *_table(
            ("model", "order of", "runs", "Kendall τ", "pairs told apart", "within noise"), _decision_rows(findings)
        ),
        *_table(("model", "the planner's choice", "tok/s", "best measured", "tok/s", "regret"), _regret_rows(findings)),
        "## Where it is wrong",
        "",
        *_wrong(findings),
        "",
        "## Layer 0: mechanics",
        "",
        *_table(("case", "expected", "got", "exact"), _mechanics_rows(findings)),
        *(("## Missing", "", *(f"- {one}" for one in findings.missing), "") if findings.missing else ()),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _summary(findings: Findings) -> Iterator[tuple[str, ...]]:
    exact = sum(check.exact for check in findings.mechanics)
    whole = len(findings.mechanics)
    yield "0", "do the mechanics hold?", f"{exact} of {whole} exact", "all", _met(exact == whole)
    bar = BARS["layer 1"]
    within = f"{findings.order_within(bar)} traces within {bar:.0%}"
    yield _line("1", f"measured durations replayed: worst makespan error ({within})", findings.order_worst, bar)
    yield _line("1", "the same with the hand-over between lanes, as calibrated", findings.handed_over_worst, bar)
    yield _line("2", "durations, all tasks together: WAPE", findings.duration_wape, BARS["layer 2"])
    op, error = max(findings.duration_errors.items(), key=lambda one: one[1])
    worst = f"durations by op: worst WAPE ({op}, {findings.share_of_time(op):.1%} of all time)"
    yield _line("2", worst, error, BARS["layer 2"])
    yield _line("3", "throughput: median error", findings.run_median, BARS["layer 3 median"])
    yield _line("3", "throughput: worst error", findings.run_worst, BARS["layer 3 worst"])
    for one in findings.decisions:
        tau = one.ranking.tau
        found = "no pair told apart" if tau is None else f"τ = {tau:.2f}"
        yield "4", f"order of {one.what}, {one.model}", found, "τ = 1", _met(tau is None or tau == 1)
    for lost in findings.regrets:
        yield _line("4", f"regret of the planner's choice, {lost.model}", lost.regret, BARS["regret"])


def _line(layer: str, question: str, found: float, bar: float) -> tuple[str, ...]:
    return layer, question, f"{found:.1%}", f"≤ {bar:.0%}", _met(found <= bar)


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


def _run_row(run: CaseResult) -> tuple[str, ...]:
    hrm = "" if run.hrm_tokens_per_s is None else f"{run.hrm_tokens_per_s / run.measured.median - 1:+.0%}"
    return (
        run.case.name,
        f"{run.measured.median:.1f} ± {run.measured.half_width:.1f}",
        f"{run.predicted_tokens_per_s:.1f}",
        f"{run.error:+.1%}",
        f"{run.prefill_error:+.1%}",
        f"{run.decode_error:+.1%}",
        f"{max(run.order_errors, key=abs):+.1%}",
        f"{run.busy_points:.1f}",
        f"{run.path_agreement:.0%}",
        hrm,
    )


def _op_rows(findings: Findings) -> Iterator[tuple[str, ...]]:
    for one in findings.ops:
        times = (f"{one.measured_s:.2f}", f"{one.predicted_s:.2f}")
        errors = (f"{one.mape:.1%}", f"{one.wape:.1%}", f"{one.bias:+.1%}")
        yield one.op, one.lane, one.phase, f"{one.count:,}", *times, *errors


def _decision_rows(findings: Findings) -> Iterator[tuple[str, ...]]:
    for one in findings.decisions:
        tau = "" if one.ranking.tau is None else f"{one.ranking.tau:.2f}"
        yield one.model, one.what, str(len(one.cases)), tau, str(one.ranking.pairs), str(one.ranking.within_noise)


def _regret_rows(findings: Findings) -> Iterator[tuple[str, ...]]:
    for one in findings.regrets:
        chosen, best = f"{one.chosen_tokens_per_s:.1f}", f"{one.best_tokens_per_s:.1f}"
        yield one.model, one.chosen, chosen, one.best, best, f"{one.regret:.1%}"


def _wrong(findings: Findings) -> Iterator[str]:
    yield "The runs whose throughput is furthest off, and the op whose time is (predicted less measured):"
    yield ""
    for run in sorted(findings.runs, key=lambda one: -abs(one.error))[:WORST_SHOWN]:
        law = max(run.order_errors, key=abs)
        blame = "the order of work (layer 1)" if abs(law) > abs(run.error) / 2 else "durations (layer 2)"
        yield f"- {run.case.name}: {run.error:+.1%}, mostly by {blame}. {run.blame}."


def _mechanics_rows(findings: Findings) -> Iterator[tuple[str, ...]]:
    for check in findings.mechanics:
        yield check.name, f"{check.expected:,}", f"{check.got:,}", "yes" if check.exact else "**no**"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [" | ".join(heading), " | ".join("---" for _ in heading), *(" | ".join(row) for row in rows)]
    return [*(f"| {line} |" for line in lines), ""]
