"""Latencies of single kernels on the L4 machine (MoE-Lightning, figure 9) against the cost model's.

Published are kernels that run alone: what a run adds to attention on the host, per call and per request, is left out.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from sim.cost import Setup
from sim.problem import Hardware, Model, Policy, Problem, Workload
from sim.schedule import CPU, GPU, H2D, Op, Place, Task, by_name
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
    """One measured latency; the FFN has no context."""

    name: str
    micro_batch_size: int
    context: int | None
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_s / self.measured_s - 1


def predict_kernels(hardware: Hardware, path: Path = KERNELS) -> list[Kernel]:
    """Predict every kernel of the file for the machine that they were measured on. Raises InputError by line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [_kernel(row, hardware) for row in csv.DictReader(lines)]


def _kernel(row: dict[str, str], hardware: Hardware) -> Kernel:
    name, size = row["kernel"], int(row["micro_batch_size"])
    if name not in OPS:
        raise InputError(f"kernel {name!r} is unknown; known: {', '.join(OPS)}")
    context = int(row["context"]) if row["context"] else None
    return Kernel(name, size, context, float(row["latency_s"]), _latency_s(name, size, context or 1, hardware))


def _latency_s(name: str, size: int, context: int, hardware: Hardware) -> float:
    """Solo time of the task. The cache of `context` tokens is a prompt's before the first token for a transfer."""
    op, lane = OPS[name]
    alone = hardware.with_value("host.request_overhead", 0.0).with_value("host.launch_latency", 0.0)
    prompt = context if op is Op.LOAD_KV else max(1, context - 1)
    schedule, place = by_name("cgopipe"), Place.GPU if op is Op.LOAD_KV else Place.CPU
    problem = Problem(Model.load("mixtral-8x7b"), alone, Workload.fixed(prompt, 2))
    setup = Setup(problem, schedule, Policy.usual(schedule, size, size, attention=place))
    return setup.costs()(Task(0, op, lane, 1, 0, 0)).duration_ns * 1e-9
