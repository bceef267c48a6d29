"""A file of requests run on a device, by a policy that is given or planned."""

import argparse
import contextlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import device as devices, generation, memory
from engine.device import add_device, device_asked
from engine.generation import DevicesTogether, add_devices, add_model, devices_together, model_asked, model_of
from engine.running.choosing import generate_kwargs, given_policy, planned_policy
from sim import problem, schedule as schedules
from sim.problem import add_policy, add_routing, add_weight_bits
from traces import files
from traces.cli import Command, positive_int, progress
from traces.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.running.choosing import AnyDevice
    from engine.running.planning import RunPlan
    from traces.trace import Trace

ALL_FAILED = 1
"""The exit code of a run in which no request had a result."""

TRACED_STEPS = 64
"""Of a stream, in the trace that it writes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    paths = parser.add_argument_group("files")
    add_model(paths)
    paths.add_argument("--input", required=True, type=Path, metavar="FILE", help="requests, one JSON object a line")
    paths.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="results, in the order and format of the input"
    )
    paths.add_argument("--resume", action="store_true", help="go on with an output file that an earlier run began")
    first = f"write the trace of the first batch, or of the first {TRACED_STEPS} steps of a stream (.json or .json.gz)"
    paths.add_argument("--trace", type=Path, metavar="FILE", help=first)
    streamed = "let requests enter as others end; results as they come, each with the number of its line"
    paths.add_argument("--stream", action="store_true", help=streamed)
    counts = "write how many tokens used each expert, for --routing"
    paths.add_argument("--record-routing", type=Path, metavar="FILE", help=counts)
    joules = "measure the joules of the run, where device and host have counters"
    paths.add_argument("--energy", action="store_true", help=joules)
    policy = parser.add_argument_group("policy (without one, this machine is measured and the best is planned)")
    policy.add_argument("--schedule", default="cgopipe", help="(default: %(default)s)")
    add_policy(policy)
    add_routing(policy)
    add_weight_bits(policy, "width of routed experts: 4.5 or 8.5 (default: the model's own)")
    policy.add_argument("--plan-for", metavar="HARDWARE", help="plan the policy for this machine (a preset or a .toml)")
    problem.add_settings(policy)
    device = parser.add_argument_group("device")
    add_device(device)
    add_devices(device)
    options = parser.add_argument_group("generation")
    options.add_argument("--max-new-tokens", type=positive_int, default=64, help="(default: %(default)s)")
    options.add_argument("--temperature", type=float, help="sample; without sampling options the choice is greedy")
    options.add_argument("--top-p", type=float)
    options.add_argument("--top-k", type=int)
    options.add_argument("--repetition-penalty", type=float)
    options.add_argument(
        "--seed", type=int, help="of the first request; the i-th after it takes seed + i, one that has a seed its own"
    )


def run(args: argparse.Namespace) -> int:
    """Generate for every request of a file; results are appended as each batch ends, or as each request does."""
    with devices_together(args) as together:
        return 0 if together is None else _run(args, together)


def _run(args: argparse.Namespace, together: DevicesTogether) -> int:
    schedule = schedules.by_name(args.schedule)
    policy = given_policy(args, schedule)
    if args.settings and not args.plan_for:
        raise InputError("--set: sets a number of a machine; give the machine as --plan-for")
    problem.Routing.parse(args.routing)  # a mistake in it is told before a model is loaded
    _check_places(args)
    if args.stream and args.record_routing:
        raise InputError("--record-routing is for batches: leave it out with --stream")
    if args.stream and not schedule.system.mixes:
        raise InputError(f"{schedule.name}: its steps cannot carry prompts beside decode; take cgopipe or hybrid")
    if args.stream and together.count > 1:
        raise InputError(f"--stream runs on one device, and {together.count} are asked for: leave it out, or --devices")
    if args.energy and together.count > 1:
        raise InputError(f"--energy measures one device, not {together.count}: leave it out, or --devices")
    options = generation.checked_arguments(generate_kwargs(args), None, (), None)
    if args.seed is not None:
        generation.check_seed("--seed", args.seed)
    requests = generation.RequestFile(args.input, args.output, args.model, args.resume, in_any_order=args.stream)
    asked = device_asked(args)
    opened = devices.open_device(asked) if together.count == 1 else contextlib.nullcontext(asked)
    with contextlib.closing(requests), opened as device:
        result = _run_file(args, schedule, policy, device, together, requests, options)
        failed, count = requests.failed, requests.count
    if result is None and failed < count:
        sys.stderr.write("nothing left to do\n")
    if result is not None:
        trace, told = result
        if args.trace and trace is not None:
            files.write_trace(trace, args.trace)
        sys.stderr.write(told)
    if failed:
        sys.stderr.write(f"{failed} of {count} requests failed: their lines say why\n")
    return ALL_FAILED if failed == count else 0


def _check_places(args: argparse.Namespace) -> None:
    """Raise InputError where a file that the run is to write cannot be written, before anything is loaded."""
    if args.trace and not str(args.trace).endswith((".json", ".json.gz")):
        raise InputError(f"--trace {args.trace}: give a name that ends in .json or .json.gz")
    for path in filter(None, (args.output, args.trace, args.record_routing)):
        if not path.resolve().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.resolve().parent}; make it first")
    for path in filter(None, (args.trace, args.record_routing)):  # both are written when all is done
        if not os.access(path.resolve().parent, os.W_OK):
            raise InputError(f"{path}: nothing can be written into {path.resolve().parent}: give another place")


def _run_file(
    args: argparse.Namespace,
    schedule: "schedules.Schedule",
    policy: "problem.Policy | None",
    device: "AnyDevice",
    together: DevicesTogether,
    requests: "generation.RequestFile",
    options: dict[str, Any],
) -> "tuple[Trace | None, str] | None":
    """What is left to be done, checked before the model is loaded as far as it can be; None if there is nothing."""
    config = generation.load_config(args.model, args.trust_remote_code)
    generation.check_kind(config, trust_remote_code=args.trust_remote_code)
    tokenizer = generation.find_tokenizer(args.model, args.trust_remote_code)
    draws = options.get("do_sample")
    if draws is None:
        draws = generation.draws_by_itself(args.model)
    settings = {**options, "weight_bits": args.weight_bits if policy is None else policy.weight_bits}
    settings |= {} if args.dtype == "auto" else {"dtype": args.dtype}
    requests.prepare(tokenizer, config, args.max_new_tokens, settings, args.seed, draws=draws)
    for error in requests.errors:
        sys.stderr.write(f"left out: {error}\n")
    if requests.resumed:
        sys.stderr.write(f"resumed: {requests.resumed} results are there already\n")
    if not requests.limits:
        requests.run_nothing()
        return None
    with progress(f"loading {args.model}"):
        model = _model(args, device)
    memory.check_packing(model, args.weight_bits)
    chosen = policy or planned_policy(args, schedule, device, together, model, requests)
    if args.stream:
        return _as_stream(args, schedule, chosen, device, requests, model, options)
    by = None if together.count == 1 else partial(_on_devices, together, model_asked(args))
    return _in_batches(args, schedule, chosen, device, by, requests, model, options)


def _model(args: argparse.Namespace, device: "AnyDevice") -> Any:
    """The model; where each of several devices loads it for itself, what is known of it without its weights."""
    return model_of(args, device) if isinstance(device, devices.Device) else model_asked(args).without_weights()


def _on_devices(
    together: DevicesTogether, source: "generation.ModelAsked", model: Any, *arguments: Any, **options: Any
) -> "generation.RunResult":
    """A run of a model on several devices, where each loads its weights."""
    return together(generation.run, source, *arguments, **options)  # type: ignore[no-any-return]


def _in_batches(
    args: argparse.Namespace,
    schedule: "schedules.Schedule",
    chosen: "problem.Policy | RunPlan",
    device: "AnyDevice",
    by: "Callable[..., generation.RunResult] | None",
    requests: "generation.RequestFile",
    model: Any,
    options: dict[str, Any],
) -> "tuple[Trace | None, str]":
    """Batch after batch, by a policy that is given or planned; the first one's trace, and what is said in the end."""
    policy = _told(chosen, "requests", schedule)
    ours = {"record_routing": args.record_routing, "routing": args.routing, "keep_model": False, "energy": args.energy}
    with progress("generating", sum(requests.limits), unit="tokens", lines=True) as shown:
        result = requests.run(model, schedule, policy, device, shown.advance, by=by, **ours, **options)
    stats = result.stats
    busy = ", ".join(f"{lane} {seconds:.2f} s" for lane, seconds in stats.busy_s.items())
    return result.trace, (
        f"{_expected(chosen, stats.tokens_per_s, result.trace.origin)}"
        f"{result.trace.origin}: {stats.generated_tokens} tokens at {stats.tokens_per_s:.1f} tokens/s "
        f"(prefill {stats.prefill_s:.2f} s, decode {stats.decode_s:.2f} s)\n"
        f"busy: {busy}\n{_peaks(stats.peak_bytes)}{_joules(stats)}"
    )


