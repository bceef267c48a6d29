"""What `published` tells a person: errors per system, ranking per cell, the policy ablation, and each row."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.table import Table

from traces.cli import console
from validation.published.fit import Fitted
from validation.published.holdout import HeldOut
from validation.published.kernels import Kernel
from validation.published.predict import Predicted, mean_absolute_error
from validation.published.rows import BASELINE_BAR, CGOPIPE_BAR, RANKING_BAR, TIE, Cell

LEGEND = "error: predicted over measured - 1. HRM: MoE-Lightning's own performance model, decode only at peak rates."


def print_report(predictions: Sequence[Predicted], *, own_file: bool) -> None:
    """Print tables: rows, then what they amount to."""
    out = console()
    out.print("[bold]Published runs, predicted[/bold] (measured: published; predicted: simulated)")
    out.print(_rows(predictions))
    out.print(LEGEND)
    out.print(_systems(predictions))
    ranked = rankings(predictions)
    if ranked:
        right = sum(ranked.values())
        wrong = ", ".join(cell_name(cell) for cell, fine in ranked.items() if not fine)
        out.print(
            f"Ranking of systems right in {right} of {len(ranked)} cells ({right / len(ranked):.0%}, "
            f"asked: {RANKING_BAR:.0%}){'; wrong: ' + wrong if wrong else ''}; "
            f"without calling gaps below {TIE:.0%} ties: {sum(rankings(predictions, tie=0.0).values())}"
        )
    if not own_file:
        out.print(_ablation(predictions))
    for one in predictions:
        if one.reason:
            out.print(f"{one.row}: no prediction: {one.reason}")


def _rows(predictions: Iterable[Predicted]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("setting", "system", "workload", "prompts"):
        table.add_column(name, no_wrap=True)
    for name in ("gen", "policy", "measured", "predicted", "error", "HRM", "HRM error", "bound by"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in predictions:
        row = one.row
        table.add_row(
            row.setting,
            row.schedule,
            row.workload,
            "padded" if row.padded else "unpadded",
            str(row.gen_len),
            one.policy + ("*" if one.assumed else ""),
            rate(row.tokens_per_s),
            rate(one.tokens_per_s),
            share(one.error),
            rate(one.hrm_tokens_per_s),
            share(one.hrm_error),
            one.bottleneck,
        )
    return table


def _systems(predictions: Sequence[Predicted]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title="errors", title_justify="left")
    table.add_column("system", no_wrap=True)
    for name in ("rows", "mean |error|", "worst", "bias", "HRM mean |error|", "asked"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, group in by_system(predictions).items():
        errors = [one.error for one in group if one.error is not None]
        hrm = [abs(one.hrm_error) for one in group if one.hrm_error is not None]
        if not errors:
            continue
        table.add_row(
            name,
            str(len(errors)),
            f"{mean_absolute_error(group):.1%}",
            f"{max(errors, key=abs):+.0%}",
            f"{sum(errors) / len(errors):+.1%}",
            f"{sum(hrm) / len(hrm):.0%}" if hrm else "",
            f"≤ {CGOPIPE_BAR if name == 'cgopipe' else BASELINE_BAR:.0%}",
        )
    return table


def by_system(predictions: Iterable[Predicted]) -> dict[str, list[Predicted]]:
    """Rows per system, then all systems but cgopipe together."""
    groups: dict[str, list[Predicted]] = defaultdict(list)
    for one in predictions:
        groups[one.row.schedule].append(one)
    others = [one for name, group in groups.items() if name != "cgopipe" for one in group]
    return {**groups, "all baselines": others} if others else dict(groups)


def rankings(predictions: Iterable[Predicted], tie: float = TIE) -> dict[Cell, bool]:
    """Per cell with at least two systems, whether the predictions put them all in the measured order.

    A system that ran several times counts with its means; ablations do not count, nor do pairs that were measured
    within `tie` of each other.
    """
    cells: dict[Cell, dict[str, list[Predicted]]] = defaultdict(lambda: defaultdict(list))
    for one in predictions:
        if one.error is not None and not one.row.is_ablation:
            cells[one.row.cell][one.row.schedule].append(one)
    several = {cell: list(map(_means, systems.values())) for cell, systems in cells.items() if len(systems) > 1}
    return {cell: _agree(systems, tie) for cell, systems in several.items()}


def _means(runs: Sequence[Predicted]) -> tuple[float, float]:
    """Measured and predicted tokens per second."""
    return fmean(one.row.tokens_per_s or 0.0 for one in runs), fmean(one.tokens_per_s or 0.0 for one in runs)


def _agree(systems: Sequence[tuple[float, float]], tie: float) -> bool:
    told_apart = [(a, b) for a, b in combinations(systems, 2) if abs(a[0] - b[0]) > tie * max(a[0], b[0])]
    return all((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in told_apart)


def cell_name(cell: Cell) -> str:
    """The cell in words."""
    setting, workload, padded, gen_len = cell
    return f"{setting} {workload} {'padded' if padded else 'unpadded'} {gen_len}"


def _ablation(predictions: Sequence[Predicted]) -> Table:
    """Table 5 of the paper: what the policy does and what the schedule does, on one machine."""
    title = (
        "policy or schedule? FlexGen with its own policy, with CGOPipe's, with a larger batch; then CGOPipe (S1, 128)"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left")
    table.add_column("system", no_wrap=True)
    for name in ("policy", "measured", "predicted", "error", "× first, measured", "× first, predicted"):
        table.add_column(name, justify="right", no_wrap=True)
    found = [one for one in predictions if one.row.cell == ("S1", "mtbench", True, 128)]
    compared = sorted(
        (one for one in found if one.row.schedule in ("flexgen", "cgopipe")),
        key=lambda one: one.row.tokens_per_s or 0.0,
    )
    for one in compared:
        first, row = compared[0], one.row
        table.add_row(
            row.schedule,
            one.policy,
            rate(row.tokens_per_s),
            rate(one.tokens_per_s),
            share(one.error),
            _times(row.tokens_per_s, first.row.tokens_per_s),
            _times(one.tokens_per_s, first.tokens_per_s),
        )
    return table


def rate(value: float | None) -> str:
    """Tokens per second."""
    return "" if value is None else f"{value:,.2f}"


def share(value: float | None) -> str:
    """A signed share in percent."""
    return "" if value is None else f"{value:+.0%}"


def _times(value: float | None, first: float | None) -> str:
    return f"{value / first:.2f}×" if value and first else ""


def print_kernels(kernels: Sequence[Kernel]) -> None:
    """Figure 9: latencies of single kernels, in a table per kernel."""
    out = console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title="kernels alone, L4 machine (figure 9)")
    table.title_justify = "left"
    table.add_column("kernel", no_wrap=True)
    for name in ("points", "measured ms", "predicted ms", "mean |error|", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    groups: dict[str, list[Kernel]] = defaultdict(list)
    for one in kernels:
        groups[one.name].append(one)
    for name, group in groups.items():
        errors = [one.error for one in group]
        measured, predicted = [one.measured_s * 1e3 for one in group], [one.predicted_s * 1e3 for one in group]
        table.add_row(
            name,
            str(len(group)),
            f"{min(measured):.2f} to {max(measured):.2f}",
            f"{min(predicted):.2f} to {max(predicted):.2f}",
            f"{fmean(map(abs, errors)):.1%}",
            f"{max(errors, key=abs):+.0%}",
        )
    out.print(table)


def print_fits(fits: Sequence[Fitted], held_out: Sequence[HeldOut]) -> None:
    """What was fitted, to which rows, and how well rows come out that a fit has not seen."""
    out = console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title="fitted", title_justify="left")
    for name in ("machine", "rows", "parameter", "value", "allowed", "bounded by"):
        table.add_column(name)
    for one in fits:
        for parameter in one.case.parameters:
            table.add_row(
                one.case.machine,
                f"{one.num_rows}",
                parameter.name,
                f"{one.values[parameter.name]:.4g}",
                f"{parameter.low:g} to {parameter.high:g}",
                parameter.bound_by,
            )
    out.print(table)
    by_name: dict[str, list[Predicted]] = defaultdict(list)
    for part in held_out:
        name = "folds" if part.name.startswith("fold") else part.name
        by_name[name].extend(part.predictions)
    for name, predictions in by_name.items():
        out.print(f"[bold]Held-out rows: {name}[/bold]")
        out.print(_systems(predictions))
