"""The published rows predicted, the machines fitted to them, or a file of one's own predicted.

Rows are of two kinds, which their columns tell apart: throughput of large batches (`Row`), and rates of one request or
few where experts stay on the host (`LatencyRow`).
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from sim import problem, simulation
from traces.cli import Command, add_jobs, add_json, deliver, progress
from traces.errors import InputError
from validation import bounds, published
from validation.published import latency

T = TypeVar("T")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--predict",
        metavar="FILE",
        help="predict the rows of this CSV file, which has the columns of throughput.csv or those of latency.csv",
    )
    what.add_argument("--fit", action="store_true", help="fit the machines first, and report held-out rows apart")
    parser.add_argument("--write-presets", action="store_true", help="with --fit: write the values into the presets")
    add_json(parser)
    add_jobs(parser)


def run(args: argparse.Namespace) -> int:
    """Predict, and fit if asked."""
    if args.write_presets and not args.fit:
        raise InputError("--write-presets: writes what a fit has found; give --fit too")
    simulation.compile_once()
    jobs = args.jobs or os.cpu_count() or 1
    if args.predict and latency.is_latency_file(Path(args.predict)):
        return _predict_rates(args, jobs)
    rows = published.read_rows(Path(args.predict) if args.predict else published.THROUGHPUT)
    if args.fit:
        return _fit(args, rows, jobs)
    predictions = _predictions(rows, jobs)
    rates = [] if args.predict else _rates(latency.read_latency_rows(latency.LATENCY)[0], jobs)
    return _report(args, predictions, rates, jobs)


def _predictions(
    rows: "Sequence[published.Row]", jobs: int, machines: "Mapping[str, problem.Hardware] | None" = None
) -> "list[published.Predicted]":
    with progress("predicting", len(rows), unit="rows") as shown:
        return list(_counted(published.predict_all(rows, machines, jobs), shown.advance))


def _rates(
    rows: "Sequence[latency.LatencyRow]", jobs: int, fitted: "latency.FittedRates | None" = None
) -> "list[latency.PredictedRate]":
    given = {"values": fitted.as_values} if fitted else {}
    with progress("predicting rates", len(rows), unit="rows") as shown:
        return list(_counted(latency.predict_rates(rows, jobs=jobs, **given), shown.advance))


def _counted(found: Iterable[T], advance: Callable[[], object]) -> Iterator[T]:
    for one in found:
        yield one
        advance()


def _predict_rates(args: argparse.Namespace, jobs: int) -> int:
    """A file of one's own. Rows without a prediction are named on standard error, and end the command with 2."""
    rows, bad = latency.read_latency_rows(Path(args.predict))
    rates = _rates(rows, jobs)
    missing = [latency.BadRow(one.row.number, one.reason) for one in rates if one.reason]

    def content() -> dict[str, Any]:
        told = [{"row": one.number, "reason": one.reason} for one in bad]
        return {"rows": [], "rates": [one.to_dict() for one in rates], "bad_rows": told}

    deliver(args, content, lambda: latency.print_rates(rates, own_file=True))
    for one in sorted([*bad, *missing], key=lambda one: one.number):
        sys.stderr.write(f"error: {args.predict}: row {one.number}: {one.reason}\n")
    return 2 if bad or missing else 0


def _fit(args: argparse.Namespace, rows: "Sequence[published.Row]", jobs: int) -> int:
    """Fit all, write if asked, then fit again without some rows at a time to predict those."""
    from validation.published.fit import fit

    rate_rows = latency.read_latency_rows(latency.LATENCY)[0]
    with progress("fitting") as shown:
        fits = [fit(case, rows, jobs, shown.say) for case in published.CASES]
        fitted_rates = latency.fit_rates(rate_rows, shown.say)
    if args.write_presets:
        for path in [*published.write_presets(fits), *fitted_rates.write()]:
            sys.stderr.write(f"wrote {path}\n")
    predictions = _predictions(rows, jobs, published.machines(fits))
    rates = _rates(rate_rows, jobs, fitted_rates)
    held_out: list[published.HeldOut] = []
    try:
        with progress("fitting without some rows") as shown:
            for whole in fits:
                held_out += published.folds(whole, rows, jobs, shown.say)
            held_out.append(published.without_setting(published.CASES[0], "S6", rows, jobs, shown.say))
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted: {len(held_out)} fits without some rows were done\n")
    return _report(args, predictions, rates, jobs, held_out, fits, fitted_rates)


def _report(
    args: argparse.Namespace,
    predictions: "list[published.Predicted]",
    rates: "list[latency.PredictedRate]",
    jobs: int,
    held_out: "Sequence[published.HeldOut]" = (),
    fits: "Sequence[published.Fitted]" = (),
    fitted_rates: "latency.FittedRates | None" = None,
) -> int:
    checks = [] if args.predict else bounds.moe_lens_checks()
    joules = [] if args.predict else list(latency.predict_joules(latency.read_joules_rows(latency.JOULES), jobs))

    def content() -> dict[str, Any]:
        found: dict[str, Any] = {"rows": [one.to_dict() for one in predictions]}
        if not args.predict:
            found["rates"] = [latency.with_basis(one) for one in rates]
            found["joules"] = [one.to_dict() for one in joules]
            found["bounds"] = [asdict(one) for one in checks]
        if fitted_rates is None:
            return found
        fitted = {one.case.machine: one.values for one in fits} | dict(fitted_rates.values)
        return {**found, "fitted": fitted, "held_out": [one.to_dict() for one in held_out]}

    def show() -> None:
        published.print_report(predictions, own_file=bool(args.predict))
        if not args.predict:
            machine = published.machines(fits).get("gcp-l4") or problem.Hardware.load("gcp-l4")
            published.print_kernels(published.predict_kernels(machine))
            latency.print_rates(rates, own_file=False)
            latency.print_joules(joules)
            bounds.print_bounds(checks)
        if fitted_rates is not None:
            published.print_fits(fits, held_out)
            latency.print_rate_fits(fitted_rates)

    return deliver(args, content, show)


COMMAND = Command(
    "published",
    "predict published runs of other systems, and fit the machines they ran on",
    ("", "--fit", "--predict runs.csv --json -"),
    _add_arguments,
    run,
    needs="engine",
)
