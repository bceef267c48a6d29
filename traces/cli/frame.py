"""What all command lines of the project share: one shape of a command, errors in one line, exit codes, and `--help`."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any, NoReturn

from traces.cli.output import leave_output, prepare_output, shortened
from traces.errors import InputError

USAGE_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it is called, what it takes and what it does."""

    name: str
    summary: str  # what it does, in a phrase: 'simulate schedules side by side'
    examples: tuple[str, ...]  # arguments that a user may give: '--schedules cgopipe --plot compare.png'
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]  # does it, and returns the exit code; it imports what is heavy
    needs: str = ""  # the optional dependencies without which it does not work: 'engine'
    interrupted: str = "interrupted"  # what a user reads after Ctrl-C

    def __call__(self, args: argparse.Namespace) -> int:
        try:
            return self.run(args)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.interrupted) from None
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not self.needs or not missing or find_spec(missing) is not None:
                raise
            mend = f"pip install 'cgopipe[{self.needs}]'"
            raise InputError(f"{self.name}: needs {missing}, which is not installed: {mend}") from None


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Commands under one name. It starts fast: only the command that is asked for is imported."""

    prog: str
    summary: str
    commands: "Mapping[str, str | CommandLine]"  # where each is, 'sim.sweep.command:COMMAND', or those of a second name

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run one command; returns its exit code."""
        given = sys.argv[1:] if argv is None else argv
        return run_command(lambda: self.parser(given), given)

    def parser(self, argv: Sequence[str] = ()) -> "OneLineParser":
        """The parser of all commands, or of the one alone with which the arguments begin."""
        parser = OneLineParser(prog=self.prog, description=self.summary)
        parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
        self._fill(parser, argv)
        return parser

    def _fill(self, parser: "OneLineParser", argv: Sequence[str]) -> None:
        group = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
        for name in argv[:1] if argv and argv[0] in self.commands else self.commands:
            place = self.commands[name]
            if isinstance(place, CommandLine):
                text = place.summary
                place._fill(group.add_parser(name, help=text[0].lower() + text[1:-1], description=text), argv[1:])
                continue
            found: Command = resolve_name(place)
            text = found.summary[0].upper() + found.summary[1:] + "."
            command = group.add_parser(name, help=found.summary, description=text, examples=found.examples)
            found.add_arguments(command)
            command.set_defaults(command=found)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as all others of the project."""

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        if examples:  # arguments; the program's name goes before them
            self.epilog = "examples:\n" + "\n".join(f"  {self.prog} {one}".rstrip() for one in examples)
            self.formatter_class = argparse.RawDescriptionHelpFormatter

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        sys.stdout.write(f"cgopipe {project_version()}\n")
        parser.exit()


def project_version() -> str:
    """The version of this project, as in '0.1.0'."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cgopipe")
    except PackageNotFoundError:
        return "not installed"


def run_command(parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    """Parse and run one command; returns its exit code. What the user can mend is one line on standard error.

    The parser is made here, since that imports the command: Ctrl-C may come then, too.
    """
    os.environ["MPLBACKEND"] = "agg"  # commands draw into files; a name that matplotlib does not know would stop them
    with suppress(OSError), _ended_as_by_ctrl_c():
        try:
            prepare_output()
            args = parser().parse_args(argv)
            command: Callable[[argparse.Namespace], int] = args.command
            code = command(args)
            sys.stdout.flush()
            return code
        except InputError as error:
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            sys.stderr.write(f"error: {shortened(f'{error}{notes}')}\n")
        except KeyboardInterrupt as error:
            sys.stderr.write(f"{str(error) or 'interrupted'}\n")
            return INTERRUPTED
        except (BrokenPipeError, SystemExit) as error:  # rich ends the program where a pipe is broken
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise
            leave_output()  # its reader has seen enough
            return 0
        except OSError as error:
            leave_output()
            what = error.filename or "standard output"
            sys.stderr.write(f"error: {shortened(f'{what}: {error.strerror or error}')}\n")
        except (MemoryError, RecursionError) as error:
            what = "memory is too small" if isinstance(error, MemoryError) else "it is nested too deeply"
            sys.stderr.write(f"error: {what} for what was asked: give less\n")
    return USAGE_ERROR


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let a request to end (SIGTERM) be what Ctrl-C is, so that what was begun is put in order."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
