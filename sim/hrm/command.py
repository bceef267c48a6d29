"""The roofs of a machine and where a model stands under them, as numbers and as a picture."""

import argparse

from sim import problem
from traces.cli import Command, add_json, add_plot, deliver, positive_int


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    problem.add_hardware(parser, "gcp-l4")
    parser.add_argument("--model", default="mixtral-8x7b", help="preset or config.json (default: %(default)s)")
    for flag, usual, what in (("--context", 512, "of attention"), ("--micro-batch-size", 128, "of the experts")):
        parser.add_argument(
            flag, type=positive_int, default=usual, metavar="TOKENS", help=f"{what} (default: %(default)s)"
        )
    add_plot(parser, "the picture")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Place a model under a machine's roofs."""
    from sim.hrm.picture import draw_roofline
    from sim.hrm.report import print_roofline
    from sim.hrm.roofline import roofline_of

    hardware, model = problem.hardware_asked(args), problem.Model.load(args.model)
    result = roofline_of(hardware, model, args.context, args.micro_batch_size)
    picture = (args.plot, lambda path: draw_roofline(result, path))
    return deliver(args, result.to_dict, lambda: print_roofline(result), picture)


COMMAND = Command(
    "roofline",
    "place a model under a machine's roofs",
    ("--plot roofline.png", "--hardware gcp-t4 --micro-batch-size 36 --json -"),
    _add_arguments,
    run,
)
