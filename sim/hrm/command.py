"""The roofs of a machine and where a model stands under them, as numbers and as a picture."""

import argparse

from sim import problem
from traces.cli import Command, add_json, add_plot, deliver, positive_int


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hardware", default="gcp-l4", help="preset or .toml file (default: %(default)s)")
    parser.add_argument("--model", default="mixtral-8x7b", help="preset or config.json (default: %(default)s)")
    for flag, usual, what in (("--context", 512, "of attention"), ("--micro-batch-size", 128, "of the experts")):
        parser.add_argument(
            flag, type=positive_int, default=usual, metavar="TOKENS", help=f"{what} (default: %(default)s)"
        )
    add_plot(parser, "the picture")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Place a model under a machine's roofs."""
    from sim.hrm.estimate import dims_of
    from sim.hrm.roofline import print_table, roofline
    from sim.hrm.roofline_picture import draw

    hardware, model = problem.Hardware.load(args.hardware), problem.Model.load(args.model)
    result = roofline(hardware, model.name, dims_of(model), args.context, args.micro_batch_size)
    return deliver(args, result.to_dict, lambda: print_table(result), (args.plot, lambda path: draw(result, path)))


COMMAND = Command(
    "roofline",
    "place a model under a machine's roofs",
    ("--plot roofline.png", "--hardware gcp-t4 --micro-batch-size 36 --json -"),
    _add_arguments,
    run,
)
