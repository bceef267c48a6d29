"""What `plan` tells a person: the choice, its rivals, where the bytes are, and what a better machine would give."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sim.planning.explanation import FACTORS, RESOURCES, Explanation, MemoryUse, Replanned, sentences
from sim.planning.planner import Choice
from sim.planning.search import TOLERANCE, Candidate
from sim.problem import Workload
from sim.schedule import Tier
from sim.simulation import Prediction
from traces.cli import console


def print_plan(choice: Choice, prediction: Prediction, top: int, wall_s: float) -> None:
    """Print the choice, the best candidates and every schedule's own best."""
    out, problem, best = console(), choice.problem, choice.best
    out.print(
        f"[bold]{problem.model.name} on {problem.hardware.name}[/bold], {problem.workload.name}: "
        f"{_length(problem.workload)}, {problem.workload.gen_len} generated. Simulated."
    )
    out.print(
        f"Best {choice.objective}: [bold]{best.schedule}[/bold] with {_policy(best)}: "
        f"[bold]{best.throughput_tokens_per_s:,.2f} tokens/s[/bold], {best.token_s:.3g} s a token of a request "
        f"(confirmed by the simulator: {prediction.throughput_tokens_per_s:,.2f})"
    )
    out.print(_effort(choice, wall_s))
    out.print(_candidates([plan.best for plan in choice.plans.values()], "each schedule's best"))
    if len(choice.ranked) > 1:
        out.print(_candidates(choice.ranked[:top], f"best {min(top, len(choice.ranked))} of those simulated"))
    for name, reason in choice.failed.items():
        out.print(f"does not fit: {reason}" if reason.startswith(name) else f"{name} does not fit: {reason}")


def print_explanation(choice: Choice, why: Explanation) -> None:
    """Print where the bytes are, what a change of the machine would do, and the reasons in words."""
    out = console()
    out.print(_memory(why.tiers))
    if why.replanned:
        out.print(_changes(why.replanned))
    for sentence in sentences(choice, why):
        out.print(sentence)


def _length(workload: Workload) -> str:
    if workload.padded:
        return f"prompts padded to {workload.max_prompt_tokens} tokens"
    return f"prompts of {workload.mean_prompt_tokens:.0f} tokens on average and {workload.max_prompt_tokens} at most"


def _effort(choice: Choice, wall_s: float) -> str:
    text = (
        f"{choice.considered:,} policies considered, {choice.feasible:,} fit and were bounded, {choice.simulated:,} "
        f"simulated in {wall_s:.1f} s; no other can be more than {TOLERANCE:.1%} better"
    )
    if choice.unsettled:
        text += f", but for {choice.unsettled:,} that a limit on simulations left out"
    return f"{text}."


def _policy(one: Candidate) -> str:
    policy = one.setup.policy
    words = [f"{policy} requests", f"attention on the {policy.attention}"]
    experts = policy.resident_experts(max(one.setup.problem.model.layers, key=lambda layer: layer.num_experts))
    if experts:
        words.append(f"{experts} experts a layer on the device")
    if policy.kv_on_device:
        words.append(f"{policy.kv_on_device:.0%} of the KV cache there")
    if policy.pages:
        words.append(f"{policy.pages} pages")
    if policy.pin_weights:
        words.append("weights page-locked")
    return ", ".join(words)


def _candidates(some: Sequence[Candidate], title: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for name in ("schedule", "policy"):
        table.add_column(name, no_wrap=True)
    for heading in ("tokens/s", "at best", "s/token", "prefill", "decode", "busiest", "GB device/host/pinned"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in some:
        memory, result = one.prediction.memory_peak_bytes, one.prediction
        table.add_row(
            one.schedule,
            _short(one),
            f"{one.throughput_tokens_per_s:,.2f}",
            f"{one.bound_tokens_per_s:,.2f}",
            f"{one.token_s:.3g}",
            f"{result.prefill_s:,.0f} s",
            f"{result.decode_s:,.0f} s",
            result.bottleneck,
            " / ".join(f"{memory[tier] / 1e9:.1f}" for tier in Tier),
        )
    return table


def _short(one: Candidate) -> str:
    policy = one.setup.policy
    words = [f"{policy} {policy.attention}"]
    if policy.experts_on_device:
        words.append(f"r_w {policy.experts_on_device:.3g}")
    if policy.kv_on_device:
        words.append(f"r_c {policy.kv_on_device:.3g}")
    if policy.pages:
        words.append(f"{policy.pages} pages")
    if policy.pin_weights:
        words.append("locked")
    return " ".join(words)


def _memory(tiers: Sequence[MemoryUse]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="where the bytes are (GB)", title_justify="left")
    table.add_column("memory", no_wrap=True)
    table.add_column("used", justify="right", no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    table.add_column("for")
    for tier in tiers:
        parts = sorted(tier.parts.items(), key=lambda part: -part[1])
        text = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts)
        table.add_row(tier.name, f"{tier.used_bytes / 1e9:.1f}", f"{tier.capacity_bytes / 1e9:.1f}", text)
    return table


def _changes(replanned: Sequence[Replanned]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="planned anew with other machines", title_justify="left")
    table.add_column("resource", no_wrap=True)
    for factor in FACTORS:
        table.add_column(f"× {factor:g}", justify="right", no_wrap=True)
    table.add_column(f"policy at × {max(FACTORS):g}")
    found = {(one.resource, one.factor): one for one in replanned}
    for resource in RESOURCES:
        row = [found[resource, factor] for factor in FACTORS]
        last = row[-1].best
        table.add_row(resource, *(_change(one) for one in row), f"{last.schedule} {_short(last)}" if last else "")
    return table


def _change(one: Replanned) -> str:
    return "nothing fits" if one.change is None else f"{round(one.change, 3) + 0.0:+.1%}"
