"""`python -m sim`: compare schedules, draw rooflines, list what is known."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sim.problem import add_problem, problem_of, schedules_of
from traces.cli import OneLineParser, add_command, run_command, write_text, writing
from traces.errors import InputError

if TYPE_CHECKING:
    from sim.comparison import Asked, Outcome

MEND = "Try smaller or fewer micro-batches, a shorter prompt-len or gen-len, or fewer weight_bits in a policy file"

_COMPARE_EXAMPLES = (
    "python -m sim compare --schedules cgopipe,flexgen --micro-batch-size 36 --num-micro-batches 14",
    "python -m sim compare --model qwen3-30b-a3b --hardware rtx4090 --unpadded --plot compare.png",
)
_LIST_EXAMPLES = ("python -m sim list", "python -m sim list gcp-t4")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return run_command(_parser(), argv)


def _parser() -> OneLineParser:
    from sim.hrm import command as roofline_command
    from sim.planning import command as plan_command
    from sim.sweep import command as sweep_command

    parser = OneLineParser(
        prog="python -m sim",
        description="Predict how an offloaded Mixture-of-Experts model runs, schedule by schedule.",
        examples=("python -m sim compare", "python -m sim list"),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_compare(add_command(commands, "compare", "simulate schedules side by side", _compare, _COMPARE_EXAMPLES))
    roofline_command.add_to(commands)
    plan_command.add_to(commands)
    sweep_command.add_to(commands)
    listing = add_command(commands, "list", "show every preset and schedule", _list, _LIST_EXAMPLES)
    listing.add_argument("hardware", nargs="?", help="show every number of this machine, with basis and source")
    return parser


def _add_compare(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("problem")
    add_problem(what)
    policy = parser.add_argument_group("policy (without one, each schedule gets its own best)")
    policy.add_argument("--micro-batch-size", type=int, metavar="REQUESTS", help="μ")
    policy.add_argument("--num-micro-batches", type=int, metavar="COUNT", help="n; the batch is μ × n")
    policy.add_argument("--policy", metavar="FILE", help="JSON fields; for one schedule only if it names it")
    how = parser.add_argument_group("output")
    how.add_argument("--baseline", metavar="SCHEDULE", help="show speed-ups against it too")
    how.add_argument("--json", metavar="FILE", help="write results as JSON; - is standard output, without a table")
    how.add_argument("--plot", metavar="FILE", help="draw throughput and one layer's timeline: .png, .svg or .pdf")
    how.add_argument(
        "--trace", metavar="DIR", help="write prefill and two decode steps per schedule (Perfetto opens it)"
    )
    how.add_argument("--exact", action="store_true", help="simulate every decode step instead of interpolating")
    how.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")


def _compare(args: argparse.Namespace) -> int:
    from sim.comparison import compare, input_hash, inputs
    from traces.cli import check_format

    for flag in ("micro_batch_size", "num_micro_batches", "jobs"):
        _at_least_one(f"--{flag.replace('_', '-')}", getattr(args, flag))
    if args.plot:
        check_format(args.plot)
    problem = problem_of(args)
    names, asked = schedules_of(args), _asked(args)
    if args.baseline and args.baseline not in names:
        raise InputError(f"--baseline: {args.baseline!r} is not among the schedules compared: {', '.join(names)}")
    outcomes = compare(problem, names, asked, args.jobs)
    everything = inputs(problem, names, asked)
    digest = input_hash(everything)
    if args.json:
        results = [one.to_dict() for one in outcomes]
        text = json.dumps({"inputs": everything, "input_hash": digest, "results": results}, indent=2) + "\n"
        write_text(args.json, text)
    if all(one.prediction is None for one in outcomes):
        reasons = dict.fromkeys(f"{one.schedule}: {one.reason}" for one in outcomes)
        raise InputError(f"nothing fits {problem.hardware.name}: {' | '.join(reasons)}. {MEND}")
    if args.json != "-":
        from sim.comparison import print_comparison

        print_comparison(problem, outcomes, args.baseline)
    if args.plot:
        from sim.comparison import draw

        writing(args.plot, lambda: draw(problem, outcomes, args.plot))
    if args.trace:
        writing(args.trace, lambda: _write_traces(outcomes, Path(args.trace), digest))
    return 0


def _at_least_one(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"{flag}: {value} is not allowed; give a whole number of at least 1")


def _asked(args: argparse.Namespace) -> "Asked":
    from sim.comparison import Asked
    from sim.problem import read_policy_file
    from sim.schedule import by_name

    policies = {}
    if args.policy:
        if args.micro_batch_size or args.num_micro_batches:
            raise InputError("--policy holds the sizes already: leave out --micro-batch-size and --num-micro-batches")
        schedule, table = read_policy_file(Path(args.policy))
        if schedule is not None:
            by_name(schedule)
        policies[schedule or ""] = table
    return Asked(policies, args.micro_batch_size, args.num_micro_batches, args.exact)


def _write_traces(outcomes: "Sequence[Outcome]", folder: Path, digest: str) -> None:
    from sim.comparison import project_version
    from sim.simulation import record
    from traces.files import write_trace

    folder.mkdir(parents=True, exist_ok=True)
    for one in outcomes:
        if one.setup is not None and one.prediction is not None:
            metadata = {"input_hash": digest, "versions": {"cgopipe": project_version()}}
            write_trace(record(one.setup, metadata), folder / f"{one.schedule}.json.gz")


def _list(args: argparse.Namespace) -> int:
    from sim.comparison import print_hardware, print_known

    if args.hardware:
        print_hardware(args.hardware)
    else:
        print_known()
    return 0
