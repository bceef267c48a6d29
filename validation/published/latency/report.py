"""What is told of published rates: each row with its error, fitted or predicted, and what the latter amount to."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from traces.cli import PROSE, TEXT, Report
from validation.published.latency.fit import EXPONENTS, FITTED_ROWS, RATE_FITS, FittedRates
from validation.published.latency.predict import PredictedRate

MEDIAN_BAR, WORST_BAR = 0.08, 0.25
"""Largest median and largest single error of rows that nothing is fitted to."""


def print_rates(predictions: Sequence[PredictedRate], *, own_file: bool) -> None:
    """Print tables: rows, then what they amount to by system, and why some have no prediction."""
    out = Report()
    out.say("[bold]Published rates where experts stay on the host, predicted[/bold] (measured: published)")
    rates = {"measured": ",.4g", "predicted": ",.4g", "error": "+.1%", "": TEXT}
    run = {"row": TEXT, "system": TEXT, "model": TEXT, "experts": TEXT, "metric": TEXT, **rates}
    out.table([run, {"machine": TEXT, "bound by": TEXT}], (_row(one, own_file=own_file) for one in predictions), keys=1)
    columns = {"system": TEXT, "rows": "d", "median |error|": ".1%", "worst": "+.0%"}
    asked = f"asked: median {MEDIAN_BAR:.0%}, worst {WORST_BAR:.0%}"
    out.table(columns, _systems(predictions, own_file=own_file), f"errors of rows that nothing is fitted to ({asked})")
    if not own_file:
        out.say(*(f"{one.row.name}: no prediction: {one.reason}" for one in predictions if one.reason))


def _row(one: PredictedRate, *, own_file: bool) -> tuple[Any, ...]:
    row = one.row
    fitted = "fitted" if row.name in FITTED_ROWS and not own_file else ""
    what = (row.system, row.model, row.placement or row.policy, str(row.metric) + ("*" if one.assumed else ""))
    return row.name, *what, row.value, one.value, one.error, fitted, one.machine, one.bottleneck


def _systems(predictions: Sequence[PredictedRate], *, own_file: bool) -> Iterator[tuple[Any, ...]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for one in not_fitted(predictions, own_file=own_file):
        if one.error is not None:
            groups[one.row.system.partition(" ")[0]].append(one.error)
            groups["all"].append(one.error)
    for name in [*(name for name in groups if name != "all"), *(["all"] if groups else [])]:
        errors = groups[name]
        yield name, len(errors), median(map(abs, errors)), max(errors, key=abs)


def not_fitted(predictions: Sequence[PredictedRate], *, own_file: bool = False) -> list[PredictedRate]:
    """Those of rows that nothing is fitted to: all of a file of one's own."""
    return [one for one in predictions if own_file or one.row.name not in FITTED_ROWS]


def with_basis(one: PredictedRate) -> dict[str, Any]:
    """A prediction of a published row as JSON values, with whether something is fitted to the row."""
    return {**one.to_dict(), "fitted": one.row.name in FITTED_ROWS}


def print_rate_fits(fitted: FittedRates) -> None:
    """What was fitted to which rows."""
    columns = {"machine": TEXT, "parameter": TEXT, "value": ".4g", "rows": PROSE}
    rows = list[tuple[Any, ...]]()
    for case in RATE_FITS:
        for one in case.parameters:
            value = fitted.values[case.machine][one.name]
            rows.append((case.machine, one.name, value, ", ".join(case.rows)))
    for law in EXPONENTS:
        value = fitted.exponents[law.model]
        rows.append((law.model, "exponent of experts' popularity", value, law.row))
    Report().table(columns, rows, "fitted: published rates", keys=2)
