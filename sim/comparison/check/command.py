"""Is my speed normal? What was measured, by hand or by a benchmark of another program, beside what is predicted."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sim import simulation
from sim.comparison import check
from sim.problem import add_policy, add_problem, fixed_policy, problem_of, schedules_of
from traces.cli import Command, add_json, deliver, one_of, positive_int, progress
from traces.errors import InputError

if TYPE_CHECKING:
    from sim.comparison.check import Measurement

PHASES = ("decode", "prefill", "whole")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    files = "llama-bench -o json, vLLM's and SGLang's benchmark JSON, a trace of the engine; or plan --json"
    parser.add_argument("file", nargs="?", metavar="FILE", help=files)
    what = parser.add_argument_group("measured by hand")
    what.add_argument("--measured", type=float, metavar="TOKENS/S", help="of all requests together")
    phase = "decode (default), prefill, or whole: generated tokens over both"
    what.add_argument("--phase", type=one_of(*PHASES), metavar="WHICH", default=PHASES[0], help=phase)
    what.add_argument("--requests", type=positive_int, metavar="N", default=1, help="at once (default: 1)")
    add_problem(parser.add_argument_group("problem (a file says its own lengths)"))
    add_policy(parser.add_argument_group("policy (a file of llama-bench says its own)"))
    how = parser.add_argument_group("output")
    how.add_argument("--no-plan", action="store_true", help="leave out the best setting")
    add_json(how)


def _run(args: argparse.Namespace) -> int:
    problem = problem_of(args)
    named, policy = fixed_policy(args)
    measurements = _measurements(args)
    schedule = named or (_only_schedule(args) if args.schedules else "")
    simulation.compile_once()
    with progress("predicting"):
        found = check.check_measured(problem, measurements, schedule, policy, plans=not args.no_plan)
    return deliver(args, found.to_dict, lambda: check.print_check(found))


def _only_schedule(args: argparse.Namespace) -> str:
    names = schedules_of(args)
    if len(names) > 1:
        raise InputError(f"--schedules: one ran: give that alone, not {', '.join(names)}")
    return names[0]


def _measurements(args: argparse.Namespace) -> "list[Measurement]":
    if args.file is None and args.measured is None:
        raise InputError("nothing measured: give FILE, or --measured with tokens a second")
    if args.measured is None:
        return check.read_measurements(Path(args.file))
    given = check.Measurement(check.Speed(args.phase), args.measured, args.requests)
    if args.file is None:
        return [given]
    setting = check.read_run_setting(Path(args.file))
    return [replace(given, setting=setting, requests=setting.policy["batch_size"])]


COMMAND = Command(
    "check",
    "hold what you measured against what is predicted",
    (
        "bench.json --model gpt-oss-120b --hardware rtx3090",
        "--measured 31 --schedules n-cpu-moe --model gpt-oss-120b --hardware rtx3090 --prompt-len 512 --gen-len 128",
    ),
    _add_arguments,
    _run,
)
