"""`python -m sim plan`: the best schedule and policy for a model on a machine, and why."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from sim.problem import add_problem, problem_of, schedules_of
from traces.cli import add_command, write_text, writing
from traces.errors import InputError

if TYPE_CHECKING:
    from sim.planning.planner import Choice
    from sim.planning.search import Candidate

SUMMARY = "find the best schedule and policy, and say why"
EXAMPLES = (
    "python -m sim plan --model mixtral-8x7b --hardware gcp-t4 --gen-len 128 --out policy.json",
    "python -m sim plan --model qwen3-30b-a3b --hardware rtx4090 --unpadded --objective latency",
    "python -m sim plan --optimizer hrm --plot plan.png",
)
AT_LEAST = 2
"""Policies of each schedule that are simulated, so that there is a runner-up."""
OBJECTIVES = ("throughput", "latency", "memory")
OPTIMIZERS = ("simulator", "hrm")
OBJECTIVE_HELP = (
    "throughput (default); latency: shortest decode step, then throughput; memory: fewest bytes on the device that "
    "reach 95 %% of the best throughput"
)


def add_to(commands: Any) -> None:
    """Add the command to the others."""
    _add_arguments(add_command(commands, "plan", SUMMARY, run, EXAMPLES))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_problem(parser.add_argument_group("problem"))
    search = parser.add_argument_group("search")
    search.add_argument("--objective", metavar="WHAT", default=OBJECTIVES[0], help=OBJECTIVE_HELP)
    search.add_argument(
        "--optimizer", metavar="WHICH", default=OPTIMIZERS[0], help="simulator (default), or hrm: the paper's"
    )
    search.add_argument(
        "--weight-bits", type=float, metavar="BITS", help="width of the experts' weights (default: the model's)"
    )
    search.add_argument("--kv-bits", type=float, metavar="BITS", help="width of the KV cache (default: 16)")
    search.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")
    how = parser.add_argument_group("output")
    how.add_argument("--out", metavar="FILE", help="write the policy for `compare --policy` and `engine run --policy`")
    how.add_argument("--top", type=int, metavar="N", default=10, help="best policies to show (default: %(default)s)")
    how.add_argument("--json", metavar="FILE", help="write the plan as JSON; - is standard output, without a table")
    how.add_argument("--plot", metavar="FILE", help="draw throughput over μ and micro-batches: .png, .svg or .pdf")
    how.add_argument("--quick", action="store_true", help="leave out what more of each resource would give")


def run(args: argparse.Namespace) -> int:
    """Plan, print, and write what was asked for. Raises InputError for what the user gave wrong or nothing fits."""
    from sim.planning.explanation import explain
    from sim.simulation import predict

    _check(args)
    started = time.perf_counter()
    choice = _choose(args)
    prediction = predict(choice.best.setup)
    wall_s = time.perf_counter() - started
    quiet = args.json == "-"
    if args.out:
        write_text(args.out, json.dumps(policy_file(choice.best), indent=2) + "\n")
    if not quiet:
        from sim.planning.report import print_plan

        print_plan(choice, prediction, args.top, wall_s)
    why = explain(choice, prediction, jobs=args.jobs, replan=not args.quick)
    if not quiet:
        from sim.planning.report import print_explanation

        print_explanation(choice, why)
    if args.json:
        everything = {**choice.to_dict(args.top), "wall_s": wall_s, "explanation": why.to_dict()}
        write_text(args.json, json.dumps(everything, indent=2) + "\n")
    if args.plot:
        from sim.planning.picture import draw

        writing(args.plot, lambda: draw(choice, args.plot, args.jobs))
    return 0


def _check(args: argparse.Namespace) -> None:
    from traces.cli import check_format

    for flag in ("top", "jobs", "gen_len", "prompt_len"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag.replace('_', '-')}: {value} is not allowed; give a whole number of at least 1")
    for flag, known in (("objective", OBJECTIVES), ("optimizer", OPTIMIZERS)):
        if getattr(args, flag) not in known:
            raise InputError(f"--{flag}: {getattr(args, flag)!r} is none of {', '.join(known)}")
    if args.optimizer == "hrm" and (args.objective != OBJECTIVES[0] or args.schedules not in (None, "cgopipe")):
        raise InputError("--optimizer hrm: it knows throughput and cgopipe only: leave out --objective and --schedules")
    if args.plot:
        check_format(args.plot)


def _choose(args: argparse.Namespace) -> "Choice":
    from sim.planning.grid import PolicyGrid
    from sim.planning.hrm import hrm_plan
    from sim.planning.planner import plan
    from sim.planning.search import Objective

    problem = problem_of(args)
    if args.optimizer == "hrm":
        return hrm_plan(problem)
    grid = PolicyGrid(weight_bits=args.weight_bits, kv_bits=args.kv_bits)
    objective = Objective(args.objective)
    return plan(problem, schedules_of(args), objective=objective, jobs=args.jobs, grid=grid, at_least=AT_LEAST)


def policy_file(best: "Candidate") -> dict[str, Any]:
    """What `--out` writes: the fields of the policy, and the schedule it is for."""
    return {"schedule": best.schedule, **best.setup.policy.to_dict()}