def _as_stream(
    args: argparse.Namespace,
    schedule: "schedules.Schedule",
    chosen: "problem.Policy | RunPlan",
    device: "AnyDevice",
    requests: "generation.RequestFile",
    model: Any,
    options: dict[str, Any],
) -> "tuple[Trace | None, str]":
    """Requests that enter as others end; the trace of the first steps, and what is said in the end."""
    assert isinstance(device, devices.Device)
    policy = _told(chosen, "requests at a time", schedule)
    ours = {
        "traced_steps": TRACED_STEPS if args.trace else 0,
        "routing": args.routing,
        "keep_model": False,
        "energy": args.energy,
    }
    with progress("generating", sum(requests.limits), unit="tokens", lines=True) as shown:
        outputs = requests.run_stream(model, schedule, policy, device, shown.advance, **ours, **options)
    stats = outputs.stats
    if stats is None:
        return None, "no request could be run\n"
    return outputs.trace, (
        f"{_expected(chosen, stats.tokens_per_s, device.origin)}"
        f"{device.origin}: {stats.generated_tokens} tokens at {stats.tokens_per_s:.1f} tokens/s "
        f"({stats.num_requests} requests in {stats.num_steps} steps, {stats.total_s:.2f} s)\n"
        f"{_waits(stats)}{_peaks(stats.peak_bytes)}{_joules(stats)}"
    )


