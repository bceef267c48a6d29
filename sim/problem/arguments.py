"""The options that say what is asked: model, machine, workload and schedules."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.cli import positive_int
from traces.errors import InputError, shown

if TYPE_CHECKING:
    from sim.problem.machine import Hardware
    from sim.problem.widths import WeightBits
    from sim.problem.workload import Problem

WEIGHT_BITS_HELP = (
    "bits of a stored weight: a number (routed experts only), kinds (experts=4.5,attention=8,rest=16), or "
    "a name of GGUF files (Q4_K_M) (default: the checkpoint's)"
)


def add_problem(group: Any) -> None:
    """Add them to a parser or a group of it."""
    group.add_argument("--schedules", metavar="A,B", help="names from the list (default: all registered)")
    which = "preset, org/name of the Hub, folder, config.json, .safetensors or .gguf (default: %(default)s)"
    group.add_argument("--model", default="mixtral-8x7b", help=which)
    add_hardware(group, "gcp-t4")
    group.add_argument("--workload", default="mtbench", help="preset, .toml or .jsonl file (default: %(default)s)")
    tokens: dict[str, Any] = {"type": positive_int, "metavar": "TOKENS"}
    group.add_argument("--prompt-len", **tokens, help="every prompt this long, instead of a workload")
    group.add_argument("--gen-len", **tokens, help="generated per request (default: the workload's)")
    add_routing(group)
    drawn = "tokens are drawn, or scores changed by penalties: plan the memory that this takes"
    group.add_argument("--sampled", action="store_true", default=None, help=drawn)
    padding = group.add_mutually_exclusive_group()
    padding.add_argument("--padded", dest="padded", action="store_true", default=True, help="to the longest (default)")
    padding.add_argument("--unpadded", dest="padded", action="store_false", help="balanced micro-batches (Algorithm 2)")


def add_hardware(group: Any, default: str | None) -> None:
    """Add those that say which machine."""
    usual = " (default: %(default)s)" if default else ""
    which = f"preset, also as people write it (4090), .toml file, or auto: the machine at hand{usual}"
    group.add_argument("--hardware", default=default, metavar="MACHINE", help=which)
    add_settings(group)


def add_settings(group: Any) -> None:
    """Add the one that changes numbers of the machine."""
    number = "a number of the machine, as host_memory.capacity=64GB or link.h2d=24GB/s; may be given several times"
    group.add_argument("--set", action="append", default=[], dest="settings", metavar="NUMBER=VALUE", help=number)


def hardware_asked(args: argparse.Namespace) -> "Hardware":
    """The machine that is asked for. Raises InputError for one that is not known, and for a wrong setting."""
    from sim.problem.machine import Hardware

    return Hardware.load(args.hardware, args.settings)


def add_routing(group: Any) -> None:
    """Add the one that says how popular experts are."""
    which = "how popular experts are: uniform (default), zipf:1.1, or a file that run --record-routing wrote"
    group.add_argument("--routing", metavar="WHICH", default="uniform", help=which)


def add_policy(group: Any) -> None:
    """Add those that fix the policy, or its sizes."""
    group.add_argument("--micro-batch-size", type=positive_int, metavar="REQUESTS", help="μ")
    group.add_argument("--num-micro-batches", type=positive_int, metavar="COUNT", help="n; the batch is μ × n")
    share = "share of the micro-batches that attend on the device beside others on the CPU (cgopipe, hybrid)"
    group.add_argument("--attention-on-device", type=float, metavar="SHARE", help=share)
    group.add_argument("--policy", metavar="FILE", help="JSON fields; for one schedule only if it names it")


def add_weight_bits(group: Any, meaning: str = WEIGHT_BITS_HELP) -> None:
    """Add the one that says how wide weights are stored."""
    group.add_argument("--weight-bits", type=_weight_bits, metavar="WIDTHS", help=meaning)


def _weight_bits(text: str) -> "WeightBits | None":
    from sim.problem.widths import check_weight_bits

    try:
        return check_weight_bits("--weight-bits", text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--weight-bits: ")) from None


def fixed_policy(args: argparse.Namespace) -> tuple[str | None, dict[str, Any]]:
    """The schedule that a policy file is for, if it names one, and the fields that are fixed: all, some or none.

    Raises InputError for a file that is none, and for other options beside a file.
    """
    from sim.problem.policy import read_policy_file

    options = ("micro_batch_size", "num_micro_batches", "attention_on_device")
    given = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    if args.policy is None:
        return None, given
    if given:
        too_many = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"--policy holds the whole policy: leave out {too_many}")
    return read_policy_file(Path(args.policy))


def problem_of(args: argparse.Namespace) -> "Problem":
    """What is asked. Raises InputError for a name that is not known or a file that cannot be read."""
    from sim.problem.workload import Problem

    length = {"prompt_len": args.prompt_len, "gen_len": args.gen_len}
    how = {"padded": args.padded, "sampled": args.sampled, "routing": args.routing}
    return Problem.of(args.model, hardware_asked(args), args.workload, **length, **how)


def schedules_of(args: argparse.Namespace) -> list[str]:
    """The schedules named, each once, or all. Raises InputError for an unknown name."""
    from sim.schedule import by_name, registered

    if args.schedules is None:
        return list(registered())
    names = list(dict.fromkeys(name.strip() for name in args.schedules.split(",") if name.strip()))
    if not names:
        raise InputError(f"--schedules: {shown(args.schedules)} names none; known are {', '.join(registered())}")
    return [by_name(name).name for name in names]
