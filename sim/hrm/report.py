"""The table of `python -m sim roofline`."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sim.hrm.roofline import CPU, GPU, Roofline
from sim.hrm.roofs import Hierarchy


def print_roofline(result: Roofline) -> None:
    """Print the points, in GFLOP/s, and the roofs they stand under."""
    table = Table(
        title=f"{result.model} on {result.hardware}: GFLOP/s by place, context {result.context:,}, "
        f"micro-batch {result.micro_batch_size:,}",
        caption=_peaks(result.machine),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("point", no_wrap=True)
    for heading in ("FLOP/B", "tokens", "CPU", "via link", "GPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best: bound")
    for point in result.points:
        rates = (point.on_cpu_flops_per_s, point.over_link_flops_per_s, point.on_gpu_flops_per_s)
        tokens = "" if point.tokens is None else f"{point.tokens:,}"
        table.add_row(point.name, f"{point.intensity:.4g}", tokens, *(f"{r / 1e9:,.0f}" for r in rates), point.meaning)
    Console().print(table)


def _peaks(machine: Hierarchy) -> str:
    levels = [
        f"{level.name} {level.peak_flops_per_s / 1e12:g} TFLOP/s, {level.bandwidth_bytes_per_s / 1e9:g} GB/s"
        for level in machine.levels
    ]
    return "; ".join([*levels, f"link {machine.link_bytes_per_s(CPU, GPU) / 1e9:g} GB/s"])
