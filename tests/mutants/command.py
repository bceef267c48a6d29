"""`python -m tests.mutants`: whether a test notices when a formula or a schedule goes wrong."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from traces.cli import INTERRUPTED, OneLineParser, run_command
from traces.errors import InputError

if TYPE_CHECKING:
    from tests.mutants.mutants import Mutant
    from tests.mutants.project import Project
    from tests.mutants.run import Progress, Trial

SURVIVORS = 1
"""Exit code when a mistake went unnoticed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = OneLineParser(
        prog="python -m tests.mutants",
        description="Break formulas and schedules one at a time, and require a red test for each.",
        examples=("", "--only barrier-dropped"),
    )
    add_arguments(parser)
    parser.set_defaults(command=run)
    return run_command(parser, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which mutants, how many at a time, and where the outcome goes."""
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="try this mutant; may be repeated")
    parser.add_argument("--list", action="store_true", help="show all mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time (default: one a core)")
    parser.add_argument("--json", metavar="FILE", help="write all outcomes; - is standard output, without the table")


def run(args: argparse.Namespace) -> int:
    """Try the mutants; 0 if all were killed, 1 if one was not."""
    from tests.mutants.mutants import chosen, load
    from tests.mutants.project import Project
    from tests.mutants.report import print_list

    if args.jobs < 1:
        raise InputError(f"--jobs: {args.jobs} is not allowed; give a whole number of at least 1")
    mutants = chosen(load(), args.only)
    if args.list:
        print_list(mutants)
        return 0
    for needed in ("pytest", "hypothesis"):
        if find_spec(needed) is None:
            raise InputError(f"prove-red runs tests with {needed}, which is not installed: pip install '.[engine,dev]'")
    return _try(Project.installed(), mutants, min(args.jobs, len(mutants)), args.json)


def _try(project: "Project", mutants: "Sequence[Mutant]", jobs: int, json: str | None) -> int:
    from tests.mutants.run import files_of_tests, prove

    outcomes: list[Trial] = []
    started = time.monotonic()
    interrupted = False
    try:
        with (
            _bar(len(mutants) + len(files_of_tests(mutants))) as progress,
            closing(prove(project, mutants, jobs, progress)) as found,
        ):
            for outcome in found:
                outcomes.append(outcome)
    except KeyboardInterrupt:
        interrupted = True
    order = {mutant.name: at for at, mutant in enumerate(mutants)}
    outcomes.sort(key=lambda one: order[one.mutant.name])
    _tell(outcomes, len(mutants), time.monotonic() - started, json)
    if interrupted:
        sys.stderr.write(f"interrupted: {len(outcomes)} of {len(mutants)} mutants were tried\n")
        return INTERRUPTED
    return 0 if all(one.killed for one in outcomes) else SURVIVORS


def _tell(outcomes: "Sequence[Trial]", total: int, wall_s: float, json: str | None) -> None:
    from tests.mutants.report import as_json, print_outcomes

    if json == "-":
        sys.stdout.write(as_json(outcomes, total, wall_s))
        return
    if outcomes:
        print_outcomes(outcomes, total, wall_s)
    if json:
        try:
            Path(json).write_text(as_json(outcomes, total, wall_s), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{json}: cannot be written: {error.strerror}") from None


@contextmanager
def _bar(total: int) -> "Iterator[Progress]":
    """A progress bar on a terminal: the files of tests without a mistake first, then the mutants."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("copies of the project", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)
