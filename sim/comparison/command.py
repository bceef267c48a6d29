"""Two commands: schedules side by side, and what is known."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim import admission, comparison, planning, schedule as schedules, simulation
from sim.problem import (
    Hardware,
    add_policy,
    add_problem,
    add_settings,
    add_weight_bits,
    fixed_policy,
    problem_of,
    schedules_of,
)
from traces import files
from traces.cli import (
    Command,
    add_html,
    add_jobs,
    add_json,
    add_plot,
    deliver,
    make_folder,
    progress,
    project_version,
    write_json,
    write_text,
)
from traces.errors import InputError, shown

if TYPE_CHECKING:
    from sim.problem import Problem

MEND = "Try smaller or fewer micro-batches, a shorter prompt-len or gen-len, or narrower --weight-bits"


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add_problem(parser.add_argument_group("problem"))
    policy = parser.add_argument_group("policy (without one, each schedule gets its own best)")
    add_policy(policy)
    add_weight_bits(policy)
    admission.add_stream(parser.add_argument_group("requests (without a number or a file, one batch)"))
    how = parser.add_argument_group("output")
    how.add_argument("--baseline", metavar="SCHEDULE", help="show speed-ups against it too")
    add_json(how)
    add_plot(how, "throughput and one layer's timeline")
    add_html(how, "tables, timelines and memories")
    how.add_argument(
        "--trace",
        metavar="DIR",
        help="write prefill and two decode steps per schedule; of requests beside decode the first 24 steps (Perfetto)",
    )
    planning.add_prices(how)
    how.add_argument("--no-band", action="store_true", help="leave out how far the speeds may be off")
    how.add_argument("--exact", action="store_true", help="simulate every decode step instead of interpolating")
    add_jobs(how)


def _compare(args: argparse.Namespace) -> int:
    options = admission.stream_options(args)
    prices = planning.Prices.of(args)
    problem = problem_of(args)
    prices.check(problem.hardware)
    names, asked = schedules_of(args), _asked(args)
    if args.baseline and args.baseline not in names:
        raise InputError(f"--baseline: {shown(args.baseline)} is not among the schedules compared: {', '.join(names)}")
    if options is not None:
        return _compare_served(args, options, prices, problem, names, asked)
    if not (args.no_band and (args.policy or (args.micro_batch_size and args.num_micro_batches))):
        simulation.compile_once()
    with progress("planning and simulating") as bar:
        outcomes = comparison.compare(problem, names, asked, args.jobs)
        bar.say("drawing machines")
        bands = {} if args.no_band else outcomes.bands(args.jobs)
    content = outcomes.to_dict()
    prices.add_to(content, content["results"], problem.workload.gen_len)
    if bands:
        content["bands"] = {name: one.to_dict() for name, one in bands.items()}
    _check_any(args, content, lambda: outcomes.best)
    if args.trace:
        make_folder(args.trace)

    def show() -> None:
        comparison.print_comparison(problem, outcomes, args.baseline, bands)
        _print_money(content)

    return deliver(
        args,
        lambda: content,
        show,
        (args.plot, lambda path: comparison.draw(problem, outcomes, path, bands)),
        (args.html, lambda path: write_text(path, comparison.comparison_page(problem, outcomes))),
        (args.trace, lambda folder: _write_traces(outcomes, Path(folder), content["input_hash"])),
    )


def _compare_served(
    args: argparse.Namespace,
    options: "admission.StreamOptions",
    prices: "planning.Prices",
    problem: "Problem",
    names: list[str],
    asked: "comparison.Asked",
) -> int:
    if args.html:
        raise InputError("--html: a page is of one batch: leave out --requests, or --html")
    options.check_prompt_len(args.prompt_len)
    options.check_schedules(names)
    problem, stream = options.stream_of(problem, args.gen_len)
    simulation.compile_once()
    with progress("planning and simulating"):
        found = comparison.compare_served(problem, stream, options.service, names, asked, args.jobs)
    content = found.to_dict()
    prices.add_to(content, content["results"], stream.generated_tokens / len(stream.requests))
    _check_any(args, content, lambda: found.best)

    def show() -> None:
        comparison.print_served(found, args.baseline)
        _print_money(content)

    return deliver(
        args,
        lambda: content,
        show,
        (args.plot, lambda path: comparison.draw_served(found, path)),
        (args.trace, lambda folder: _write_served_traces(found, Path(folder), content["input_hash"])),
    )


def _print_money(content: Mapping[str, Any]) -> None:
    """What tokens cost, if there are prices; of requests in either place of prompts."""
    fitting = [one for one in content["results"] if one["feasible"]]
    if "prices" in content:
        planning.print_money((", ".join(filter(None, (one["schedule"], one.get("prompts")))), one) for one in fitting)


def _check_any(args: argparse.Namespace, content: Mapping[str, Any], best: Callable[[], object]) -> None:
    """Raise InputError, behind the JSON, if nothing of what was compared fits."""
    try:
        best()
    except InputError as nothing_fits:
        if args.json:
            write_json(args.json, content)
        raise InputError(f"{nothing_fits}. {MEND}") from None


def _asked(args: argparse.Namespace) -> "comparison.Asked":
    schedule, fields = fixed_policy(args)
    if schedule is not None:
        schedules.by_name(schedule)
    if args.attention_on_device is not None and None in (args.micro_batch_size, args.num_micro_batches):
        raise InputError("--attention-on-device: give --micro-batch-size and --num-micro-batches too")
    if args.policy and args.weight_bits is not None:
        raise InputError("--policy holds the widths of weights already: leave out --weight-bits")
    if args.attention_on_device is not None and args.weight_bits is not None:
        fields |= {"weight_bits": args.weight_bits}
    policies = {schedule or "": fields} if args.policy or args.attention_on_device is not None else {}
    return comparison.Asked(policies, args.micro_batch_size, args.num_micro_batches, args.exact, args.weight_bits)


def _write_traces(outcomes: "comparison.Comparison", folder: Path, digest: str) -> None:
    metadata = {"input_hash": digest, "versions": {"cgopipe": project_version()}}
    for one in outcomes:
        if one.prediction is not None:
            files.write_trace(simulation.record(one.prediction.setup, metadata), folder / f"{one.schedule}.json.gz")


def _write_served_traces(found: "comparison.ServedComparison", folder: Path, digest: str) -> None:
    """A file for each schedule and place of prompts: of a stream its first steps, else of a batch as without one."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"input_hash": digest, "versions": {"cgopipe": project_version()}}
    for one in found:
        if one.setup is None or one.result is None:
            continue
        if isinstance(one.setup, simulation.StreamSetup):
            rules = one.setup.rules(one.service.priority, preempts=one.service.preempts)
            trace = simulation.record_stream(one.setup, found.stream, rules, metadata)
            kept = len(trace.metadata[simulation.RECORD]["steps"])
            sys.stderr.write(f"{one.schedule}: the trace has {kept:,} of {one.result.num_steps:,} steps\n")
        else:
            trace = simulation.record(one.setup, metadata)
        files.write_trace(trace, folder / f"{one.schedule}-{one.prompts.value}.json.gz")


COMMAND = Command(
    "compare",
    "simulate schedules side by side",
    (
        "--schedules cgopipe,flexgen --micro-batch-size 36 --num-micro-batches 14",
        "--model qwen3-30b-a3b --hardware rtx4090 --unpadded --plot compare.png",
    ),
    _add_compare,
    _compare,
)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hardware", nargs="?", help="show every number of this machine, with basis and source")
    add_settings(parser)
    add_json(parser)


def _list(args: argparse.Namespace) -> int:
    if args.hardware is None:
        if args.settings:
            raise InputError("--set: sets a number of a machine: name it, as in list rtx4090 --set pinned=8GB")
        return deliver(args, comparison.known, comparison.print_known)
    machine = Hardware.load(args.hardware, args.settings)
    return deliver(args, lambda: comparison.numbers(machine), lambda: comparison.print_hardware(machine))


LISTING = Command("list", "show every preset and schedule", ("", "gcp-t4"), _add_machine, _list)
