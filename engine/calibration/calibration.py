"""The calibration of a machine for a model: probes, short runs, a fit, and a `Hardware` that says where it is from."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from engine.calibration.fit import (
    Contention,
    Fit,
    contended,
    fit_all,
    settled,
    unfitted,
    with_hand_over,
    with_interference,
)
from engine.calibration.measure import (
    FEW_REPEATS,
    REPEATS,
    STEPS,
    Attempt,
    Condition,
    Probes,
    Round,
    Run,
    Sample,
    conditions,
    keep_first_layers,
    layers_to_measure,
    median_probes,
    median_split_cost,
    once,
    probe,
    run_all,
    samples_of,
    split_cost,
)
from engine.device import Device
from engine.generation import describe_model
from sim.problem import Hardware, Model, read_model

ROUNDS = 3
"""How often each run of a full calibration is made."""

Progress = Callable[[int, int, str], None]
"""Told how many of how many measurements are done, and what comes next."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measured machine, and what it was made of."""

    hardware: Hardware
    probes: Probes
    fits: list[Fit]
    contention: list[Contention]
    samples: list[Sample]


def described(model: PreTrainedModel, name: str = "model") -> Model:
    """A loaded model as the simulator sees it, at the width it has in memory."""
    return read_model(describe_model(model), name, f"the configuration of {type(model).__name__}")


def calibrate(
    model: PreTrainedModel,
    device: Device,
    name: str = "this machine",
    *,
    quick: bool = False,
    progress: Progress = lambda done, total, doing: None,
) -> Calibration:
    """Measure the device and its host for the model; `quick` takes fewer sizes, for a plan rather than a proof.

    Raises InputError for a model that cannot be run, DeviceOutOfMemory if its experts do not fit the device at all.
    """
    planned, rounds = planned_for(model, quick=quick), 1 if quick else ROUNDS
    ended, total = itertools.count(), rounds * (2 + len(planned))

    def begin(doing: str) -> None:
        progress(next(ended), total, doing)

    done = [measure_machine(model, device, planned, quick=quick, on_begin=begin) for _ in range(rounds)]
    begin("done")
    return fitted(model, device, planned, done, name)


def planned_for(model: PreTrainedModel, *, quick: bool = False) -> list[Condition]:
    """The runs of a calibration for a model."""
    return conditions(_most_prompt_tokens(model), quick=quick)


def measure_machine(
    model: PreTrainedModel,
    device: Device,
    planned: Sequence[Condition],
    *,
    quick: bool = False,
    on_begin: Callable[[str], None] = lambda doing: None,
    attempt: Attempt = once,
) -> Round:
    """One round: the probes, and every run once. `attempt` may make a measurement again that it does not trust."""
    on_begin("memories, links and matrix products")
    repeats = FEW_REPEATS if quick else REPEATS
    probes = attempt(lambda: probe(device, model.dtype, repeats))
    with keep_first_layers(model, layers_to_measure(model, device.memory_bytes)):
        on_begin("experts in two parts")
        cost = attempt(lambda: split_cost(model, described(model), device, repeats))
        return Round(probes, run_all(model, device, planned, lambda condition: on_begin(str(condition)), attempt), cost)


def fitted(
    model: PreTrainedModel, device: Device, planned: Sequence[Condition], rounds: Sequence[Round], name: str
) -> Calibration:
    """The machine that several rounds show together."""
    probes = median_probes(rounds)
    runs = [Run(*pair) for one in rounds for pair in zip(planned, one.spans, strict=True)]
    samples = samples_of(runs)
    start = unfitted(name, device, probes, median_split_cost(rounds))
    hardware, fits = fit_all(start, described(model), samples)
    with keep_first_layers(model, layers_to_measure(model, device.memory_bytes)):
        hardware = with_hand_over(settled(hardware), described(model), runs)
        hardware = with_interference(hardware, described(model), runs)
    return Calibration(hardware, probes, fits, contended(samples), samples)


def _most_prompt_tokens(model: PreTrainedModel) -> int:
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return max(1, (positions or 1 << 20) - STEPS)
