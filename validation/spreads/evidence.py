"""What a run says of the numbers that its prediction rests on: how far it is off, and how each number moves it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log

from sim.problem import Basis
from sim.simulation import Prediction, predict, unknowns_of, varied
from traces.cli import in_processes
from validation.spreads.runs import PublishedRun

STEP = 0.1
"""Relative change, downwards, that shows a number's effect: larger than what interpolation hides."""

NO_EFFECT = 0.003
"""Slope below which a number has none."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One run: the logarithm of measured over predicted, and its slopes, in the logarithm of each number."""

    run: PublishedRun
    off: float
    slopes: Mapping[tuple[str, Basis], float]
    """By the first of numbers that are one piece of knowledge, and how it is known."""
    in_prefill: float
    """Share of what was measured that was prefill; the rest was decode."""


def evidence_of(runs: Sequence[PublishedRun], jobs: int | None = None) -> Iterator[Evidence]:
    """Of each run in its order; `jobs` processes share the work."""
    return in_processes(_evidence_of, runs, jobs)


def _evidence_of(run: PublishedRun) -> Evidence:
    predicted = predict(run.setup, compiled=True, must_fit=False)
    said, machine = _of(predicted, run), run.setup.problem.hardware
    slopes = {}
    for unknown in unknowns_of(machine):
        less = replace(run.setup.problem, hardware=varied(machine, [unknown], [exp(-STEP)]))
        found = predict(replace(run.setup, problem=less), compiled=True, must_fit=False)
        slope = -log(_of(found, run) / said) / STEP
        if abs(slope) > NO_EFFECT:
            slopes[unknown.name, unknown.basis] = slope
    return Evidence(run, log(run.measured / said), slopes, _in_prefill(predicted, run))


def _of(prediction: Prediction, run: PublishedRun) -> float:
    return float(getattr(prediction, run.measure))


def _in_prefill(prediction: Prediction, run: PublishedRun) -> float:
    if run.measure == "throughput_tokens_per_s":
        return prediction.prefill_s / prediction.total_s
    return float(run.measure == "prefill_tokens_per_s")