def _told(chosen: "problem.Policy | RunPlan", what: str, schedule: "schedules.Schedule") -> "problem.Policy":
    """The policy, which is said, and what is expected of it if it was planned."""
    policy = chosen if isinstance(chosen, problem.Policy) else chosen.policy
    sys.stderr.write(f"policy: {f'{policy} {what}' if chosen is policy else chosen}, schedule {schedule.name}\n")
    if policy.changes_outputs:
        sys.stderr.write(f"{policy.changes_outputs}\n")
    return policy


def _expected(chosen: "problem.Policy | RunPlan", tokens_per_s: float, origin: str) -> str:
    return "" if isinstance(chosen, problem.Policy) else chosen.beside(tokens_per_s, origin)


def _waits(stats: "generation.StreamStats") -> str:
    """How long requests waited, from the start of all of them."""
    if not stats.times:
        return ""
    told = {"first token": stats.first_token_s, "last token": stats.whole_s}
    return ", ".join(f"{name} p50 {at.p50:.2f} s, p90 {at.p90:.2f} s" for name, at in told.items()) + "\n"


def _peaks(peak_bytes: "Mapping[str, int]") -> str:
    peaks = ", ".join(f"{tier} {num_bytes / 1e6:.1f} MB" for tier, num_bytes in peak_bytes.items())
    return f"peak memory: {peaks}\n"


def _joules(stats: "generation.Stats | generation.StreamStats") -> str:
    return "" if stats.energy is None else stats.energy.in_words(stats.generated_tokens)


COMMAND = Command(
    "run",
    "generate for every request of a file",
    (
        "--model ./model --input prompts.jsonl --output results.jsonl --max-new-tokens 32",
        "--model ./model --input prompts.jsonl --output results.jsonl --resume",
        "--model ./model --input prompts.jsonl --output results.jsonl --stream --micro-batch-size 8",
    ),
    add_arguments,
    run,
    needs="engine",
    interrupted="interrupted: what has ended is written, --resume goes on with the others",
)
