"""`cgopipe`: the commands of all packages under one name, and completion of them in a shell."""

import argparse
import sys

from engine import cli as engine
from sim import cli as sim
from traces import cli as traces
from traces.cli import Command, CommandLine
from validation import cli as validation

COMPLETED = {"FILE": "FILE", "DIR": "DIRECTORY"}
"""What shtab completes where the value of an option is called so."""


def _add_shell(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="for which the script is")


def _complete(args: argparse.Namespace) -> int:
    import shtab

    def mark_files(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    mark_files(command)
            elif action.metavar in COMPLETED:
                action.complete = getattr(shtab, COMPLETED[str(action.metavar)])  # type: ignore[attr-defined]

    parser = PROGRAM.parser()
    mark_files(parser)
    sys.stdout.write(shtab.complete(parser, args.shell) + "\n")
    return 0


COMPLETION = Command(
    "completion",
    "write a script that completes commands and options in a shell",
    ("bash > ~/.local/share/bash-completion/completions/cgopipe", "zsh > ~/.zfunc/_cgopipe"),
    _add_shell,
    _complete,
)

PROGRAM = CommandLine(
    "cgopipe",
    "Predict, explain, run and prove the throughput of offloaded Mixture-of-Experts inference.",
    {
        **sim.PROGRAM.commands,
        **engine.PROGRAM.commands,
        **validation.PROGRAM.commands,
        "trace": traces.PROGRAM,
        "completion": "validation.console:COMPLETION",
    },
)
main = PROGRAM.main
