"""The calibration of a machine for a model: probes, short runs, a fit, and a `Hardware` that says where it is from."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from engine.calibration import fit, measure
from engine.device import Device
from engine.generation import describe_model
from sim.problem import Hardware, Model
from sim.schedule import Op

ROUNDS = 3
"""How often each run of a full calibration is made."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measured machine, and what it was made of."""

    hardware: Hardware
    probes: measure.Probes
    fits: list[fit.Fit]
    contention: list[fit.Contention]
    samples: list[measure.Sample]
    watts: measure.Watts | None = None


def described(model: PreTrainedModel, name: str = "model") -> Model:
    """A loaded model as the simulator sees it, at the width it has in memory."""
    return Model.of_config(describe_model(model), name, f"the configuration of {type(model).__name__}")


def calibrate(
    model: PreTrainedModel,
    device: Device,
    name: str = "this machine",
    *,
    quick: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, doing: None,
) -> Calibration:
    """Measure the device and its host for the model; `quick` takes fewer sizes, for a plan rather than a proof.

    `progress` is told how many of how many measurements are done, and what comes next.
    Raises InputError for a model that cannot be run, DeviceOutOfMemory if its experts do not fit the device at all.
    """
    planned, rounds = planned_for(model, device.memory_bytes, quick=quick), 1 if quick else ROUNDS
    ended, total = itertools.count(), rounds * (4 + len(planned))

    def begin(doing: str) -> None:
        progress(next(ended), total, doing)

    done = [measure_machine(model, device, planned, quick=quick, on_begin=begin) for _ in range(rounds)]
    begin("done")
    return fitted(model, device, planned, done, name)


def planned_for(model: PreTrainedModel, device_bytes: int, *, quick: bool = False) -> list[measure.Condition]:
    """The runs of a calibration for a model, on a device of so much memory."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    most = max(1, (positions or 1 << 20) - measure.STEPS)
    found = measure.conditions(most, quick=quick, apart=measure.can_be_apart(model))
    with measure.keep_first_layers(model, measure.layers_to_measure(model, device_bytes)):
        return measure.runs_that_fit(found, described(model), device_bytes)


def measure_machine(
    model: PreTrainedModel,
    device: Device,
    planned: Sequence[measure.Condition],
    *,
    quick: bool = False,
    on_begin: Callable[[str], None] = lambda doing: None,
    attempt: measure.Attempt = measure.once,
) -> measure.Round:
    """One round: the probes, and every run once. `attempt` may make a measurement again that it does not trust."""
    device.hold_cores()
    on_begin("memories, links and matrix products")
    repeats = measure.FEW_REPEATS if quick else measure.REPEATS
    probes = attempt(lambda: measure.probe(device, model.dtype, repeats))
    on_begin("watts, where there are counters")
    watts = attempt(lambda: measure.measure_watts(device, model.dtype))
    with measure.keep_first_layers(model, measure.layers_to_measure(model, device.memory_bytes)):
        on_begin("experts in two parts, and unpacked")
        cost = attempt(lambda: measure.split_cost(model, described(model), device, repeats))
        rate = attempt(lambda: measure.unpack_rate(model, device, repeats))
        on_begin("experts on the host")
        tokens = measure.QUICK_TOKENS if quick else measure.TOKENS
        on_host = attempt(lambda: measure.time_host_experts(model, described(model), device, repeats, tokens))
        on_host_rate = attempt(lambda: measure.host_unpack_rate(model, device, repeats))
        spans = measure.run_all(model, device, planned, lambda condition: on_begin(str(condition)), attempt)
        return measure.Round(probes, spans, cost, rate, on_host, on_host_rate, watts)


def fitted(
    model: PreTrainedModel,
    device: Device,
    planned: Sequence[measure.Condition],
    rounds: Sequence[measure.Round],
    name: str,
) -> Calibration:
    """The machine that several rounds show together."""
    probes = measure.median_probes(rounds)
    runs = [measure.MeasuredRun(*pair) for one in rounds for pair in zip(planned, one.spans, strict=True)]
    samples = measure.samples_of(runs)
    rates = measure.median_unpack_rate(rounds), measure.median_host_unpack_rate(rounds)
    alone = measure.median_split_cost(rounds), *rates
    on_host = measure.median_host_experts(rounds)
    start, known = fit.unfitted(name, device, probes, *alone), described(model)
    shown = {one.tokens for one in samples if one.task.op is Op.HOST_EXPERTS and one.task.step}
    hardware, fits = fit.fit_all(start, known, [*samples, *measure.host_samples(on_host, known, shown)])
    with measure.keep_first_layers(model, measure.layers_to_measure(model, device.memory_bytes)):
        hardware = fit.with_hand_over(fit.settled(hardware), described(model), runs)
        hardware = fit.with_interference(hardware, described(model), runs)
    watts = measure.median_watts(rounds)
    hardware = fit.with_watts(hardware, watts, device.origin)
    slower = [*fit.contended(samples), *fit.contended_on_host(on_host)]
    return Calibration(hardware, probes, fits, slower, samples, watts)
