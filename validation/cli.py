"""`python -m validation`: how far predictions are off, on this machine and on published ones."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from traces.cli import OneLineParser, add_command, run_command


class _Entry(NamedTuple):
    """One command: its module has `add_arguments(parser)` and `run(args)`, which imports what is heavy."""

    name: str
    summary: str
    module: str
    examples: tuple[str, ...]


COMMANDS = (
    _Entry(
        "campaign",
        "calibrate this machine, run the engine over a grid, predict every run, report the errors",
        "validation.campaign.command",
        (
            "python -m validation campaign --out campaign",
            "python -m validation campaign --out campaign --report-only",
        ),
    ),
    _Entry(
        "published",
        "predict published runs of other systems, and fit the machines they ran on",
        "validation.published.command",
        (
            "python -m validation published",
            "python -m validation published --fit",
            "python -m validation published --predict runs.csv --json -",
        ),
    ),
    _Entry(
        "replay",
        "replay a trace: its durations through its schedule, then the cost model's",
        "validation.replay.command",
        (
            "python -m validation replay run.json.gz",
            "python -m validation replay run.json.gz --hardware machine.toml --plot replay.png",
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return run_command(_parser(), argv, "interrupted: what was done is kept; the same command goes on with the rest")


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m validation",
        description="Say how far predictions are off, on this machine and on published ones.",
        examples=tuple(entry.examples[0] for entry in COMMANDS),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for entry in COMMANDS:
        module = import_module(entry.module)
        run: Callable[..., int] = module.run
        module.add_arguments(add_command(commands, entry.name, entry.summary, run, entry.examples))
    return parser
