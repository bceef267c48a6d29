"""Latencies of single kernels on the L4 machine (MoE-Lightning, figure 9) against the cost model's.

Published are kernels that run alone: what a run adds to attention on the host, per call and per request, is left out.
"""

import csv
from dataclasses import dataclass

from sim.cost import Setup
from sim.problem import Hardware, Model, Problem, Workload
from sim.schedule import CPU, GPU, H2D, Lane, Op, Place, Task
from traces.errors import InputError
from validation.published.rows import FOLDER

KERNELS = FOLDER / "kernels.csv"

OPS = {
    "KV transfer H2D latency": (Op.LOAD_KV, H2D),
    "CPU GQA attention latency": (Op.ATTN, CPU),
    "GPU MoE FFN latency": (Op.EXPERTS, GPU),
}
"""The task that each kernel is; one layer, one micro-batch."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One measured latency."""

    name: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_s / self.measured_s - 1


def predict_kernels(hardware: Hardware) -> list[Kernel]:
    """Predict every published kernel for the machine that they were measured on."""
    lines = [line for line in KERNELS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [_kernel(row, hardware) for row in csv.DictReader(lines)]


def _kernel(row: dict[str, str], hardware: Hardware) -> Kernel:
    """The FFN has no context."""
    name = row["kernel"]
    if name not in OPS:
        raise InputError(f"kernel {name!r} is unknown; known: {', '.join(OPS)}")
    predicted_s = _latency_s(*OPS[name], int(row["micro_batch_size"]), int(row["context"] or 1), hardware)
    return Kernel(name, float(row["latency_s"]), predicted_s)


def _latency_s(op: Op, lane: Lane, size: int, context: int, hardware: Hardware) -> float:
    """Solo time of the task. The cache of `context` tokens is a prompt's before the first token for a transfer."""
    alone = hardware.with_value("host.request_overhead", 0.0).with_value("host.launch_latency", 0.0)
    transfers = op is Op.LOAD_KV
    problem = Problem(
        Model.load("mixtral-8x7b"), alone, Workload.fixed(context if transfers else max(1, context - 1), 2)
    )
    attention = Place.GPU if transfers else Place.CPU
    setup = Setup.of(problem, "cgopipe", batch_size=size, micro_batch_size=size, attention=attention)
    return setup.costs()(Task(0, op, lane, 1, 0, 0)).duration_ns * 1e-9
