"""What is told of published joules: each row with its error, and what the simulated rate would make of it."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from traces.cli import TEXT, Report
from validation.published.latency.joules.predict import PredictedJoules

WITHIN = 0.25
"""Largest error that is asked for, of two rows at least."""


def print_joules(predictions: Sequence[PredictedJoules]) -> None:
    """Print a table, and what it amounts to."""
    out = Report()
    out.say("[bold]Published joules of a token, predicted from data sheets[/bold] (measured: published)")
    run = {"row": TEXT, "system": TEXT, "model": TEXT, "machine": TEXT, "requests": "d", "metered": TEXT}
    joules = {"measured J": ",.3f", "predicted J": ",.3f", "error": "+.0%", "by own rate J": ",.3f"}
    out.table([run, joules], map(_row, predictions), keys=1)
    errors = [abs(one.error) for one in predictions]
    near = sum(error <= WITHIN for error in errors)
    out.say(f"{near} of {len(errors)} rows are within {WITHIN:.0%}; the median error is {median(errors):.0%}.")


def _row(one: PredictedJoules) -> tuple[Any, ...]:
    row = one.row
    run = row.id, row.system, row.model, row.machine, row.requests, str(row.metered)
    return *run, row.j_per_token, one.at_published_rate, one.error, one.at_own_rate
