"""What all command lines of the project share: errors in one line, exit codes, and examples under every `--help`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from traces.errors import InputError

FORMATS = (".png", ".svg", ".pdf")
"""What pictures are drawn into."""

USAGE_ERROR = 2
INTERRUPTED = 130

Command = Callable[[argparse.Namespace], int]


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as all others of the project."""

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        if examples:
            options["epilog"] = "examples:\n" + "\n".join(f"  {line}" for line in examples)
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def add_command(commands: Any, name: str, summary: str, run: Command, examples: Sequence[str]) -> OneLineParser:
    """Add a command to a parser's subparsers."""
    text = summary[0].upper() + summary[1:] + "."
    command: OneLineParser = commands.add_parser(name, help=summary, description=text, examples=examples)
    command.set_defaults(command=run)
    return command


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, interrupted: str = "interrupted") -> int:
    """Parse and run one command; returns its exit code. What the user can mend is one line on standard error."""
    try:
        args = parser.parse_args(argv)
        command: Command = args.command
        return command(args)
    except InputError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        sys.stderr.write(f"error: {error}{notes}\n")
        return USAGE_ERROR
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def writing(path: str, write: Callable[[], object]) -> None:
    """Write something to a file. Raises InputError, which names it, if it cannot be written."""
    try:
        write()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def write_text(path: str, text: str) -> None:
    """Write a text to a file, or to standard output if its name is `-`. Raises InputError as `writing`."""
    if path == "-":
        sys.stdout.write(text)
    else:
        writing(path, lambda: Path(path).write_text(text, encoding="utf-8"))


def check_format(path: str) -> None:
    """Raise InputError, before any work is done, if the name of a picture has no suffix that can be drawn."""
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"--plot: {path!r} is not a picture; its name must end in {', '.join(FORMATS)}")
