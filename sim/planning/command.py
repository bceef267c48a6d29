"""The best schedule and policy for a model on a machine, and why."""

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from sim import admission, planning, simulation
from sim.problem import add_problem, add_weight_bits, problem_of, schedules_of
from traces.cli import (
    Command,
    Progress,
    add_html,
    add_jobs,
    add_json,
    add_plot,
    deliver,
    one_of,
    positive_int,
    progress,
    write_json,
    write_text,
)
from traces.errors import InputError

if TYPE_CHECKING:
    from sim.problem import Problem

AT_LEAST = 2
"""Policies of each schedule that are simulated, so that there is a runner-up."""
BESIDE_REQUESTS = 0.01
"""Relative gain below which another batch is not simulated where batch after batch is compared with mixed steps."""
OBJECTIVES = ("throughput", "latency", "memory", "energy")
OPTIMIZERS = ("simulator", "hrm")
EXPORTS = ("llama.cpp", "vllm", "sglang", "ktransformers")
OBJECTIVE_HELP = (
    "throughput (default); latency: shortest decode step, then throughput; memory: fewest bytes on the device that "
    "reach 95 %% of the best throughput; energy: fewest joules of the whole machine a generated token, then throughput"
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
    planning.add_power_cap(search)
    limit = "with the objective throughput: the fastest of those that use at most so many joules a generated token"
    search.add_argument("--max-joules-per-token", type=float, metavar="JOULES", help=limit)
    add_weight_bits(search)
    search.add_argument("--kv-bits", type=float, metavar="BITS", help="width of the KV cache (default: 16)")
    add_jobs(search)
    admission.add_stream(parser.add_argument_group("requests (without a number or a file, one batch)"))
    how = parser.add_argument_group("output")
    how.add_argument("--out", metavar="FILE", help="write the policy for `--policy` of other commands")
    top = "best policies to show (default: %(default)s)"
    how.add_argument("--top", type=positive_int, metavar="N", default=10, help=top)
    into = "print the command line of a program, and what it cannot do: {}".format(", ".join(EXPORTS))
    how.add_argument("--export", metavar="PROGRAM", type=one_of(*EXPORTS), help=into)
    add_json(how)
    add_plot(how, "throughput over μ and micro-batches")
    add_plot(how, "tokens/s against J/token, and the front of it", "--plot-energy")
    planning.add_prices(how)
    add_html(how, "the plan, timelines and what other machines would give")
    how.add_argument("--no-band", action="store_true", help="leave out how far the speeds may be off")
    how.add_argument("--quick", action="store_true", help="leave out what more of each resource would give")


def run(args: argparse.Namespace) -> int:
    """Plan, write what was asked for, and print. Raises InputError for what the user gave wrong or nothing fits."""
    prices = planning.Prices.of(args)
    _check_alone(args)
    options = admission.stream_options(args)
    _check_beside_requests(args, options)
    started = time.perf_counter()
    simulation.compile_once()
    if options is not None:
        return _plan_requests(args, options, prices, started)
    with progress("planning") as shown:
        problem = problem_of(args)
        prices.check(problem.hardware)
        choose = partial(_choose, args, most_requests=None)
        found = planning.plan_under_caps(problem, args.power_cap or (), choose, with_front=_asks_front(args))
        choice = found.choice
        prediction = simulation.predict(choice.best.setup)
        wall_s = time.perf_counter() - started
        bands = _bands(args, choice, shown)
        shown.say("explaining")
        why = planning.explain(choice, prediction, jobs=args.jobs, replan=not args.quick)
        exported = None
        if args.export:
            shown.say(f"looking for what {args.export} can do")
            exported = planning.export_plan(choice, args.export, planning.checkpoint_of(args.model))
    everything = {**choice.to_dict(args.top), "wall_s": wall_s, "explanation": why.to_dict()}
    found.add_to(everything, prices)
    if bands:
        told = {name: one.to_dict() for name, one in bands.items()}
        everything |= {"bands": told, "stays_best": simulation.stays_best(bands)}
    if exported:
        everything["export"] = exported.to_dict()

    def show() -> None:
        planning.print_plan(choice, why, prediction, args.top, wall_s, bands)
        planning.print_speed_and_energy(found, prices, args.top)
        if exported:
            planning.print_exported(exported)

    def write_page(path: str) -> None:
        with progress("asking what if", unit="steps", lines=True) as shown:
            page = planning.plan_page(choice, why, exported, top=args.top, jobs=args.jobs, done=shown.at)
        write_text(path, page)

    def draw_energy(path: str) -> None:
        if found.front:
            planning.draw_front(found.front, path)

    files = (*_files(args, choice, choice.best), (args.plot_energy, draw_energy), (args.html, write_page))
    return deliver(args, lambda: everything, show, *files)


def _asks_front(args: argparse.Namespace) -> bool:
    """Whether speed is weighed against energy."""
    given = (args.power_cap, args.max_joules_per_token, args.plot_energy)
    return args.objective == "energy" or any(one is not None for one in given)


def _check_alone(args: argparse.Namespace) -> None:
    """Raise InputError for a limit that is none, and for options that do not go together."""
    others = args.objective != OBJECTIVES[0] or args.schedules not in (None, "cgopipe") or args.batch is not None
    if args.optimizer == "hrm" and (others or _asks_front(args)):
        more = "--objective, --schedules and --batch" if others else "what asks for energy"
        raise InputError(f"--optimizer hrm: it knows throughput and cgopipe only: leave out {more}")
    if args.max_joules_per_token is None:
        return
    if not 0 < args.max_joules_per_token < float("inf"):
        raise InputError(f"--max-joules-per-token: {args.max_joules_per_token:g} is not allowed; give joules above 0")
    if args.objective != OBJECTIVES[0]:
        raise InputError(f"--max-joules-per-token: limits throughput, not {args.objective}: leave out one of them")


def _bands(args: argparse.Namespace, choice: "planning.Choice", shown: Progress) -> "dict[str, simulation.Band]":
    """Of each schedule's best policy, by schedule."""
    if args.no_band:
        return {}
    shown.say("drawing machines")
    setups = [plan.best.setup for plan in choice.plans.values()]
    return dict(zip(choice.plans, simulation.bands_of(setups, jobs=args.jobs), strict=True))


def _plan_requests(
    args: argparse.Namespace, options: "admission.StreamOptions", prices: "planning.Prices", started: float
) -> int:
    """The same for a stream of requests. The picture is of one batch, of which each schedule's best is a way, too."""
    with progress("planning"):
        problem, stream = options.stream_of(problem_of(args), args.gen_len)
        prices.check(problem.hardware)
        batches = _choose(args, problem, len(stream.requests))
        choice = _choose_for(args, options, stream, batches)
    wall_s = time.perf_counter() - started
    everything = {**choice.to_dict(args.top), "wall_s": wall_s}
    prices.add_to(everything, [everything, *everything["ways"]], stream.generated_tokens / len(stream.requests))

    def show() -> None:
        planning.print_stream_plan(choice, args.top, wall_s)
        if prices.given:
            planning.print_money((f"{one['schedule']}, {one['prompts']}", one) for one in everything["ways"])

    return deliver(args, lambda: everything, show, *_files(args, batches, choice.best))


def _files(args: argparse.Namespace, choice: "planning.Choice", best: "planning.Candidate | planning.Way") -> list[Any]:
    """The files that are asked for, each with what writes it."""
    policy = {"schedule": best.schedule, **best.policy.to_dict()}

    def draw(path: str) -> None:
        with progress("drawing"):
            planning.draw(choice, path, args.jobs)

    return [(args.plot, draw), (args.out, lambda path: write_json(path, policy))]


def _check_beside_requests(args: argparse.Namespace, options: "admission.StreamOptions | None") -> None:
    """Raise InputError for what says nothing of a stream of requests."""
    if options is None:
        return
    given = {
        "--objective": args.objective != OBJECTIVES[0],
        "--optimizer": args.optimizer != OPTIMIZERS[0],
        "--batch": args.batch is not None,
        "--power-cap": args.power_cap is not None,
        "--max-joules-per-token": args.max_joules_per_token is not None,
        "--plot-energy": args.plot_energy is not None,
        "--ttft": args.ttft is not None,
        "--tpot": args.tpot is not None,
        "--export": args.export is not None,
        "--html": args.html is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise InputError(f"{option}: with --requests the most tokens a second of all are searched: leave it out")
    options.check_prompt_len(args.prompt_len)
    options.check_schedules(schedules_of(args))


def _choose_for(
    args: argparse.Namespace,
    options: "admission.StreamOptions",
    stream: "admission.RequestStream",
    choice: "planning.Choice",
) -> "planning.StreamChoice":
    """How these requests are served best; `choice` has each schedule's best policy for one batch."""
    more = {"weight_bits": args.weight_bits, "kv_bits": args.kv_bits, "jobs": args.jobs}
    return planning.plan_stream(choice.problem, stream, schedules_of(args), choice, options.service, **more)


def _choose(args: argparse.Namespace, problem: "Problem", most_requests: int | None) -> "planning.Choice":
    if args.optimizer == "hrm":
        return planning.hrm_plan(problem)
    grid = planning.PolicyGrid(weight_bits=args.weight_bits, kv_bits=args.kv_bits, most_requests=most_requests)
    objective = planning.Objective(args.objective)
    asked: dict[str, Any] = {"objective": objective, "jobs": args.jobs, "grid": grid, "at_least": AT_LEAST}
    asked |= {"most_joules": args.max_joules_per_token, "along_front": _asks_front(args)}
    if most_requests is not None:
        asked |= {"tolerance": BESIDE_REQUESTS, "at_least": 1}
    return planning.plan(problem, schedules_of(args), num_requests=args.batch, **asked)


COMMAND = Command(
    "plan",
    "find the best schedule and policy, and say why",
    (
        "--model mixtral-8x7b --hardware gcp-t4 --gen-len 128 --out policy.json",
        "--model qwen3-30b-a3b --hardware rtx4090 --unpadded --objective latency",
        "--model gpt-oss-120b --hardware rtx4090 --batch 1",
        "--requests 6700",
        "--objective energy --plot-energy front.png",
        "--hardware rtx4090 --power-cap 250,350,450 --price-per-hour 0.4 --price-per-kwh 0.3",
        "--optimizer hrm --plot plan.png",
    ),
    _add_arguments,
    run,
)
