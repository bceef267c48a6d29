"""`python -m traces`: what happened in a run, what made it as long as it was, and how two runs differ."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.cli.frame import OneLineParser, add_command, run_command
from traces.errors import InputError

if TYPE_CHECKING:
    from traces.analysis import CriticalPath
    from traces.trace import Trace

USUAL_TOP = 10
"""How many of the longest stretches and gaps of the critical path are shown."""

_SUMMARY_EXAMPLES = ("python -m traces summary run.json.gz", "python -m traces summary a.json b.json --json -")
_PATH_EXAMPLES = ("python -m traces critical-path run.json.gz --top 20",)
_DIFF_EXAMPLES = ("python -m traces diff measured.json.gz predicted.json.gz",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return run_command(_parser(), argv)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m traces",
        description="Read the trace of a run, simulated or real, or a PyTorch profile of the engine.",
        examples=(_SUMMARY_EXAMPLES[0], _DIFF_EXAMPLES[0]),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    summary = add_command(
        commands, "summary", "busy and idle time of each lane, and what it waited for", _summary, _SUMMARY_EXAMPLES
    )
    summary.add_argument("files", nargs="+", metavar="FILE", help="traces: .json or .json.gz")
    path = add_command(
        commands, "critical-path", "the chain of tasks that made the run as long as it was", _path, _PATH_EXAMPLES
    )
    path.add_argument("file", metavar="FILE", help="a trace: .json or .json.gz")
    path.add_argument(
        "--top", type=int, default=USUAL_TOP, metavar="N", help="show the N longest stretches and gaps (%(default)s)"
    )
    difference = add_command(commands, "diff", "two runs task by task, and where the time went", _diff, _DIFF_EXAMPLES)
    difference.add_argument("a", metavar="A", help="the run that is compared with")
    difference.add_argument("b", metavar="B", help="the run that is compared")
    for command in (summary, path, difference):
        command.add_argument(
            "--json", metavar="FILE", help="write results as JSON; - is standard output, without tables"
        )
    return parser


def _summary(args: argparse.Namespace) -> int:
    from traces.analysis import summarise
    from traces.cli.report import print_summary

    summaries = [(path, summarise(_read(path))) for path in args.files]
    _write_json(args.json, {"traces": [{"file": path} | summary.to_dict() for path, summary in summaries]})
    if args.json != "-":
        for path, summary in summaries:
            print_summary(path, summary)
    return 0


def _path(args: argparse.Namespace) -> int:
    from traces.cli.report import print_critical_path

    if args.top < 1:
        raise InputError(f"--top: {args.top} is not allowed; give a whole number of at least 1")
    trace = _read(args.file)
    path = _critical_path(args.file, trace)
    _write_json(args.json, {"file": args.file, "metadata": trace.metadata} | path.to_dict(args.top))
    if args.json != "-":
        print_critical_path(args.file, trace, path, args.top)
    return 0


def _diff(args: argparse.Namespace) -> int:
    from traces.analysis import diff_traces
    from traces.cli.report import print_diff

    a, b = _read(args.a), _read(args.b)
    found = diff_traces(a, b, _critical_path(args.a, a), _critical_path(args.b, b))
    _write_json(args.json, {"files": {"a": args.a, "b": args.b}} | found.to_dict())
    if args.json != "-":
        print_diff(args.a, args.b, found)
    return 0


def _read(path: str) -> "Trace":
    from traces.files import read_trace

    with _shown(f"reading {path}"):
        return read_trace(path)


def _critical_path(path: str, trace: "Trace") -> "CriticalPath":
    from traces.analysis import find_critical_path

    try:
        return find_critical_path(trace)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


@contextmanager
def _shown(what: str) -> Iterator[None]:
    """Say what takes time, while it does, if someone watches."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _write_json(path: str | None, results: dict[str, Any]) -> None:
    if path is None:
        return
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
