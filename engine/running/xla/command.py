"""One schedule through JAX, its tokens beside the engine's."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine import generation
from engine.running.choosing import USUAL_SIZES
from sim import problem, schedule as schedules
from sim.problem import add_policy, fixed_policy
from traces import files
from traces.cli import Command, add_json, deliver, positive_int
from traces.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USUAL = {**USUAL_SIZES, "micro_batch_size": 2, "num_micro_batches": 3, "pin_weights": 1.0}
"""What of a policy is not given: few shapes to compile for, and weights that stream from `pinned_host`."""

DIFFERENT = 1
"""The exit code where tokens differ."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a folder with a model, or a hub id (default: a random one)")
    parser.add_argument("--family", default="mixtral", help="of the random model: mixtral, qwen3_moe")
    parser.add_argument("--schedule", default="cgopipe", help="(default: %(default)s)")
    add_policy(parser)
    parser.add_argument("--max-new-tokens", type=positive_int, default=8, help="(default: %(default)s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the trace of the run (.json or .json.gz)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Generate with both, and say whether they agree."""
    schedule = schedules.by_name(args.schedule)
    policy = _policy(args, schedule)
    if args.trace and not str(args.trace).endswith((".json", ".json.gz")):
        raise InputError(f"--trace {args.trace}: give a name that ends in .json or .json.gz")
    from engine.device import XlaDevice
    from engine.running import xla
    from engine.running.xla.report import print_proof

    device, model = XlaDevice(), _model(args)
    prompts = xla.uneven_prompts(policy.batch_size, model.config.vocab_size)
    proof = xla.prove(model, prompts, schedule, policy, args.max_new_tokens, device)
    deliver(
        args,
        proof.to_dict,
        lambda: print_proof(proof),
        (args.trace, lambda path: files.write_trace(proof.result.trace, path)),
    )
    return 0 if proof.equal else DIFFERENT


def _policy(args: argparse.Namespace, schedule: "schedules.Schedule") -> "problem.Policy":
    meant_for, fields = fixed_policy(args)
    if meant_for not in (None, schedule.name):
        raise InputError(f"policy {args.policy} is for schedule {meant_for}: give --schedule {meant_for}")
    return problem.Policy.from_dict(fields if args.policy else USUAL | fields, schedule)


def _model(args: argparse.Namespace) -> "PreTrainedModel":
    from engine.running import xla

    if args.model:
        return generation.load_model(args.model)
    if args.family not in xla.EXPERTS:
        raise InputError(f"--family {args.family}: no such family is written in JAX; give {' or '.join(xla.EXPERTS)}")
    return xla.small_model(args.family)


COMMAND = Command(
    "jax",
    "run a schedule in JAX, and compare its tokens with the engine's",
    ("", "--family qwen3_moe --schedule flexgen", "--json - --trace run.json.gz"),
    _add_arguments,
    run,
    needs="engine,jax",
)
