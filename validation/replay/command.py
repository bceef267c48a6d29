"""`python -m validation replay`: a trace against its schedule and against the cost model."""

import argparse
import json

from traces.cli import write_text, writing
from traces.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("trace", help="of a run of the engine, or of a simulated one (.json, .json.gz)")
    parser.add_argument("--hardware", metavar="FILE", help="the machine it ran on: a calibrated .toml, or a preset")
    parser.add_argument("--plot", metavar="FILE", help="draw measured above predicted: .png, .svg or .pdf")
    parser.add_argument("--json", metavar="FILE", help="write all numbers; - is standard output, without tables")


def run(args: argparse.Namespace) -> int:
    """Replay one trace and show how far off each layer is."""
    from sim.problem import Hardware
    from traces.cli import check_format
    from traces.files import read_trace
    from validation.replay.checks import replay_trace

    if args.plot:
        check_format(args.plot)
    hardware = Hardware.load(args.hardware) if args.hardware else None
    trace = read_trace(args.trace)
    try:
        result = replay_trace(trace, hardware)
    except InputError as error:
        raise InputError(f"{args.trace}: {error}") from None
    if args.json:
        write_text(args.json, json.dumps(result.to_dict(), indent=2) + "\n")
    if args.json != "-":
        from validation.replay.report import print_replay

        print_replay(result)
    if args.plot:
        from validation.replay.picture import draw

        writing(args.plot, lambda: draw(result, args.plot))
    return 0
