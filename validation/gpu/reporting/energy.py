"""Joules of a proof: of each run beside what was predicted before it, and the watts that the calibration measured."""

from collections.abc import Iterator, Mapping
from typing import Any

from sim.simulation import Component
from traces.cli import TEXT, Report
from validation.gpu.reporting.summary import ProofSummary, shown_name
from validation.replay import COUNTED

Counts = Mapping[str, Any]
"""What a run, or a prediction, says of itself."""


def print_energy(summary: ProofSummary, out: Report) -> None:
    """A table of joules per token, where any were counted, and of the rest why not."""
    rows = [row for case, one in summary.runs.items() for row in _run_rows(case, one, summary.predicted[case])]
    if rows:
        columns = {"run": TEXT, "J/token": ".3g", "predicted": ".3g", "error": "+.1%", "mean W": ",.0f"}
        origin = summary.record.settings["origin"]
        counted = ", ".join(dict.fromkeys(part for one in summary.runs.values() for part in _counted(one)))
        title = f"energy of {counted}: measured ({origin}), predicted (simulated, before the run)"
        out.table({**columns, "decode W": ",.0f"}, rows, title)
    _print_watts(summary, out)
    missing: dict[str, str] = {}
    for one in summary.runs.values():
        missing |= one.get("energy", {}).get("missing", {})
    if missing:
        out.say(*(f"Not counted: {name}: {why}." for name, why in missing.items()))


def _run_rows(case: str, run: Counts, said: Counts) -> Iterator[tuple[Any, ...]]:
    """One, if its joules were counted; without a prediction where the machine's watts are not known."""
    found = run.get("energy")
    if not found or not found["total_j"]:
        return
    each, predicted = run["energy_j_per_token"], _predicted_per_token(said, _counted(run))
    error = None if predicted is None else predicted / each - 1
    decode_w = sum(found["by_phase_j"]["decode"].values()) / run["decode_s"] if run["decode_s"] else None
    watts = found["total_j"] / (run["prefill_s"] + run["decode_s"])
    yield shown_name(case), each, predicted, error, watts, decode_w


def _counted(run: Counts) -> list[Component]:
    """What counters saw of a run."""
    return [part for part in COUNTED if part in run.get("energy", {}).get("by_component_j", {})]


def _predicted_per_token(said: Counts, counted: list[Component]) -> float | None:
    """Of the parts that the counters of these components see."""
    if not said.get("energy"):
        return None
    joules = said["energy"]["by_component_j"]
    return float(sum(joules.get(part, 0.0) for one in counted for part in COUNTED[one]) / said["generated_tokens"])


def _print_watts(summary: ProofSummary, out: Report) -> None:
    found = {name: one["watts"] for name, one in summary.record.results("calibration").items() if one.get("watts")}
    rows = [
        (name, component, doing, of[component], one["limits_w"].get(component))
        for name, one in found.items()
        for doing, of in one["watts"].items()
        for component in of
    ]
    if rows:
        columns = {"calibration": TEXT, "of": TEXT, "while it does": TEXT, "W": ",.0f", "limit W": ",.0f"}
        out.table(columns, rows, "watts, measured by counters")
