"""The calibration of a machine for a model: probes, short runs, a fit, and a `Hardware` that says where it is from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from engine.calibration.fit import Contention, Fit, contended, fit_all, settled, unfitted, with_hand_over, with_turns
from engine.calibration.measure import (
    FEW_REPEATS,
    REPEATS,
    STEPS,
    Attempt,
    Condition,
    Probes,
    Round,
    Sample,
    conditions,
    host_cores,
    keep_first_layers,
    layers_to_measure,
    median_probes,
    median_second_place,
    once,
    probe,
    run_all,
    samples_of,
    second_place,
    threads_of,
)
from engine.device import Device
from engine.generation import describe_model
from sim.problem import Hardware, Model, read_model

ROUNDS = 3
"""How often each run of a full calibration is made."""

Progress = Callable[[int, int, str], None]
"""Told how many of how many parts are done, and what comes next."""


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
    parts = _Parts(progress, rounds * (2 + len(planned)))
    done = [measure_machine(model, device, planned, quick=quick, on_part=parts.begin) for _ in range(rounds)]
    parts.begin("done")
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
    on_part: Callable[[str], None] = lambda doing: None,
    attempt: Attempt = once,
) -> Round:
    """One round: the probes, and every run once. `attempt` may make a part again that it does not trust."""
    on_part("memories, links and matrix products")
    repeats = FEW_REPEATS if quick else REPEATS
    probes = attempt(lambda: probe(device, model.dtype, *threads_of(device), host_cores(), repeats))
    with keep_first_layers(model, layers_to_measure(model, device.memory_bytes)):
        on_part("experts in two places")
        apart = attempt(lambda: second_place(model, described(model), device, repeats))
        return Round(probes, run_all(model, device, planned, lambda condition: on_part(str(condition)), attempt), apart)


def fitted(
    model: PreTrainedModel, device: Device, planned: Sequence[Condition], rounds: Sequence[Round], name: str
) -> Calibration:
    """The machine that several rounds show together."""
    probes = median_probes(rounds)
    samples = samples_of([span for one in rounds for span in one.spans[at]] for at in range(len(planned)))
    start = unfitted(name, device, probes, median_second_place(rounds))
    hardware, fits = fit_all(start, described(model), planned, samples)
    pairs = contended(planned, samples)
    runs = [one.spans for one in rounds]
    with keep_first_layers(model, layers_to_measure(model, device.memory_bytes)):
        hardware = with_hand_over(settled(hardware), described(model), planned, runs)
        hardware = with_turns(hardware, described(model), planned, runs)
    return Calibration(hardware, probes, fits, pairs, samples)


class _Parts:
    """Counts the parts of a calibration as they begin."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, -1

    def begin(self, doing: str) -> None:
        """The part before has ended."""
        self._done += 1
        self._progress(self._done, self._total, doing)


def _most_prompt_tokens(model: PreTrainedModel) -> int:
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return max(1, (positions or 1 << 20) - STEPS)
