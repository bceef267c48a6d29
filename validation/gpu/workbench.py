"""What all stages of a proof work with: the scale, devices of stated sizes, models that are made once, the record."""

import contextlib
import gc
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from engine.device import Device, host_memory_bytes, make_device
from engine.generation import as_cut
from sim.cost import Setup
from sim.problem import Hardware, Model, Policy, Problem, Workload
from sim.schedule import Schedule
from validation.campaign import Case
from validation.gpu.random_models import described_config, full_config, random_model
from validation.gpu.record import NotReadyError, ProofRecord
from validation.gpu.scale import ModelSpec, Scale

EMULATED_GBS = 1.0
"""Both directions of an emulated device's link."""

DTYPE = torch.bfloat16


@dataclass(slots=True)
class Workbench:
    """One machine, for as long as a proof runs. `device_name` is what a user calls the device."""

    device_name: str
    scale: Scale
    record: ProofRecord
    _models: dict[tuple[str, int], PreTrainedModel] = field(default_factory=dict)
    _kind: tuple[torch.device, str] | None = None

    def device(self, memory_bytes: int) -> Device:
        """The device with so much memory. Raises InputError if there is none, or it is smaller."""
        return open_sized(self.device_name, memory_bytes)

    @property
    def torch_device(self) -> torch.device:
        return self._looked_at()[0]

    @property
    def origin(self) -> str:
        """What every result of this device must say."""
        return self._looked_at()[1]

    @property
    def is_cuda(self) -> bool:
        """Whether CUDA's own tools are there, or ROCm's under their name."""
        return self.torch_device.type == "cuda"

    @property
    def is_real(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.torch_device.type != "cpu"

    @property
    def torch_module(self) -> Any:
        """Where torch keeps what it can do with a real device: `torch.cuda`, say."""
        return torch.get_device_module(self.torch_device)

    def empty_caches(self) -> None:
        """Gives back what torch keeps of the device's memory without using it."""
        gc.collect()
        if self.is_real:
            self.torch_module.empty_cache()

    def spec(self, name: str) -> ModelSpec:
        return self.scale.models[name]

    def config(self, name: str, layers: int | None = None) -> dict[str, Any]:
        """The configuration of a model of the scale, with its usual number of layers unless told."""
        spec = self.spec(name)
        return full_config(spec.config, layers or spec.layers, spec.sizes)

    def described(self, name: str, layers: int | None = None) -> Model:
        """A model as the simulator sees it, without making it."""
        return described_config(self.config(name, layers), DTYPE, name)

    def model(self, name: str, layers: int | None = None) -> PreTrainedModel:
        """A model, made when it is first asked for; others go if the host has no room for both."""
        count = layers or self.spec(name).layers
        if (name, count) not in self._models:
            needed_bytes = weight_bytes(self.described(name, count))
            if self._models and available_host_bytes() < 1.5 * needed_bytes:
                self.drop_models()
            self._models[name, count] = random_model(self.config(name, count), DTYPE, self.torch_device)
        return self._models[name, count]

    def drop_models(self) -> None:
        """Forgets all models, and gives their memory back."""
        self._models.clear()
        self.empty_caches()

    def machine(self, name: str) -> Hardware:
        """What the calibration for a model found. Raises NotReadyError if there was none."""
        file = self.record.machine_file(name)
        if not file.exists():
            raise NotReadyError(f"{file.name} is not there: stage 3 (calibration) comes first")
        return Hardware.load(file)

    def cases(self, name: str) -> list[Case]:
        """The runs of a model, the most important first."""
        order = self.scale.order
        return sorted(self.scale.grid({name: None}).cases(), key=lambda case: order.index(case.schedule))

    def setup(self, case: Case) -> Setup:
        """A case on the machine that was calibrated for its model. Raises InputError."""
        return self.setup_of(case.model, case.chosen_schedule, case.policy, case.prompt_tokens, case.gen_len)

    def setup_of(
        self, name: str, schedule: Schedule, policy: Policy, prompt_tokens: int, gen_len: int, layers: int | None = None
    ) -> Setup:
        """Equal requests that fill one batch of a policy."""
        lengths = (prompt_tokens,) * policy.batch_size
        problem = Problem(self.described(name, layers), self.machine(name), Workload("requests", lengths, gen_len))
        return Setup(problem, schedule, policy, as_cut(lengths, policy.micro_batch_size, gen_len))

    def _looked_at(self) -> tuple[torch.device, str]:
        if self._kind is None:
            with self.device(min(spec.device_bytes for spec in self.scale.models.values())) as device:
                self._kind = device.torch_device, device.origin
        return self._kind


def open_sized(name: str, memory_bytes: int) -> Device:
    """A device by name with so much memory; an emulated one has a link of EMULATED_GBS."""
    real = name not in ("auto", "emulated") or (name == "auto" and torch.accelerator.is_available())
    rate = EMULATED_GBS * 1e9
    link = {} if real else {"h2d_bytes_per_s": rate, "d2h_bytes_per_s": rate}
    device = make_device(name, memory_bytes=memory_bytes, **link)
    device.hold_cores()
    return device


def weight_bytes(model: Model) -> int:
    """All parameters of a model."""
    return model.resident_bytes() + model.experts_bytes()


def available_host_bytes() -> int:
    """Host memory that can be had without paging, caches included where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return min(int(value.split()[0]) * 1024, host_memory_bytes())
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
