"""A trace against its schedule and against the cost model."""

import argparse

from sim import problem
from traces import files
from traces.cli import Command, add_json, add_plot, deliver, progress
from traces.errors import InputError, error_prefix
from validation import replay


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="FILE", help="a run of the engine, or a simulated one (.json, .json.gz)")
    problem.add_hardware(parser, None)
    add_plot(parser, "measured above predicted")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Replay one trace and show how far off each layer is."""
    if args.settings and not args.hardware:
        raise InputError("--set: sets a number of a machine; give --hardware too")
    hardware = problem.hardware_asked(args) if args.hardware else None
    with progress("replaying"):
        trace = files.read_trace(args.trace)
        with error_prefix(f"{args.trace}: "):
            result = replay.replay_trace(trace, hardware)
    picture = args.plot, lambda path: replay.draw(result, path)
    return deliver(args, result.to_dict, lambda: replay.print_replay(result), picture)


COMMAND = Command(
    "replay",
    "replay a trace: its durations through its schedule, then the cost model's",
    ("run.json.gz", "run.json.gz --hardware machine.toml --plot replay.png"),
    _add_arguments,
    run,
)
