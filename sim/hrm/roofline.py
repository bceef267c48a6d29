"""`python -m sim roofline`: where attention and experts of a model stand on a machine, as numbers and as a picture.

In the manner of figures 4 and 5 of MoE-Lightning (arXiv 2411.11217). Roofs are theoretical peaks, as in the paper; the
simulator uses the sustained shares of them. The level GPU is all devices of the machine together.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sim.hrm.estimate import MoEDims, attention_intensity, dims_of, ffn_intensity, ffn_tokens
from sim.hrm.roofs import Hierarchy, Level
from sim.problem import Hardware
from traces.cli import writing
from traces.errors import InputError

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
        return {
            "hardware": self.hardware,
            "model": self.model,
            "context": self.context,
            "micro_batch_size": self.micro_batch_size,
            "levels": [asdict(level) for level in self.machine.levels],
            "links_bytes_per_s": list(self.machine.links_bytes_per_s),
            "points": [asdict(point) for point in self.points],
        }


def hierarchy(hardware: Hardware) -> Hierarchy:
    """Return the machine's levels GPU and CPU at theoretical peaks."""
    n, device, memory = hardware.num_devices, hardware.device, hardware.device_memory
    gpu = Level(GPU, n * device.peak_flops_per_s, n * memory.bandwidth_bytes_per_s)
    cpu = Level(CPU, float(hardware.host.peak_flops_per_s), float(hardware.host_memory.bandwidth_bytes_per_s))
    return Hierarchy((gpu, cpu), (n * hardware.link.peak_bytes_per_s,))


def roofline(hardware: Hardware, model: str, dims: MoEDims, context: int, micro_batch_size: int) -> Roofline:
    """Place attention at `context` tokens, the experts at several batch sizes, and the turning points.

    Raises InputError for a context or a micro-batch below 1.
    """
    for name, value in (("context", context), ("micro-batch-size", micro_batch_size)):
        if value < 1:
            raise InputError(f"--{name}: {value} is not allowed; it must be 1 or more")
    machine = hierarchy(hardware)
    kernel = float(ffn_intensity(dims, float(micro_batch_size)))
    p1, p2 = machine.p1(GPU, CPU), float(machine.p2(GPU, CPU, kernel))
    balance = float(machine.balance(GPU, CPU, kernel))

    def attention_at(name: str, bits: float) -> RooflinePoint:
        intensity = float(attention_intensity(dims, float(context), bits))
        return _point(machine, f"attention {name}", (intensity, intensity), None)

    def experts_at(tokens: int) -> RooflinePoint:
        intensity = float(ffn_intensity(dims, float(tokens)))
        return _point(machine, f"experts N={tokens}", (min(kernel, intensity), intensity), tokens)

    def turn(name: str, intensity: float, meaning: str) -> RooflinePoint:
        exact = ffn_tokens(dims, intensity)
        tokens = math.ceil(exact) if math.isfinite(exact) else None
        return _point(machine, name, (kernel, intensity), tokens, meaning)

    return Roofline(
        hardware=hardware.name,
        model=model,
        context=context,
        micro_batch_size=micro_batch_size,
        machine=machine,
        attention=tuple(attention_at(name, bits) for name, bits in KV_BITS.items()),
        experts=tuple(experts_at(tokens) for tokens in BATCH_SIZES),
        p1=turn("P1", p1, "below: CPU"),
        p2=turn("P2", p2, "below: link"),
        balance=turn("balance", balance, "link = memory"),
    )


def _point(
    machine: Hierarchy, name: str, intensities: tuple[float, float], tokens: int | None, meaning: str = ""
) -> RooflinePoint:
    gpu_intensity, cpu_intensity = intensities
    over_link = machine.attainable(GPU, {GPU: gpu_intensity, CPU: cpu_intensity})
    on_cpu = float(machine[CPU].attainable(cpu_intensity))
    roof = str(over_link.roof)
    better = "CPU" if on_cpu >= over_link.flops_per_s else f"GPU: {roof.rsplit(maxsplit=1)[-1]}"
    return RooflinePoint(
        name=name,
        intensity=cpu_intensity,
        tokens=tokens,
        on_cpu_flops_per_s=on_cpu,
        over_link_flops_per_s=float(over_link.flops_per_s),
        over_link_roof=roof,
        on_gpu_flops_per_s=float(machine[GPU].attainable(gpu_intensity)),
        meaning=meaning or better,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m sim roofline`."""
    parser.add_argument("--hardware", default="gcp-l4", help="preset or .toml file (default: %(default)s)")
    parser.add_argument("--model", default="mixtral-8x7b", help="preset or config.json (default: %(default)s)")
    parser.add_argument(
        "--context", type=int, default=512, metavar="TOKENS", help="of attention (default: %(default)s)"
    )
    parser.add_argument(
        "--micro-batch-size", type=int, default=128, metavar="TOKENS", help="of the experts (default: %(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the picture: .png, .svg or .pdf")
    parser.add_argument(
        "--json", metavar="FILE", help="write the numbers as JSON; - is standard output, without a table"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, and write what was asked for. Raises InputError for anything the user gave wrong."""
    from sim.problem import Model

    hardware, model = Hardware.load(args.hardware), Model.load(args.model)
    result = roofline(hardware, model.name, dims_of(model), args.context, args.micro_batch_size)
    if args.json:
        text = json.dumps(result.to_dict(), indent=2) + "\n"
        if args.json == "-":
            sys.stdout.write(text)
        else:
            writing(args.json, lambda: Path(args.json).write_text(text, encoding="utf-8"))
    if args.json != "-":
        from sim.hrm.report import print_roofline

        print_roofline(result)
    if args.plot:
        from sim.hrm.roofline_picture import draw

        writing(args.plot, lambda: draw(result, args.plot))
    return 0
