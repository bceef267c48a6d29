"""What is asked: a model, on a machine, for a workload."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sim.problem.machine import Hardware
from sim.problem.model import Model
from sim.problem.workload import DEFAULT_GEN_LEN, Workload


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked: a model, on a machine, for a workload."""

    model: Model
    hardware: Hardware
    workload: Workload

    @classmethod
    def of(
        cls,
        model: str | Path | Model,
        hardware: str | Path | Hardware,
        workload: str | Path | Workload = "mtbench",
        *,
        prompt_len: int | None = None,
        gen_len: int | None = None,
        padded: bool | None = None,
    ) -> Self:
        """A problem of nouns, names or paths: `Problem.of("mixtral-8x7b", "gcp-t4", gen_len=64)`. Raises InputError.

        With `prompt_len` every prompt is so long, instead of a workload. Prompts are padded to the longest as `padded`
        says, or else as a Workload given does; those of a workload that is named are.
        """
        if not isinstance(model, Model):
            model = Model.load(model)
        if not isinstance(hardware, Hardware):
            hardware = Hardware.load(hardware)
        if prompt_len is not None:
            workload = Workload.fixed(prompt_len, DEFAULT_GEN_LEN)
        if not isinstance(workload, Workload):
            workload, padded = Workload.load(workload), padded is not False
        return cls(model, hardware, workload.with_(gen_len=gen_len, padded=padded))
