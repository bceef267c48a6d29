"""Runs what is missing of a campaign: a calibration, then each case some times over, a trace for every run.

The folder is the state: what has a file is not run again, and a file appears only when its run has ended. Repeats are
the outer loop, and each begins with a round of calibration, so that a machine that grows slower or faster does so for
all cases and for the calibration alike. They share no run. Times when the machine is slow are kept out of both.
"""

import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

import engine
from engine.calibration import Attempt, Round, fitted, measure_machine, once, planned_for
from engine.device import Device, EmulatedDevice
from engine.running import RunPlan, plan
from sim.problem import Hardware
from sim.schedule import registered
from traces.errors import InputError
from traces.files import appearing, read_object, write_trace
from traces.trace import Trace
from validation.campaign.grid import CampaignGrid, Case
from validation.campaign.steady import Reference, Steady

SIZES = ("batch_size", "micro_batch_size", "num_micro_batches")

PLANNED = "planner"
"""What the labels of runs begin with whose schedule and policy the planner chose."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Campaign:
    """A grid on a device, in a folder."""

    folder: Path
    grid: CampaignGrid
    repeats: int
    make_device: Callable[[], Device]
    quick_calibration: bool = False
    watches_speed: bool = True
    """Whether runs are made again that lie in a time when the machine was slow (`validation.campaign.steady`)."""

    def machine_file(self, model: str) -> Path:
        return self.folder / f"machine-{model}.toml"

    def trace_file(self, case: Case, repeat: int) -> Path:
        return self.folder / "traces" / f"{case.name}.{repeat}.json.gz"

    def traces(self, case: Case) -> list[Path]:
        """Of the repeats that have been run."""
        return [file for file in (self.trace_file(case, one) for one in range(self.repeats)) if file.exists()]

    def round_file(self, model: str, repeat: int) -> Path:
        return self.folder / "calibration" / f"{model}.{repeat}.json"

    @property
    def speed_file(self) -> Path:
        return self.folder / "speed.json"

    @property
    def _asked(self) -> list[tuple[str, int]]:
        """What the planner is asked: models and numbers of requests."""
        return list(itertools.product(self.grid.models, (self.grid.requests, *self.grid.small_batches)))

    def _plan_file(self, model: str, requests: int) -> Path:
        end = "" if requests == self.grid.requests else f"-{requests}"
        return self.folder / f"planned-{model}{end}.json"

    def machine(self, model: str) -> Hardware:
        """What all rounds of the calibration for a model found."""
        return Hardware.load(self.machine_file(model))

    def cases(self) -> list[Case]:
        """The grid's cases, and for each model and number of requests the planner's choice."""
        return [*self.grid.cases(), *itertools.starmap(self._planned, self._asked)]

    def run(self, progress: Progress = lambda done, total, doing: None) -> None:
        """Run what is missing."""
        for name in ("traces", "calibration"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        models = {name: make() for name, make in self.grid.models.items()}
        total = self.repeats * (len(self.grid.cases()) + len(models) + len(self._asked))
        done = 0
        progress(done, total, "the machine's usual speed")
        attempt = self._attempt()
        for repeat in range(self.repeats):
            for name, model in models.items():
                progress(done, total, f"calibration for {name}, round {repeat + 1}")
                self._measure(name, model, repeat, attempt)
                done += 1
            for case in self.cases():
                progress(done, total, f"{case.name}, repeat {repeat + 1}")
                if not (file := self.trace_file(case, repeat)).exists():
                    write_trace(attempt(partial(self._trace, case, models[case.model])), file)
                done += 1
        progress(total, total, "done")

    def _attempt(self) -> Attempt:
        """An emulated device shares its host's cores with whoever uses the machine; a real one is one's own."""
        with self.make_device() as device:
            emulated = isinstance(device, EmulatedDevice)
        return Steady(Reference(self.make_device), self.speed_file) if self.watches_speed and emulated else once

    def _measure(self, name: str, model: PreTrainedModel, repeat: int, attempt: Attempt) -> None:
        """One round of calibration, then the machine from all rounds; the planner chooses after the first."""
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
        for asked, requests in self._asked:
            if asked == name:
                self._plan(name, model, requests)

    def _trace(self, case: Case, model: PreTrainedModel) -> Trace:
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        with self.make_device() as device:
            run = (model, case.prompts(vocabulary), case.chosen_schedule, case.policy)
            return engine.run(*run, max_new_tokens=case.gen_len, device=device, do_sample=False).trace

    def _plan(self, name: str, model: PreTrainedModel, requests: int) -> None:
        """Write down what the planner takes for so many requests, from the calibration alone."""
        file = self._plan_file(name, requests)
        if file.exists():
            return
        lengths, machine = [self.grid.prompt_tokens] * requests, self.machine(name)
        plans: dict[str, RunPlan] = {}
        for schedule in registered().values():
            with suppress(InputError):  # nothing fits
                plans[schedule.name] = plan(model, machine, schedule, lengths, self.grid.gen_len_of(requests))
        best = max(plans, key=lambda schedule: plans[schedule].expected.throughput_tokens_per_s)
        chosen = {"schedule": best, "policy": plans[best].policy.to_dict()}
        with appearing(file) as path:
            path.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")

    def _planned(self, name: str, requests: int) -> Case:
        """The schedule and the policy that the planner chose."""
        chosen = read_object(self._plan_file(name, requests))
        policy = chosen["policy"]
        fields = {key: value for key, value in policy.items() if key not in SIZES and value is not None}
        sizes = (policy["batch_size"], policy["micro_batch_size"])
        label, gen_len = f"{PLANNED}-for-{requests}", self.grid.gen_len_of(requests)
        return Case(name, chosen["schedule"], *sizes, self.grid.prompt_tokens, gen_len, fields, label)
