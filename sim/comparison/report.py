"""What `compare` tells a person: a table of results, what each lane did, and one sentence on why the best one wins."""

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sim.comparison.comparison import Outcome
from sim.problem import Basis, Problem
from sim.schedule import Tier
from sim.simulation import LaneSummary, Prediction
from traces.cli import console

LEGEND = (
    "policy: micro-batch size × number of micro-batches, and where attention runs. bound by: the busiest lane in "
    "prefill, then decode. over it: time beyond that lane's work. HRM: its own tokens/s (and times the simulated)."
)


def print_comparison(problem: Problem, outcomes: Sequence[Outcome], baseline: str | None) -> None:
    """Print the whole report."""
    out = console()
    workload, hardware = problem.workload, problem.hardware
    mean, longest = workload.mean_prompt_tokens, workload.max_prompt_tokens
    length = f"padded to {longest}" if workload.padded else f"of {mean:.0f} on average and {longest} at most"
    out.print(
        f"[bold]{problem.model.name} on {hardware.name}[/bold], {workload.name}: prompts {length} tokens, "
        f"{workload.gen_len} generated. Simulated."
    )
    fitting = [one.prediction for one in outcomes if one.prediction is not None]
    out.print(_results(fitting, baseline))
    out.print(LEGEND)
    out.print(_lanes(fitting, hardware.num_devices))
    for one in outcomes:
        if one.prediction is None:
            out.print(f"{one.schedule}: does not fit: {one.reason}")
    out.print(_why(fitting))
    out.print(f"Hardware numbers: {_basis(problem)}. Each with its source: python -m sim list {hardware.name}")


def _results(predictions: Sequence[Prediction], baseline: str | None) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("schedule", no_wrap=True)
    headings = ["policy", "tokens/s", "× slowest", "prefill", "decode", "bound by", "over it", "GPU idle"]
    headings += ["GB device/host/pinned", "HRM"]
    against = next((one for one in predictions if one.schedule == baseline), None)
    if against is not None:
        headings.insert(3, f"× {against.schedule}")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    slowest = min((one.throughput_tokens_per_s for one in predictions), default=0.0)
    for one in predictions:
        speed = one.throughput_tokens_per_s
        memory = one.memory_peak_bytes
        hrm = (
            "" if one.hrm_tokens_per_s is None else f"{one.hrm_tokens_per_s:,.1f} ({one.hrm_tokens_per_s / speed:.1f}×)"
        )
        row = [f"{one.policy} {one.policy.attention}", f"{speed:,.2f}", f"{speed / slowest:.2f}×"]
        if against is not None:
            row.append(f"{speed / against.throughput_tokens_per_s:.2f}×")
        row += [_seconds(one.prefill_s), _seconds(one.decode_s)]
        row.append(" then ".join(dict.fromkeys(p.bottleneck for p in (one.prefill, one.decode) if p.bottleneck)))
        row += [f"{one.over_busiest:+.0%}", f"{one.gpu_idle:.0%}"]
        row += [" / ".join(f"{memory[tier] / 1e9:.1f}" for tier in Tier), hrm]
        table.add_row(one.schedule, *row)
    return table


def _lanes(predictions: Sequence[Prediction], num_devices: int) -> Table:
    """Lanes as columns: share of the time busy, and the op that the rest was mostly spent waiting for.

    Of several devices the first stands for all: their lanes do the same.
    """
    names = list(dict.fromkeys(name for one in predictions for name in one.lanes if ":" not in name))
    title = "busy · waited mostly for" + (f" (device 0 of {num_devices}, which are alike)" if num_devices > 1 else "")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("schedule", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for one in predictions:
        table.add_row(one.schedule, *(_lane(one.lanes.get(name)) for name in names))
    return table


def _lane(lane: LaneSummary | None) -> str:
    if lane is None:
        return "–"
    waited = f" · {lane.waited_most_for}" if lane.waited_most_for else ""
    return f"{lane.utilisation:.0%}{waited}"


def _why(predictions: Sequence[Prediction]) -> str:
    """Why the best schedule wins, from the numbers."""
    if not predictions:
        return ""
    best, *others = sorted(predictions, key=lambda one: -one.throughput_tokens_per_s)
    text = f"[bold]{best.schedule}[/bold] is fastest with {best.throughput_tokens_per_s:,.2f} tokens/s: {_busy(best)}"
    if not others:
        return f"{text}."
    other = others[0]
    return f"{text}; {other.schedule} comes next with {other.throughput_tokens_per_s:,.2f}: {_busy(other)}."


def _busy(one: Prediction) -> str:
    """The lane that decides, and how much of the time it works."""
    phase, name = (one.decode, "decode") if one.decode_s > one.prefill_s else (one.prefill, "prefill")
    share = phase.busiest_s / phase.span_s
    lane = one.lanes[phase.bottleneck]
    text = f"in {name} its busiest lane, {phase.bottleneck}, works {min(share, 1.0):.0%} of the time"
    return text + (f" and mostly waits for {lane.waited_most_for}" if share < 0.97 and lane.waited_most_for else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _basis(problem: Problem) -> str:
    counts = Counter(quantity.basis for _, quantity in problem.hardware.quantities())
    return ", ".join(f"{counts[basis]} {basis}" for basis in Basis if counts[basis])
