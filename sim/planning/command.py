"""The best schedule and policy for a model on a machine, and why."""

import argparse
import time
from functools import partial

from sim import planning, simulation
from sim.problem import add_problem, problem_of, schedules_of
from traces.cli import Command, add_jobs, add_json, add_plot, deliver, one_of, positive_int, progress, write_json
from traces.errors import InputError

AT_LEAST = 2
"""Policies of each schedule that are simulated, so that there is a runner-up."""
OBJECTIVES = ("throughput", "latency", "memory")
OPTIMIZERS = ("simulator", "hrm")
OBJECTIVE_HELP = (
    "throughput (default); latency: shortest decode step, then throughput; memory: fewest bytes on the device that "
    "reach 95 %% of the best throughput"
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_problem(parser.add_argument_group("problem"))
    search = parser.add_argument_group("search")
    search.add_argument(
        "--objective", metavar="WHAT", type=one_of(*OBJECTIVES), default=OBJECTIVES[0], help=OBJECTIVE_HELP
    )
    which = "simulator (default), or hrm: the paper's"
    search.add_argument("--optimizer", metavar="WHICH", type=one_of(*OPTIMIZERS), default=OPTIMIZERS[0], help=which)
    exactly = "exactly so many requests, 1 for a chat; the rest is searched (default: as many as is best)"
    search.add_argument("--batch", metavar="REQUESTS", type=positive_int, help=exactly)
    search.add_argument(
        "--weight-bits", type=float, metavar="BITS", help="width of the experts' weights (default: the model's)"
    )
    search.add_argument("--kv-bits", type=float, metavar="BITS", help="width of the KV cache (default: 16)")
    add_jobs(search)
    how = parser.add_argument_group("output")
    how.add_argument("--out", metavar="FILE", help="write the policy for `--policy` of other commands")
    top = "best policies to show (default: %(default)s)"
    how.add_argument("--top", type=positive_int, metavar="N", default=10, help=top)
    add_json(how)
    add_plot(how, "throughput over μ and micro-batches")
    how.add_argument("--quick", action="store_true", help="leave out what more of each resource would give")


def run(args: argparse.Namespace) -> int:
    """Plan, write what was asked for, and print. Raises InputError for what the user gave wrong or nothing fits."""
    others = args.objective != OBJECTIVES[0] or args.schedules not in (None, "cgopipe") or args.batch is not None
    if args.optimizer == "hrm" and others:
        options = "--objective, --schedules and --batch"
        raise InputError(f"--optimizer hrm: it knows throughput and cgopipe only: leave out {options}")
    started = time.perf_counter()
    simulation.compile_once()
    with progress("planning") as shown:
        choice = _choose(args)
        prediction = simulation.predict(choice.best.setup)
        wall_s = time.perf_counter() - started
        shown.say("explaining")
        why = planning.explain(choice, prediction, jobs=args.jobs, replan=not args.quick)

    def draw(path: str) -> None:
        with progress("drawing"):
            planning.draw(choice, path, args.jobs)

    policy = {"schedule": choice.best.schedule, **choice.best.policy.to_dict()}
    files = (args.plot, draw), (args.out, lambda path: write_json(path, policy))
    everything = {**choice.to_dict(args.top), "wall_s": wall_s, "explanation": why.to_dict()}
    show = partial(planning.print_plan, choice, why, prediction, args.top, wall_s)
    return deliver(args, lambda: everything, show, *files)


def _choose(args: argparse.Namespace) -> "planning.Choice":
    problem = problem_of(args)
    if args.optimizer == "hrm":
        return planning.hrm_plan(problem)
    grid = planning.PolicyGrid(weight_bits=args.weight_bits, kv_bits=args.kv_bits)
    objective = planning.Objective(args.objective)
    asked = {"objective": objective, "jobs": args.jobs, "grid": grid, "at_least": AT_LEAST}
    return planning.plan(problem, schedules_of(args), num_requests=args.batch, **asked)


COMMAND = Command(
    "plan",
    "find the best schedule and policy, and say why",
    (
        "--model mixtral-8x7b --hardware gcp-t4 --gen-len 128 --out policy.json",
        "--model qwen3-30b-a3b --hardware rtx4090 --unpadded --objective latency",
        "--model gpt-oss-120b --hardware rtx4090 --batch 1",
        "--optimizer hrm --plot plan.png",
    ),
    _add_arguments,
    run,
)
