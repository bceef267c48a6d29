"""Where attention and experts of a model stand under the roofs of a machine.

In the manner of figures 4 and 5 of MoE-Lightning (arXiv 2411.11217). Roofs are theoretical peaks, as in the paper; the
simulator uses the sustained shares of them. The level GPU is all devices of the machine together.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from sim.hrm.estimate import attention_intensity, dims_of, ffn_intensity, ffn_tokens
from sim.hrm.roofs import Hierarchy, Level
from sim.problem import Hardware, Model
from traces.errors import check_count

GPU, CPU = "GPU", "CPU"
BATCH_SIZES = (32, 128, 1024, 16384)
"""Tokens of a whole batch for which the experts are shown."""

KV_BITS = {"f16": 16.0, "int4": 4.0}
"""Widths of the KV cache for which attention is shown."""


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """Work, or a turning point, at its intensity on the host's memory: what it reaches in each place."""

    name: str
    intensity: float
    """FLOP per byte of host memory."""
    tokens: int | None
    """Batch size at which the experts have this intensity, rounded up; None for attention, or where none has."""
    on_cpu_flops_per_s: float
    over_link_flops_per_s: float
    """On the device, with data from the host."""
    over_link_roof: str
    """What binds it there."""
    on_gpu_flops_per_s: float
    """On the device, with data there."""
    meaning: str


@dataclass(frozen=True, slots=True)
class Roofline:
    """The roofs of one machine and the points of one model under them."""

    hardware: str
    model: str
    context: int
    micro_batch_size: int
    machine: Hierarchy
    attention: tuple[RooflinePoint, ...]
    experts: tuple[RooflinePoint, ...]
    p1: RooflinePoint
    p2: RooflinePoint
    balance: RooflinePoint

    @property
    def points(self) -> tuple[RooflinePoint, ...]:
        return (*self.attention, *self.experts, self.p1, self.p2, self.balance)

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` writes: all in FLOP/s and bytes/s."""
        named = {name: getattr(self, name) for name in ("hardware", "model", "context", "micro_batch_size")}
        return {**named, **asdict(self.machine), "points": [asdict(point) for point in self.points]}


def hierarchy(hardware: Hardware) -> Hierarchy:
    """Return the machine's levels GPU and CPU at theoretical peaks."""
    n, device, memory = hardware.num_devices, hardware.device, hardware.device_memory
    gpu = Level(GPU, n * device.peak_flops_per_s, n * memory.bandwidth_bytes_per_s)
    cpu = Level(CPU, float(hardware.host.peak_flops_per_s), float(hardware.host_memory.bandwidth_bytes_per_s))
    return Hierarchy((gpu, cpu), (n * hardware.link.peak_bytes_per_s,))


def roofline_of(hardware: Hardware, model: Model, context: int, micro_batch_size: int) -> Roofline:
    """Place attention at `context` tokens, the experts at several batch sizes, and the turning points.

    Raises InputError for a context or a micro-batch below 1.
    """
    check_count("--context", context)
    check_count("--micro-batch-size", micro_batch_size)
    dims = dims_of(model)
    machine = hierarchy(hardware)
    kernel = float(ffn_intensity(dims, float(micro_batch_size)))
    p1, p2 = machine.p1(GPU, CPU), float(machine.p2(GPU, CPU, kernel))
    balance = float(machine.balance(GPU, CPU, kernel))

    def turn(name: str, intensity: float, meaning: str) -> RooflinePoint:
        exact = ffn_tokens(dims, intensity)
        tokens = math.ceil(exact) if math.isfinite(exact) else None
        return _point(machine, name, (kernel, intensity), tokens, meaning)

    by_width = {name: float(attention_intensity(dims, float(context), bits)) for name, bits in KV_BITS.items()}
    attention = tuple(_point(machine, f"attention {name}", (one, one), None) for name, one in by_width.items())
    by_size = {n: float(ffn_intensity(dims, float(n))) for n in BATCH_SIZES}
    experts = tuple(_point(machine, f"experts N={n}", (min(kernel, one), one), n) for n, one in by_size.items())
    turns = (turn("P1", p1, "below: CPU"), turn("P2", p2, "below: link"), turn("balance", balance, "link = memory"))
    return Roofline(hardware.name, model.name, context, micro_batch_size, machine, attention, experts, *turns)


def _point(
    machine: Hierarchy, name: str, intensities: tuple[float, float], tokens: int | None, meaning: str = ""
) -> RooflinePoint:
    gpu_intensity, cpu_intensity = intensities
    reached = machine.attainable(GPU, {GPU: gpu_intensity, CPU: cpu_intensity})
    roof, over_link = str(reached.roof), float(reached.flops_per_s)
    on_cpu, on_gpu = (float(machine[at].attainable(one)) for at, one in ((CPU, cpu_intensity), (GPU, gpu_intensity)))
    better = "CPU" if on_cpu >= over_link else f"GPU: {roof.rsplit(maxsplit=1)[-1]}"
    return RooflinePoint(name, cpu_intensity, tokens, on_cpu, over_link, roof, on_gpu, meaning or better)
