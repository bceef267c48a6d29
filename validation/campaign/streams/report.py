"""The report of a campaign over streams as Markdown: each question with its bar, each stream, and its latencies."""

from collections.abc import Iterator, Sequence
from typing import Any

from traces.cli import TEXT, markdown_table
from validation.campaign.report import IN_SHORT, answer_row, met_or_missed, whole_report
from validation.campaign.streams.findings import StreamCaseResult, StreamFindings

ASKED = {
    "order_worst": ("1", "measured durations replayed: worst error of the time", 0.03),
    "order_worst_with_hand_over": ("1", "the same with the hand-over between lanes, as calibrated", 0.03),
    "replay_median": ("3", "time of the steps as they were, by the cost model: median error", 0.03),
    "throughput_median": ("3", "throughput predicted before the run: median error", 0.05),
    "throughput_worst": ("3", "throughput predicted before the run: worst error", 0.12),
    "latency_median": ("3", "TTFT, TPOT and E2E, p50 and p90: median error", 0.10),
    "latency_worst": ("3", "TTFT, TPOT and E2E, p50 and p90: worst error", 0.10),
}
RUNS = {"stream": TEXT, "measured tok/s": ">", "predicted": ".1f", "error": "+.1%", "layer 1 worst": "+.1%"}
RUNS |= {"layer 2 WAPE": ".1%", "steps as they were": "+.1%", "alike": TEXT, "steps": TEXT}
LATENCIES = {"stream": TEXT, "time": TEXT, "of": TEXT, "measured s": ".3f", "predicted s": ".3f", "error": "+.1%"}
RUNS_TOLD = (
    "predicted, error: by the simulator's own clock, from the calibration. steps as they were: error of the time, "
    "median of the repeats, if each step carries what it did. alike: steps of all repeats that carried what admission "
    "decides anew. steps: of one repeat, measured and predicted."
)


def streams_markdown(findings: StreamFindings, facts: Sequence[str], pictures: Sequence[tuple[str, str]]) -> str:
    """The whole report. `facts` describe the machine, `pictures` are (file, caption)."""
    shown = [line for file, caption in pictures for line in (f"![{caption}]({file})", "", f"*{caption}*", "")]
    latencies = (
        (run.case.name, one.measure, one.quantile, one.measured_s, one.predicted_s, one.error)
        for run in findings.runs
        for one in run.latencies
    )
    chapters = {
        "In short": [*markdown_table(IN_SHORT, summary_rows(findings)), *shown],
        "Every stream": [*markdown_table(RUNS, map(_run_row, findings.runs)), RUNS_TOLD, ""],
        "Latencies": markdown_table(LATENCIES, latencies),
    }
    told = (
        f"Every stream was served {findings.repeats} times by the engine ({findings.origin}) and predicted from a "
        "calibration that shares no run with it (simulated). Measured figures are medians; ± is half of the range."
    )
    return whole_report(f"Streams predicted and measured: {findings.origin}", told, facts, chapters, findings.missing)


def summary_rows(findings: StreamFindings) -> Iterator[tuple[str, ...]]:
    """A row for each question, as IN_SHORT heads them: what was found, and its bar."""
    found = findings.summary
    alike = found["steps_alike"]
    yield "1", "steps that carried what admission decides anew", f"{alike:.1%}", "all", met_or_missed(alike == 1)
    for name, (layer, question, bar) in ASKED.items():
        yield answer_row(layer, question, found[name], bar)


def _run_row(run: StreamCaseResult) -> tuple[Any, ...]:
    speeds = (f"{run.measured.median:.1f} ± {run.measured.half_width:.1f}", run.predicted_tokens_per_s, run.error)
    steps = (f"{run.steps_alike} of {run.steps}", f"{run.steps // len(run.order_errors)}, {run.predicted_steps}")
    replayed = sorted(run.replay_errors, key=abs)[len(run.replay_errors) // 2]
    return run.case.name, *speeds, max(run.order_errors, key=abs), run.duration_wape, replayed, *steps
