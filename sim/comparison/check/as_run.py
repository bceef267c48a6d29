"""A measured run made ready to be predicted: the model as wide as the file, lengths and setting as they were."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim.comparison.check.measurement import Measurement, RunSetting, Speed
from sim.cost import Setup
from sim.planning import best_policy
from sim.problem import Hardware, Model, Policy, Problem, Widths, Workload
from sim.schedule import by_name
from traces.errors import InputError, error_prefix

ANOTHER_MODEL = 0.05
"""Relative difference of parameters from which a file is of another model than the one that is given."""

AS_WIDE = 0.1
"""Relative difference of bytes up to which the model's own widths are those of the file."""


@dataclass(frozen=True, slots=True)
class AsRun:
    """The setup of a run, the speed to hold against its prediction, and what was taken from the file or assumed."""

    setup: Setup
    tokens_per_s: float
    notes: tuple[str, ...]


def as_run(
    problem: Problem, measurement: Measurement, schedule: str = "", policy: Mapping[str, Any] | None = None
) -> AsRun:
    """Set a measured run up; what is given of schedule and policy counts before what the file says.

    Raises InputError where they contradict each other, or the run cannot be as it is said.
    """
    setting = measurement.setting
    notes = list(_other_device(problem.hardware, setting.gpu))
    model = _as_wide(problem.model, setting, notes)
    workload, tokens_per_s = _workload(problem.workload, measurement, notes)
    problem = replace(problem, model=model, workload=workload)
    name = schedule or setting.schedule
    if not name:
        raise InputError(
            f"{setting.program or '--measured'}: says nothing of how the weights were placed: give --schedules with "
            "the one that it runs, such as n-cpu-moe, cpu-experts or zero, or a --policy of plan --out"
        )
    fields = policy or _fields(setting, model)
    return AsRun(_setup(problem, name, measurement.requests, fields), tokens_per_s, tuple(notes))


def _other_device(machine: Hardware, gpu: str) -> Iterator[str]:
    """A note, where the number of the device that the file names is not among the machine's words."""
    numbers = re.findall(r"[A-Z]*\d\w*", gpu.partition(",")[0].upper())
    known = f"{machine.name} {machine.description}".upper()
    if numbers and not any(one in known for one in numbers):
        yield f"the file is of {gpu}, the prediction of {machine.name}: give --hardware with the machine that ran"


def _setup(problem: Problem, name: str, requests: int, fields: Mapping[str, Any]) -> Setup:
    """With the fields that are known, or else as the schedule would run so many requests best."""
    schedule = by_name(name)
    if not fields:
        return best_policy(problem, schedule, num_requests=requests).best.setup
    with error_prefix(f"{name}: "):
        sizes = {"batch_size": requests, "micro_batch_size": requests}
        return Setup(problem, schedule, Policy.from_dict({**sizes, **fields}, schedule))


def _fields(setting: RunSetting, model: Model) -> dict[str, Any]:
    """Those of a policy that the file gives."""
    found = dict(setting.policy)
    layers, of_host = model.num_layers, setting.host_layers
    if setting.device_layers is not None and setting.device_layers < layers:
        found |= {"experts_on_device": 1.0, "layers_on_host": [0, layers - setting.device_layers]}
        of_host = None if of_host and of_host[1] <= layers - setting.device_layers else of_host
    if of_host is not None:
        first, stop = (min(one, layers) for one in of_host)
        found |= {"experts_on_device": 1.0, "host_layers": [first, stop]}
    if setting.kv_bits is not None:
        found["kv_bits"] = setting.kv_bits
    return found


def _as_wide(model: Model, setting: RunSetting, notes: list[str]) -> Model:
    """The model with the file's bits a parameter, where its own make another size. Raises InputError for another."""
    params, size = setting.model_params, setting.model_bytes
    if not params or not size:
        return model
    if abs(params / model.total_params - 1) > ANOTHER_MODEL:
        raise InputError(
            f"--model {model.name} has {model.total_params / 1e9:.1f} B parameters, the file's "
            f"{setting.model or 'model'} {params / 1e9:.1f} B: give --model with the one that ran"
        )
    if abs(size / (model.experts_bytes() + model.resident_bytes()) - 1) <= AS_WIDE:
        return model
    bits = 8 * size / params
    notes.append(f"all weights at the file's mean of {bits:.2f} bits")
    return replace(model, widths=Widths.alike(bits))


def _workload(given: Workload, measurement: Measurement, notes: list[str]) -> tuple[Workload, float]:
    """The lengths that were measured, and the speed in generated tokens. A long prompt is one of its pieces."""
    generated = measurement.gen_len or given.gen_len
    prompt, rate, piece = measurement.prompt_len, measurement.tokens_per_s, measurement.setting.piece_tokens
    if (both := measurement.tokens_a_request) is not None:
        prompt = max(1, both - generated)
        rate *= generated / (prompt + generated)
        notes.append(f"of {both} tokens a request {generated} generated")
    if prompt is None:
        return replace(given, gen_len=generated), rate
    if measurement.speed is Speed.PREFILL and piece and piece < prompt:
        notes.append(f"a prompt of {prompt} tokens goes through in pieces of {piece}: one stands for all")
        prompt = piece
    return Workload.fixed(prompt, generated), rate
