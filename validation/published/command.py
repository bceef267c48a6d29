"""`python -m validation published`: predict the published rows, fit the machines, or predict a file of one's own."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.cli import OneLineParser
from traces.errors import InputError, check_count

if TYPE_CHECKING:
    from sim.problem import Hardware
    from validation.published.fit import Fitted, Progress
    from validation.published.holdout import HeldOut
    from validation.published.predict import Predicted
    from validation.published.rows import Row


def add_arguments(parser: OneLineParser) -> None:
    """Add the command's arguments."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--predict", metavar="FILE", help="predict the rows of this CSV file, with the presets as they are"
    )
    what.add_argument("--fit", action="store_true", help="fit the machines first, and report held-out rows apart")
    parser.add_argument("--write-presets", action="store_true", help="with --fit: write the values into the presets")
    parser.add_argument("--json", metavar="FILE", help="write results as JSON; - is standard output, without tables")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from validation.published.predict import predict_all
    from validation.published.rows import THROUGHPUT, read_rows

    if args.jobs is not None:
        check_count("--jobs", args.jobs)
    if args.write_presets and not args.fit:
        raise InputError("--write-presets: writes what a fit has found; give --fit too")
    jobs = args.jobs or os.cpu_count() or 1
    rows = read_rows(Path(args.predict) if args.predict else THROUGHPUT)
    if args.fit:
        _fit(args, rows, jobs)
    else:
        _report(args, predict_all(rows, None, jobs, "predicting"), [])
    return 0


def _fit(args: argparse.Namespace, rows: "Sequence[Row]", jobs: int) -> None:
    """Fit all, write if asked, then fit again without some rows at a time to predict those."""
    from validation.published.fit import CASES, fit, machines
    from validation.published.holdout import folds, without_setting
    from validation.published.predict import predict_all
    from validation.published.setups import SETTINGS

    with _status() as progress:
        fits = [fit(case, rows, jobs, progress) for case in CASES]
    if args.write_presets:
        from validation.published.presets import write_presets

        for path in write_presets(fits):
            sys.stderr.write(f"wrote {path}\n")
    fitted = machines(fits, [machine for _, machine in SETTINGS.values()])
    predictions = predict_all(rows, fitted, jobs, "predicting")
    held_out: list[HeldOut] = []
    try:
        with _status() as progress:
            for whole in fits:
                held_out += folds(whole, rows, jobs, progress)
            held_out.append(without_setting(CASES[0], "S6", rows, jobs, progress))
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted: {len(held_out)} fits without some rows were done\n")
    _report(args, predictions, held_out, fits)


def _report(
    args: argparse.Namespace,
    predictions: "list[Predicted]",
    held_out: "Sequence[HeldOut]",
    fits: "Sequence[Fitted]" = (),
) -> None:
    if args.json:
        _write(args.json, _content(predictions, held_out, fits))
    if args.json == "-":
        return
    from validation.published import report

    report.print_report(predictions, own_file=bool(args.predict))
    if not args.predict:
        from validation.published.fit import machines
        from validation.published.kernels import predict_kernels

        machine = machines(fits, ["gcp-l4"]).get("gcp-l4") or _preset("gcp-l4")
        report.print_kernels(predict_kernels(machine))
    if fits:
        report.print_fits(fits, held_out)


def _preset(name: str) -> "Hardware":
    from sim.problem import Hardware

    return Hardware.load(name)


def _content(predictions: "list[Predicted]", held_out: "Sequence[HeldOut]", fits: "Sequence[Fitted]") -> Any:
    """Rows as a list; with a fit, an object of rows, values and rows predicted without them."""
    rows = [one.to_dict() for one in predictions]
    if not fits:
        return rows
    return {
        "rows": rows,
        "fitted": {one.case.machine: one.values for one in fits},
        "held_out": [
            {"name": one.name, "machine": one.fitted.case.machine, "rows": [row.to_dict() for row in one.predictions]}
            for one in held_out
        ],
    }


@contextmanager
def _status() -> "Iterator[Progress]":
    """Says what a fit does: a line that changes on a terminal, nothing elsewhere."""
    from rich.console import Console

    out = Console(stderr=True)
    if not out.is_terminal:
        yield lambda text: None
        return
    with out.status("fitting") as status:
        yield lambda text: status.update(f"fitting {text}")


def _write(path: str, content: object) -> None:
    text = json.dumps(content, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
