"""The published rows predicted, the machines fitted to them, or a file of one's own predicted."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim import problem, simulation
from traces.cli import Command, add_jobs, add_json, deliver, progress
from traces.errors import InputError
from validation import published


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--predict", metavar="FILE", help="predict the rows of this CSV file, with the presets as they are"
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
    rows = published.read_rows(Path(args.predict) if args.predict else published.THROUGHPUT)
    if args.fit:
        return _fit(args, rows, jobs)
    return _report(args, _predictions(rows, jobs))


def _predictions(
    rows: "Sequence[published.Row]", jobs: int, machines: "Mapping[str, problem.Hardware] | None" = None
) -> "list[published.Predicted]":
    found = []
    with progress("predicting", len(rows), unit="rows") as shown:
        for one in published.predict_all(rows, machines, jobs):
            found.append(one)
            shown.advance()
    return found


def _fit(args: argparse.Namespace, rows: "Sequence[published.Row]", jobs: int) -> int:
    """Fit all, write if asked, then fit again without some rows at a time to predict those."""
    from validation.published.fit import fit

    with progress("fitting") as shown:
        fits = [fit(case, rows, jobs, shown.say) for case in published.CASES]
    if args.write_presets:
        for path in published.write_presets(fits):
            sys.stderr.write(f"wrote {path}\n")
    predictions = _predictions(rows, jobs, published.machines(fits))
    held_out: list[published.HeldOut] = []
    try:
        with progress("fitting without some rows") as shown:
            for whole in fits:
                held_out += published.folds(whole, rows, jobs, shown.say)
            held_out.append(published.without_setting(published.CASES[0], "S6", rows, jobs, shown.say))
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted: {len(held_out)} fits without some rows were done\n")
    return _report(args, predictions, held_out, fits)


def _report(
    args: argparse.Namespace,
    predictions: "list[published.Predicted]",
    held_out: "Sequence[published.HeldOut]" = (),
    fits: "Sequence[published.Fitted]" = (),
) -> int:
    def content() -> dict[str, Any]:
        fitted = {one.case.machine: one.values for one in fits}
        more = {"fitted": fitted, "held_out": [one.to_dict() for one in held_out]} if fits else {}
        return {"rows": [one.to_dict() for one in predictions], **more}

    def show() -> None:
        published.print_report(predictions, own_file=bool(args.predict))
        if not args.predict:
            machine = published.machines(fits).get("gcp-l4") or problem.Hardware.load("gcp-l4")
            published.print_kernels(published.predict_kernels(machine))
        if fits:
            published.print_fits(fits, held_out)

    return deliver(args, content, show)


COMMAND = Command(
    "published",
    "predict published runs of other systems, and fit the machines they ran on",
    ("", "--fit", "--predict runs.csv --json -"),
    _add_arguments,
    run,
    needs="engine",
)
