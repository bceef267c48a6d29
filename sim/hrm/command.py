"""The roofs of a machine and where a model stands under them, as numbers and as a picture."""

import argparse
from typing import TYPE_CHECKING

from sim import problem
from traces.cli import TEXT, Command, Report, add_json, add_plot, deliver, positive_int

if TYPE_CHECKING:
    from sim.hrm.roofline import Roofline


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
    from sim.hrm.picture import draw_roofline
    from sim.hrm.roofline import roofline_of

    hardware, model = problem.Hardware.load(args.hardware), problem.Model.load(args.model)
    result = roofline_of(hardware, model, args.context, args.micro_batch_size)
    picture = (args.plot, lambda path: draw_roofline(result, path))
    return deliver(args, result.to_dict, lambda: _print(result), picture)


def _print(result: "Roofline") -> None:
    """Print a line for each point, then the peaks."""
    out, rates = Report(), {"CPU": ",.0f", "via link": ",.0f", "GPU": ",.0f"}
    columns = {"point": TEXT, "FLOP/B": ".4g", "tokens": ",", **rates, "best: bound": TEXT}
    title = f"{result.model} on {result.hardware}: GFLOP/s by place, context {result.context:,}"
    points = []
    for one in result.points:
        reached = (one.on_cpu_flops_per_s, one.over_link_flops_per_s, one.on_gpu_flops_per_s)
        points.append((one.name, one.intensity, one.tokens, *(rate / 1e9 for rate in reached), one.meaning))
    out.table(columns, points, f"{title}, micro-batch {result.micro_batch_size:,}")
    levels = (
        f"{one.name} {one.peak_flops_per_s / 1e12:g} TFLOP/s, {one.bandwidth_bytes_per_s / 1e9:g} GB/s"
        for one in result.machine.levels
    )
    out.say("; ".join((*levels, f"link {result.machine.links_bytes_per_s[0] / 1e9:g} GB/s")))


COMMAND = Command(
    "roofline",
    "place a model under a machine's roofs",
    ("--plot roofline.png", "--hardware gcp-t4 --micro-batch-size 36 --json -"),
    _add_arguments,
    run,
)
