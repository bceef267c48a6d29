"""What `roofline` tells a person: the points of a model, in GFLOP/s, and the roofs they stand under."""

from sim.hrm.roofline import Roofline
from traces.cli import TEXT, Report


def print_roofline(result: Roofline) -> None:
    """Print a line for each point, then the peaks."""
    out, rates = Report(), {"CPU": ",.0f", "via link": ",.0f", "GPU": ",.0f"}
    columns = {"point": TEXT, "FLOP/B": ".4g", "tokens": ",", **rates, "best: bound": TEXT}
    title = f"{result.model} on {result.hardware}: GFLOP/s by place, context {result.context:,}"
    points = []
    for one in result.points:
        reached = (one.on_cpu_flops_per_s, one.over_link_flops_per_s, one.on_gpu_flops_per_s)
        points.append((one.name, one.intensity, one.tokens, *(rate / 1e9 for rate in reached), one.meaning))
    out.table(columns, points, f"{title}, micro-batch {result.micro_batch_size:,}")
    levels = (
        f"{one.name} {one.peak_flops_per_s / 1e12:g} TFLOP/s, {one.bandwidth_bytes_per_s / 1e9:g} GB/s"
        for one in result.machine.levels
    )
    out.say("; ".join((*levels, f"link {result.machine.links_bytes_per_s[0] / 1e9:g} GB/s")))
