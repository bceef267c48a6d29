"""`python -m tests.mutants`, in a checkout: whether a test notices when a formula or a schedule goes wrong."""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence

from rich.markup import escape

from tests.mutants import mutants as catalogue, trials
from tests.mutants.trials import TIMED_OUT, UNCLEAR, Trial
from traces.cli import INTERRUPTED, PROSE, TEXT, OneLineParser, Report, run_command, write_text
from traces.errors import InputError

SURVIVORS = 1
"""Exit code when a mistake went unnoticed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = OneLineParser(
        prog="python -m tests.mutants",
        description="Break formulas and schedules one at a time, and require a red test for each.",
        examples=("python -m tests.mutants", "python -m tests.mutants --only barrier-dropped"),
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="try this mutant; may be repeated")
    parser.add_argument("--list", action="store_true", help="show all mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time (default: one a core)")
    parser.add_argument("--json", metavar="FILE", help="write all outcomes; - is standard output, without the table")
    parser.set_defaults(command=_run)
    return run_command(lambda: parser, argv)


def _run(args: argparse.Namespace) -> int:
    """Try the mutants; 0 if all were killed, 1 if one was not."""
    if args.jobs < 1:
        raise InputError(f"--jobs: {args.jobs} is not allowed; give a whole number of at least 1")
    mutants = catalogue.chosen(catalogue.load(), args.only)
    if args.list:
        columns = {"mutant": TEXT, "file": TEXT, "what it breaks": PROSE}
        Report().table(columns, [(one.name, one.file, one.breaks) for one in mutants])
        return 0
    tried: list[Trial] = []
    started, interrupted = time.monotonic(), False

    def take(trial: Trial) -> None:
        tried.append(trial)
        if sys.stderr.isatty():
            sys.stderr.write(f"{len(tried)} of {len(mutants)}: {trial.mutant.name} {trial.verdict}\n")

    try:
        asyncio.run(trials.prove(mutants, take, min(args.jobs, len(mutants))))
    except KeyboardInterrupt:
        interrupted = True
    tried.sort(key=lambda one: mutants.index(one.mutant))
    wall_s = time.monotonic() - started
    if args.json:
        write_text(args.json, as_json(tried, len(mutants), wall_s))
    if args.json != "-" and tried:
        print_trials(tried, len(mutants), wall_s)
    if interrupted:
        sys.stderr.write(f"interrupted: {len(tried)} of {len(mutants)} mutants were tried\n")
        return INTERRUPTED
    return 0 if all(one.killed for one in tried) else SURVIVORS


def print_trials(tried: Sequence[Trial], total: int, wall_s: float) -> None:
    """Print what became of each mutant, those that no test noticed last, and the sum of it."""
    out, noticed_first = Report(), sorted(tried, key=lambda one: not one.killed)
    rows = [(one.mutant.name, one.verdict, one.seconds, _short(one.by)) for one in noticed_first]
    out.table({"mutant": TEXT, "verdict": TEXT, "s": ".1f", "noticed first by": PROSE}, rows)
    for one in (one for one in tried if not one.killed):
        tests = ", ".join(one.mutant.tests)
        out.say(f"[bold]{one.mutant.name}[/bold] {one.verdict}: {one.mutant.breaks}. Tried: {tests}")
        if one.verdict == UNCLEAR:
            out.say(escape(one.output))
    killed, late = sum(one.killed for one in tried), sum(one.verdict == TIMED_OUT for one in tried)
    parts = {
        f"{killed} of {total} mutants killed": True,
        f"{late} of them by the time limit": late,
        f"{total - len(tried)} not tried": len(tried) < total,
        f"[bold]{len(tried) - killed} not noticed: tests are missing[/bold]": killed < len(tried),
    }
    out.say(f"{', '.join(part for part, said in parts.items() if said)} in {wall_s:.0f} s")


def as_json(tried: Sequence[Trial], total: int, wall_s: float) -> str:
    """The same for a program."""
    rows = [
        {name: getattr(one.mutant, name) for name in ("name", "file", "breaks")}
        | {name: getattr(one, name) for name in ("verdict", "killed", "by", "seconds")}
        for one in tried
    ]
    killed = sum(one.killed for one in tried)
    whole = {"mutants": total, "tried": len(tried), "killed": killed, "wall_s": wall_s, "outcomes": rows}
    return json.dumps(whole, indent=1) + "\n"


def _short(test: str) -> str:
    """A node id without the folder and the parameters."""
    return test.removeprefix("tests/").partition("[")[0].replace(".py::", " ").replace("::", " ")


if __name__ == "__main__":
    sys.exit(main())
