"""What happened in a run, what made it as long as it was, and how two runs differ: three commands on traces."""

import argparse
from functools import partial

from traces import analysis, files
from traces.cli.bars import progress
from traces.cli.frame import Command, CommandLine
from traces.cli.options import add_json, add_plot, positive_int
from traces.cli.output import deliver
from traces.errors import InputError, error_prefix
from traces.trace import Trace


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="traces: .json or .json.gz")
    add_json(parser)
    add_plot(parser, "one trace's lanes, and what the machine draws meanwhile")


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a trace: .json or .json.gz")
    top = "show the N longest stretches and gaps (%(default)s)"
    parser.add_argument("--top", type=positive_int, default=10, metavar="N", help=top)
    add_json(parser)


def _add_pair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="the run that is compared with")
    parser.add_argument("b", metavar="B", help="the run that is compared")
    add_json(parser)


def _summary(args: argparse.Namespace) -> int:
    from traces.cli.report import print_summary

    if args.plot and len(args.files) > 1:
        raise InputError(f"--plot: draws one trace, {len(args.files)} are given")
    traces = {path: _read(path) for path in args.files}
    found = {path: analysis.summarise(trace) for path, trace in traces.items()}

    def show() -> None:
        for path, summary in found.items():
            print_summary(path, summary)

    def draw(picture: str) -> None:
        from traces.cli.pictures import draw_run

        draw_run(traces[args.files[0]], picture)

    content = {"traces": [{"file": path} | one.to_dict() for path, one in found.items()]}
    return deliver(args, lambda: content, show, (args.plot, draw))


def _path(args: argparse.Namespace) -> int:
    from traces.cli.report import print_critical_path

    trace = _read(args.file)
    path = _critical_path(args.file, trace)
    head = {"file": args.file, "metadata": trace.metadata}
    show = partial(print_critical_path, args.file, trace, path, args.top)
    return deliver(args, lambda: head | path.to_dict(args.top), show)


def _diff(args: argparse.Namespace) -> int:
    from traces.cli.report import print_diff

    a, b = _read(args.a), _read(args.b)
    found = analysis.diff_traces(a, b, _critical_path(args.a, a), _critical_path(args.b, b))
    head = {"files": {"a": args.a, "b": args.b}}
    return deliver(args, lambda: head | found.to_dict(), partial(print_diff, args.a, args.b, found))


def _read(path: str) -> Trace:
    with progress(f"reading {path}"):
        return files.read_trace(path)


def _critical_path(path: str, trace: Trace) -> "analysis.CriticalPath":
    with error_prefix(f"{path}: "):
        return analysis.find_critical_path(trace)


_WAITS = "busy and idle time of each lane, and what it waited for"
_CHAIN = "the chain of tasks that made the run as long as it was"
_WHERE = "two runs task by task, and where the time went"
SUMMARY = Command("summary", _WAITS, ("run.json.gz", "a.json b.json --json -"), _add_files, _summary)
CRITICAL_PATH = Command("critical-path", _CHAIN, ("run.json.gz --top 20",), _add_file, _path)
DIFF = Command("diff", _WHERE, ("measured.json.gz predicted.json.gz",), _add_pair, _diff)
PROGRAM = CommandLine(
    "python -m traces",
    "Read the trace of a run, simulated or real, or a PyTorch profile of the engine.",
    {
        "summary": "traces.cli.commands:SUMMARY",
        "critical-path": "traces.cli.commands:CRITICAL_PATH",
        "diff": "traces.cli.commands:DIFF",
    },
)
main = PROGRAM.main
