"""The policy of a run: what the options fix, or the best one for a machine that is given or measured."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from engine import calibration, device as devices, generation
from engine.generation import DevicesTogether, model_asked
from sim import problem, schedule as schedules, simulation
from sim.problem import fixed_policy
from traces.cli import progress
from traces.errors import InputError

if TYPE_CHECKING:
    from engine.running.planning import RunPlan

    AnyDevice = devices.Device | devices.DeviceAsked  # open, or what each of several processes opens

USUAL_SIZES = {"micro_batch_size": 4, "num_micro_batches": 4}
"""What of the sizes is not given, where one of them is."""

SAMPLING = ("temperature", "top_p", "top_k")
"""Options of `generate` that make it sample; without them the choice is greedy."""


def generate_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """What the options ask of `generate()`."""
    given = {name: getattr(args, name) for name in (*SAMPLING, "repetition_penalty") if getattr(args, name) is not None}
    return {"do_sample": True, **given} if given.keys() & SAMPLING else given


def given_policy(args: argparse.Namespace, schedule: "schedules.Schedule") -> "problem.Policy | None":
    """The policy that the options fix, or None if it is to be planned. Raises InputError if they disagree."""
    meant_for, fields = fixed_policy(args)
    if args.plan_for and fields:
        raise InputError("--plan-for chooses policy and sizes: leave the other options for them out")
    if meant_for not in (None, schedule.name):
        raise InputError(f"policy {args.policy} is for schedule {meant_for}: give --schedule {meant_for}")
    if args.policy and args.weight_bits is not None:
        raise InputError("--policy holds the width of weights already: leave out --weight-bits")
    if not fields and args.policy is None:
        return None
    given = fields if args.policy else {**USUAL_SIZES, "weight_bits": args.weight_bits, **fields}
    return problem.Policy.from_dict(given, schedule)


def planned_policy(
    args: argparse.Namespace,
    schedule: "schedules.Schedule",
    device: "AnyDevice",
    together: DevicesTogether,
    model: Any,
    requests: "generation.RequestFile",
) -> "RunPlan":
    """The best policy for the requests that are left. Raises InputError if none fits."""
    from engine.running.planning import plan, plan_streamed

    if isinstance(device, devices.Device):
        device.hold_cores()
    hardware = _hardware(args, device, together, model)
    simulation.compile_once()
    with progress("planning"):
        prompts, limits = requests.prompt_tokens, requests.limits
        options, sampled = (args.routing, args.weight_bits), requests.chooses(model, generate_kwargs(args))
        if args.stream:
            return plan_streamed(model, hardware, schedule, prompts, limits, *options, sampled=sampled)
        return plan(model, hardware, schedule, prompts, max(limits), *options, sampled=sampled)


def _hardware(
    args: argparse.Namespace, device: "AnyDevice", together: DevicesTogether, model: Any
) -> "problem.Hardware":
    """The machine to plan for: the one that is given, or this one as it is measured. Raises InputError."""
    if args.plan_for:
        hardware = problem.Hardware.load(args.plan_for, args.settings)
        if hardware.num_devices != together.count:
            raise InputError(
                f"--plan-for {args.plan_for}: it has {hardware.num_devices} devices, and the run {together.count}: "
                f"give --devices {hardware.num_devices}, or another machine"
            )
        return hardware
    sys.stderr.write("measuring this machine to plan for it (--plan-for FILE or a policy skips this)\n")
    with progress("measuring", 1, unit="parts", lines=True) as shown:
        if isinstance(device, devices.Device):
            return calibration.calibrate(model, device, quick=True, progress=shown.at).hardware
        source = model_asked(args)
        found = together(calibration.calibrate_devices, source, device, quick=True, progress=shown.at)
        return found.hardware  # type: ignore[no-any-return]
