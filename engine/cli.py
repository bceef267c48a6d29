"""`python -m engine`: run a file of requests on a device, or a demonstration of it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.cli import OneLineParser, add_command, run_command
from traces.errors import InputError

if TYPE_CHECKING:
    from engine.device import Device
    from engine.generation import RunResult
    from engine.planning import RunPlan
    from sim.problem import Policy
    from sim.schedule import Schedule

GIGA = 1e9

USUAL_MICRO_BATCH_SIZE = 4
USUAL_NUM_MICRO_BATCHES = 4


_RUN_EXAMPLES = (
    "python -m engine run --model ./model --input prompts.jsonl --output results.jsonl --max-new-tokens 32",
    "python -m engine run --model ./model --input prompts.jsonl --output results.jsonl --resume",
)
_DEMO_EXAMPLES = ("python -m engine demo", "python -m engine demo --schedule flexgen --folder demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return run_command(_parser(), argv, "interrupted: finished batches are written, --resume goes on with the others")


def _parser() -> OneLineParser:
    from engine.calibration import command as calibration

    parser = OneLineParser(
        prog="python -m engine",
        description="Run an offloaded Mixture-of-Experts model by a schedule.",
        examples=(_DEMO_EXAMPLES[0], _RUN_EXAMPLES[0]),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = add_command(commands, "run", "generate for every request of a file", _run, _RUN_EXAMPLES)
    _add_files(run)
    _add_policy(run)
    _add_device(run)
    _add_generation(run)
    calibrate = add_command(commands, "calibrate", "measure this machine for a model", _calibrate, calibration.EXAMPLES)
    calibration.add_arguments(calibrate)
    _add_device(calibrate)
    demo = add_command(commands, "demo", "make a small random model and run it", _demo, _DEMO_EXAMPLES)
    demo.add_argument("--folder", type=Path, help="where to keep the model and the results (default: nowhere)")
    demo.add_argument("--schedule", default="cgopipe")
    return parser


def _add_files(run: argparse.ArgumentParser) -> None:
    run.add_argument("--model", required=True, help="a folder with a model, or a hub id")
    run.add_argument("--input", required=True, type=Path, help="requests, one JSON object a line")
    run.add_argument("--output", required=True, type=Path, help="results, in the order and format of the input")
    run.add_argument("--resume", action="store_true", help="go on with an output file that an earlier run began")
    run.add_argument("--trace", type=Path, help="write the first batch's trace here (.json or .json.gz)")
    run.add_argument("--dtype", default="auto", help="of the loaded weights (default: the checkpoint's)")
    run.add_argument("--trust-remote-code", action="store_true", help="let the checkpoint bring model code")


def _add_policy(run: argparse.ArgumentParser) -> None:
    run.add_argument("--schedule", default="cgopipe")
    run.add_argument("--policy", type=Path, help="a policy file (JSON); replaces the two sizes")
    run.add_argument("--plan-for", metavar="HARDWARE", help="plan the policy for this machine (a preset or a .toml)")
    run.add_argument("--micro-batch-size", type=int, help=f"requests of a micro-batch ({USUAL_MICRO_BATCH_SIZE})")
    run.add_argument("--num-micro-batches", type=int, help=f"micro-batches of a batch ({USUAL_NUM_MICRO_BATCHES})")


def _add_device(run: argparse.ArgumentParser) -> None:
    run.add_argument("--device", default="auto", help="auto, emulated or cuda")
    for name, what in (("h2d", "host to device"), ("d2h", "device to host")):
        run.add_argument(f"--{name}-gbs", type=float, help=f"emulated bandwidth {what} in GB/s (unthrottled)")
    run.add_argument("--device-memory-gb", type=float, help="device memory that may be used, in GB")
    run.add_argument("--gpu-threads", type=int, help="cores that play the GPU of an emulated device")
    run.add_argument("--cpu-threads", type=int, help="cores for attention on the host")


def _add_generation(run: argparse.ArgumentParser) -> None:
    run.add_argument("--max-new-tokens", type=int, default=64)
    run.add_argument("--temperature", type=float, help="sample; without sampling options the choice is greedy")
    run.add_argument("--top-p", type=float)
    run.add_argument("--top-k", type=int)
    run.add_argument("--repetition-penalty", type=float)
    run.add_argument("--seed", type=int, help="of micro-batch 0; micro-batch j takes seed + j")


def _calibrate(args: argparse.Namespace) -> int:
    """Measure the device and its host, and write what was found."""
    from transformers.utils import logging

    from engine.calibration import calibrate, command
    from engine.device import open_device
    from engine.generation import load_model

    command.check_out(args.out)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with open_device(_device(args)) as device:
        model = load_model(args.model, args.dtype, args.trust_remote_code)
        measured = calibrate(model, device, args.out.stem, quick=args.quick, progress=command.bar())
    measured.hardware.write(args.out)
    command.print_summary(measured, args.out)
    return 0


def _run(args: argparse.Namespace) -> int:
    """Generate for every request of a file; results are appended as each batch ends."""
    from engine.device import open_device
    from sim.schedule import by_name

    schedule = by_name(args.schedule)
    policy = None if _plans(args) else _policy(args, schedule)
    _check_paths(args)
    with open_device(_device(args)) as device:
        result = _run_file(args, schedule, policy, device)
    if result is None:
        sys.stderr.write("nothing left to do\n")
        return 0
    if args.trace:
        from traces.files import write_trace

        write_trace(result.trace, args.trace)
    sys.stderr.write(summary(result) + "\n")
    return 0


def _run_file(
    args: argparse.Namespace, schedule: "Schedule", policy: "Policy | None", device: "Device"
) -> "RunResult | None":
    from tqdm import tqdm  # type: ignore[import-untyped]
    from transformers.utils import logging

    from engine.generation import RequestFile, find_tokenizer, load_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar is enough: ours

    tokenizer = find_tokenizer(args.model, args.trust_remote_code)
    model = load_model(args.model, args.dtype, args.trust_remote_code)
    requests = RequestFile(args.input, args.output, model, tokenizer, args.max_new_tokens, args.resume)
    for error in requests.errors:
        sys.stderr.write(f"left out: {error}\n")
    if requests.resumed:
        sys.stderr.write(f"resumed: {requests.resumed} results are there already\n")
    if not requests.pending:
        requests.run_nothing()
        return None
    planned = None
    if policy is None:
        planned = _plan(args, model, schedule, requests.prompt_tokens, device)
        policy = planned.policy
    sys.stderr.write(f"policy: {planned or f'{policy} requests'}, schedule {schedule.name}\n")
    total = len(requests.pending) * args.max_new_tokens
    with tqdm(total=total, unit="tok", disable=None, smoothing=0.1) as bar:
        result = requests.run(schedule, policy, device, bar.update, seed=args.seed, **_generate_kwargs(args))
    if planned is not None and result is not None:
        expected, measured = planned.expected.throughput_tokens_per_s, result.stats.tokens_per_s
        sys.stderr.write(
            f"expected {expected:.1f} tokens/s on {planned.machine}, measured {measured:.1f} on {result.trace.origin} "
            f"({measured / expected:.2f} of it)\n"
        )
    return result


def _gives_policy(args: argparse.Namespace) -> bool:
    return bool(args.policy) or args.micro_batch_size is not None or args.num_micro_batches is not None


def _plans(args: argparse.Namespace) -> bool:
    """Whether the policy is to be planned: it is unless it is given. Raises InputError for both."""
    if args.plan_for and _gives_policy(args):
        raise InputError("--plan-for chooses policy and sizes: leave the other options for them out")
    return not _gives_policy(args)


def _plan(
    args: argparse.Namespace, model: Any, schedule: "Schedule", prompt_tokens: list[int], device: "Device"
) -> "RunPlan":
    from engine.calibration import bar, calibrate
    from engine.planning import plan
    from sim.problem import Hardware

    if args.plan_for:
        hardware = Hardware.load(args.plan_for)
    else:
        sys.stderr.write("measuring this machine to plan for it (--plan-for FILE or a policy skips this)\n")
        hardware = calibrate(model, device, "this machine", quick=True, progress=bar()).hardware
    return plan(model, hardware, schedule, prompt_tokens, args.max_new_tokens)


def summary(result: "RunResult") -> str:
    """What a run did, in a few lines."""
    stats = result.stats
    busy = ", ".join(f"{lane} {seconds:.2f} s" for lane, seconds in stats.busy_s.items())
    peaks = ", ".join(f"{tier} {num_bytes / 1e6:.1f} MB" for tier, num_bytes in stats.peak_bytes.items())
    return (
        f"{result.trace.origin}: {stats.generated_tokens} tokens at {stats.tokens_per_s:.1f} tokens/s "
        f"(prefill {stats.prefill_s:.2f} s, decode {stats.decode_s:.2f} s)\n"
        f"busy: {busy}\npeak memory: {peaks}"
    )


def _policy(args: argparse.Namespace, schedule: "Schedule") -> "Policy":
    from sim.problem import Policy, read_policy_file

    if args.policy is None:
        size = USUAL_MICRO_BATCH_SIZE if args.micro_batch_size is None else args.micro_batch_size
        count = USUAL_NUM_MICRO_BATCHES if args.num_micro_batches is None else args.num_micro_batches
        return Policy.from_dict({"micro_batch_size": size, "num_micro_batches": count}, schedule)
    if args.micro_batch_size is not None or args.num_micro_batches is not None:
        raise InputError("--policy says the sizes already: leave --micro-batch-size and --num-micro-batches out")
    meant_for, table = read_policy_file(args.policy)
    if meant_for not in (None, schedule.name):
        raise InputError(f"policy {args.policy} is for schedule {meant_for}: give --schedule {meant_for}")
    return Policy.from_dict(table, schedule)


def _device(args: argparse.Namespace) -> "Device":
    from engine.device import make_device

    given = {
        "h2d_bytes_per_s": _scaled(args.h2d_gbs),
        "d2h_bytes_per_s": _scaled(args.d2h_gbs),
        "memory_bytes": None if args.device_memory_gb is None else int(args.device_memory_gb * GIGA),
        "gpu_threads": args.gpu_threads,
        "cpu_threads": args.cpu_threads,
    }
    return make_device(args.device, **{name: value for name, value in given.items() if value is not None})


def _scaled(giga: float | None) -> float | None:
    return None if giga is None else giga * GIGA


def _generate_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    samples = any(name in given for name in ("temperature", "top_p", "top_k"))
    return {"do_sample": True, **given} if samples else given


def _check_paths(args: argparse.Namespace) -> None:
    if args.trace and not str(args.trace).endswith((".json", ".json.gz")):
        raise InputError(f"--trace {args.trace}: give a name that ends in .json or .json.gz")
    for path in filter(None, (args.output, args.trace)):
        if not path.resolve().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.resolve().parent}; make it first")


def _demo(args: argparse.Namespace) -> int:
    from engine.generation import run_demo

    return run_demo(args.folder, args.schedule, main)
