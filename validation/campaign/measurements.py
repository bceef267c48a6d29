"""Runs what is missing of a calibration and of cases, each some times over, a trace for every run.

The folder is the state: what has a file is not run again, and a file appears only when its run has ended. Repeats are
the outer loop, and each begins with a round of calibration, so that a machine that grows slower or faster does so for
all cases and for the calibration alike. They share no run. Times when the machine is slow are kept out of both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from engine.calibration import Attempt, Round, fitted, measure_machine, once, planned_for
from engine.device import Device, EmulatedDevice
from sim.problem import Hardware
from traces.files import appearing, write_trace
from traces.trace import Trace
from validation.campaign.steady import Reference, Steady

Progress = Callable[[int, int, str], None]


class Runnable(Protocol):
    """One run of the engine."""

    @property
    def name(self) -> str:
        """Names it in files and tables."""
        ...

    @property
    def model(self) -> str: ...

    def run(self, model: PreTrainedModel, device: Device) -> Trace: ...


class Grid(Protocol):
    """What is run of which models."""

    @property
    def models(self) -> Mapping[str, Callable[[], PreTrainedModel]]: ...

    def cases(self) -> Sequence[Runnable]: ...


@dataclass(frozen=True, slots=True)
class Measurements:
    """The cases of a grid on a device, and a calibration for each model, in a folder."""

    folder: Path
    grid: Grid
    repeats: int
    make_device: Callable[[], Device]
    quick_calibration: bool = False
    watches_speed: bool = True
    """Whether runs are made again that lie in a time when the machine was slow (`validation.campaign.steady`)."""

    def machine_file(self, model: str) -> Path:
        return self.folder / f"machine-{model}.toml"

    def trace_file(self, case: Runnable, repeat: int) -> Path:
        return self.folder / "traces" / f"{case.name}.{repeat}.json.gz"

    def traces(self, case: Runnable) -> list[Path]:
        """Of the repeats that have been run."""
        return [file for file in (self.trace_file(case, one) for one in range(self.repeats)) if file.exists()]

    def round_file(self, model: str, repeat: int) -> Path:
        return self.folder / "calibration" / f"{model}.{repeat}.json"

    @property
    def speed_file(self) -> Path:
        return self.folder / "speed.json"

    def machine(self, model: str) -> Hardware:
        """What all rounds of the calibration for a model found."""
        return Hardware.load(self.machine_file(model))

    def all_cases(self) -> Sequence[Runnable]:
        """The grid's; those that the calibration decides about are known after its first round."""
        return self.grid.cases()

    def calibrated(self, name: str, model: PreTrainedModel) -> None:
        """Told of each machine as a round of calibration has found it."""

    def run(self, progress: Progress = lambda done, total, doing: None) -> None:
        """Run what is missing."""
        for name in ("traces", "calibration"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        models = {name: make() for name, make in self.grid.models.items()}
        total = self.repeats * (self.num_cases + len(models))
        done = 0
        progress(done, total, "the machine's usual speed")
        attempt = self._attempt()
        for repeat in range(self.repeats):
            for name, model in models.items():
                progress(done, total, f"calibration for {name}, round {repeat + 1}")
                self._measure(name, model, repeat, attempt)
                done += 1
            for case in self.all_cases():
                progress(done, total, f"{case.name}, repeat {repeat + 1}")
                if not (file := self.trace_file(case, repeat)).exists():
                    write_trace(attempt(partial(self._trace, case, models[case.model])), file)
                done += 1
        progress(total, total, "done")

    @property
    def num_cases(self) -> int:
        """How many there will be."""
        return len(self.grid.cases())

    def _attempt(self) -> Attempt:
        """An emulated device shares its host's cores with whoever uses the machine; a real one is one's own."""
        with self.make_device() as device:
            emulated = isinstance(device, EmulatedDevice)
        return Steady(Reference(self.make_device), self.speed_file) if self.watches_speed and emulated else once

    def _measure(self, name: str, model: PreTrainedModel, repeat: int, attempt: Attempt) -> None:
        """One round of calibration, then the machine from all rounds."""
        file = self.round_file(name, repeat)
        with self.make_device() as device:
            planned = planned_for(model, device.memory_bytes, quick=self.quick_calibration)
            if not file.exists():
                found = measure_machine(model, device, planned, quick=self.quick_calibration, attempt=attempt)
                with appearing(file) as path:
                    found.write(path)
            rounds = [Round.read(one) for one in (self.round_file(name, r) for r in range(repeat + 1)) if one.exists()]
            machine = fitted(model, device, planned, rounds, f"machine-{name}").hardware
        with appearing(self.machine_file(name)) as path:
            machine.write(path)
        self.calibrated(name, model)

    def _trace(self, case: Runnable, model: PreTrainedModel) -> Trace:
        with self.make_device() as device:
            return case.run(model, device)
