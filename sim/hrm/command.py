"""`python -m sim roofline`: where attention and experts of a model stand on a machine, as numbers and as a picture."""

import argparse
import json
from typing import Any

from traces.cli import add_command, write_text, writing

SUMMARY = "place a model under a machine's roofs"
EXAMPLES = (
    "python -m sim roofline --plot roofline.png",
    "python -m sim roofline --hardware gcp-t4 --micro-batch-size 36 --json -",
)


def add_to(commands: Any) -> None:
    """Add the command to the others."""
    _add_arguments(add_command(commands, "roofline", SUMMARY, run, EXAMPLES))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hardware", default="gcp-l4", help="preset or .toml file (default: %(default)s)")
    parser.add_argument("--model", default="mixtral-8x7b", help="preset or config.json (default: %(default)s)")
    parser.add_argument(
        "--context", type=int, default=512, metavar="TOKENS", help="of attention (default: %(default)s)"
    )
    parser.add_argument(
        "--micro-batch-size", type=int, default=128, metavar="TOKENS", help="of the experts (default: %(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the picture: .png, .svg or .pdf")
    parser.add_argument(
        "--json", metavar="FILE", help="write the numbers as JSON; - is standard output, without a table"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, and write what was asked for. Raises InputError for anything the user gave wrong."""
    from sim.hrm.roofline import roofline_of
    from sim.problem import Hardware, Model

    result = roofline_of(Hardware.load(args.hardware), Model.load(args.model), args.context, args.micro_batch_size)
    if args.json:
        write_text(args.json, json.dumps(result.to_dict(), indent=2) + "\n")
    if args.json != "-":
        from sim.hrm.report import print_roofline

        print_roofline(result)
    if args.plot:
        from sim.hrm.picture import draw_roofline

        writing(args.plot, lambda: draw_roofline(result, args.plot))
    return 0
