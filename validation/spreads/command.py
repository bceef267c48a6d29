"""The spreads of numbers and of the model, learnt anew and tried on machines that were held out."""

import argparse
import sys
from typing import Any

from sim import simulation
from traces.cli import Command, add_jobs, add_json, deliver, progress
from validation import spreads


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", action="store_true", help="write them where predictions read them")
    add_json(parser)
    add_jobs(parser)


def run(args: argparse.Namespace) -> int:
    """Learn, hold out, and write if asked."""
    simulation.compile_once()
    with progress("setting up"):
        runs = list(spreads.published_runs())
    with progress("slopes", len(runs), unit="runs") as shown:
        evidence = []
        for one in spreads.evidence_of(runs, args.jobs):
            evidence.append(one)
            shown.advance()
    learnt = spreads.learnt_from(evidence)
    with progress("bands", len(runs), unit="runs") as shown:
        held = []
        for found in spreads.hold_out(evidence, args.jobs):
            held.append(found)
            shown.advance()
    if args.write:
        spreads.write_spreads(learnt, held)
        sys.stderr.write(f"wrote {simulation.SPREADS}\n")

    def content() -> dict[str, Any]:
        return {"level": simulation.LEVEL, "spreads": learnt.to_dict(), "runs": [one.to_dict() for one in held]}

    return deliver(args, content, lambda: spreads.print_spreads(learnt, held))


COMMAND = Command(
    "spreads",
    "learn how far predictions are off, for the bands around them",
    ("", "--write --json spreads.json"),
    _add_arguments,
    run,
    needs="engine",
)
