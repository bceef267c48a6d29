"""What `published` tells a person: errors per system, ranking per cell, the policy ablation, and each row."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from traces.cli import PROSE, TEXT, Report
from validation.published.fit import Fitted
from validation.published.holdout import HeldOut
from validation.published.kernels import Kernel
from validation.published.predict import Predicted
from validation.published.rows import BASELINE_BAR, CGOPIPE_BAR, RANKING_BAR, TIE, Cell

ERRORS = {"mean |error|": ".1%", "worst": "+.0%"}
"""Columns of tables that sum errors up."""


def print_report(predictions: Sequence[Predicted], *, own_file: bool) -> None:
    """Print tables: rows, then what they amount to."""
    out = Report()
    out.say("[bold]Published runs, predicted[/bold] (measured: published; predicted: simulated)")
    rates = {"measured tokens/s": ",.2f", "predicted tokens/s": ",.2f", "error": "+.0%"}
    run = {"row": "d", "setting": TEXT, "system": TEXT, "workload, gen": TEXT, "padded": TEXT, **rates}
    ours = {"policy": ">", "bound by": TEXT, "HRM": ",.2f", "HRM error": "+.0%"}
    out.table([run, ours], (_row(number, one) for number, one in enumerate(predictions, 1)), keys=3)
    _print_systems(out, predictions)
    ranked = rankings(predictions)
    if ranked:
        right = sum(ranked.values())
        wrong = ", ".join(
            f"{setting} {workload} {'padded' if padded else 'unpadded'} {gen_len}"
            for (setting, workload, padded, gen_len), fine in ranked.items()
            if not fine
        )
        out.say(
            f"Ranking of systems right in {right} of {len(ranked)} cells ({right / len(ranked):.0%}, "
            f"asked: {RANKING_BAR:.0%}){'; wrong: ' + wrong if wrong else ''}; "
            f"without calling gaps below {TIE:.0%} ties: {sum(rankings(predictions, tie=0.0).values())}"
        )
    if not own_file:
        _print_ablation(out, predictions)
    out.say(*(f"{one.row}: no prediction: {one.reason}" for one in predictions if one.reason))


def _row(number: int, one: Predicted) -> tuple[Any, ...]:
    row = one.row
    what = (f"{row.workload} {row.gen_len}", "yes" if row.padded else "no")
    speeds = (row.tokens_per_s, one.tokens_per_s, one.error)
    ours = (one.policy + ("*" if one.assumed else ""), one.bottleneck, one.hrm_tokens_per_s, one.hrm_error)
    return number, row.setting, row.schedule, *what, *speeds, *ours


def _print_systems(out: Report, predictions: Sequence[Predicted], title: str = "errors") -> None:
    columns = {"system": TEXT, "rows": "d", **ERRORS, "bias": "+.1%", "HRM mean |error|": ".0%", "asked": ">"}
    out.table(columns, _systems(predictions), title)


def _systems(predictions: Sequence[Predicted]) -> Iterator[tuple[Any, ...]]:
    for name, group in by_system(predictions).items():
        errors = [one.error for one in group if one.error is not None]
        hrm = [abs(one.hrm_error) for one in group if one.hrm_error is not None]
        if errors:
            found = (fmean(map(abs, errors)), max(errors, key=abs), fmean(errors), fmean(hrm) if hrm else None)
            yield name, len(errors), *found, f"≤ {CGOPIPE_BAR if name == 'cgopipe' else BASELINE_BAR:.0%}"


def by_system(predictions: Iterable[Predicted]) -> dict[str, list[Predicted]]:
    """Rows per system, then all systems but cgopipe together."""
    groups: dict[str, list[Predicted]] = defaultdict(list)
    for one in predictions:
        groups[one.row.schedule].append(one)
    others = [one for name, group in groups.items() if name != "cgopipe" for one in group]
    return {**groups, "all baselines": others} if others else dict(groups)


def rankings(predictions: Iterable[Predicted], tie: float = TIE) -> dict[Cell, bool]:
    """Per cell with at least two systems, whether the predictions put them all in the measured order.

    A system that ran several times counts with its means; ablations (a policy of another
    system, tried on purpose) do not count, nor do pairs that were measured
    within `tie` of each other.
    """
    cells: dict[Cell, dict[str, list[Predicted]]] = defaultdict(lambda: defaultdict(list))
    for one in predictions:
        if one.error is not None and "ablation" not in one.row.note:
            cells[one.row.cell][one.row.schedule].append(one)
    return {cell: _agree(systems.values(), tie) for cell, systems in cells.items() if len(systems) > 1}


def _agree(systems: Iterable[Sequence[Predicted]], tie: float) -> bool:
    rates = [[(one.row.tokens_per_s or 0.0, one.tokens_per_s or 0.0) for one in runs] for runs in systems]
    means = [tuple(map(fmean, zip(*of_runs, strict=True))) for of_runs in rates]
    told_apart = [(a, b) for a, b in combinations(means, 2) if abs(a[0] - b[0]) > tie * max(a[0], b[0])]
    return all((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in told_apart)


def _print_ablation(out: Report, predictions: Sequence[Predicted]) -> None:
    """Table 5 of the paper: what the policy does and what the schedule does, on one machine."""
    cell, systems = ("S1", "mtbench", True, 128), ("flexgen", "cgopipe")
    compared = [one for one in predictions if one.row.cell == cell and one.row.schedule in systems]
    compared.sort(key=lambda one: one.row.tokens_per_s or 0.0)
    columns = {"system": TEXT, "policy": ">", "measured": ",.2f", "predicted": ",.2f", "error": "+.0%"}
    rows = (
        (
            *(one.row.schedule, one.policy, one.row.tokens_per_s, one.tokens_per_s, one.error),
            *(_times(one.row.tokens_per_s, first.row.tokens_per_s), _times(one.tokens_per_s, first.tokens_per_s)),
        )
        for first in compared[:1]
        for one in compared
    )
    title = (
        "policy or schedule? FlexGen with its own policy, with CGOPipe's, with a larger batch; then CGOPipe (S1, 128)"
    )
    out.table({**columns, "× first, measured": ">", "× first, predicted": ">"}, rows, title)


def _times(value: float | None, first: float | None) -> str:
    return f"{value / first:.2f}×" if value and first else ""


def print_kernels(kernels: Sequence[Kernel]) -> None:
    """Figure 9: latencies of single kernels, a line per kernel."""
    groups: dict[str, list[Kernel]] = defaultdict(list)
    for one in kernels:
        groups[one.name].append(one)
    rows = []
    for name, group in groups.items():
        ranges = _range([one.measured_s for one in group]), _range([one.predicted_s for one in group])
        errors = [one.error for one in group]
        rows.append((name, len(group), *ranges, fmean(map(abs, errors)), max(errors, key=abs)))
    columns = {"kernel": TEXT, "runs": "d", "measured ms": ">", "predicted ms": ">", **ERRORS}
    Report().table(columns, rows, "kernels alone, L4 machine (figure 9)")


def _range(seconds: Sequence[float]) -> str:
    return f"{1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f}"


def print_fits(fits: Sequence[Fitted], held_out: Sequence[HeldOut]) -> None:
    """What was fitted, to which rows, and how well rows come out that a fit has not seen."""
    out = Report()
    values = (
        (fit.case.machine, fit.num_rows, one.name, fit.values[one.name], f"{one.low:g} to {one.high:g}", one.bound_by)
        for fit in fits
        for one in fit.case.parameters
    )
    columns = {"machine": TEXT, "rows": "d", "parameter": TEXT, "value": ".4g", "allowed": ">", "bounded by": PROSE}
    out.table(columns, values, "fitted", keys=3)
    by_name: dict[str, list[Predicted]] = defaultdict(list)
    for part in held_out:
        by_name["folds" if part.name.startswith("fold") else part.name] += part.predictions
    for name, predictions in by_name.items():
        _print_systems(out, predictions, f"held-out rows: {name}")
