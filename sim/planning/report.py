"""What `plan` tells a person: the choice, its rivals, where the bytes are, and what a better machine would give."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sim.cost import Setup
from sim.planning.explanation import FACTORS, RESOURCES, Explanation, MemoryUse, Replanned, sentences
from sim.planning.policies import host_layers_in_words, in_words, placed_experts
from sim.planning.search import MEANING, TOLERANCE, Candidate, Choice
from sim.problem import Policy, Problem
from sim.schedule import Place
from sim.simulation import WITHIN, Band, Prediction, in_sentences
from traces.cli import PROSE, TEXT, WORDS, Report

SPEEDS = {"prefill tokens/s": ",.1f", "first token": ">", "decode tokens/s": ",.1f", "a request": ",.3g"}
"""Columns of `speeds`."""

DURATIONS = {"prefill": ">", "decode": ">"}

DISK_STANDS_BY = " The machine's disk is not used: no schedule reads weights from one."

PEAKS = {f"GB {tier}": ",.1f" for tier in ("device", "host", "pinned")}
"""Columns of `peaks_gb`."""


def print_plan(
    choice: Choice, why: Explanation, prediction: Prediction, top: int, wall_s: float, bands: Mapping[str, Band]
) -> None:
    """Print the choice, every schedule's own best, the best candidates, where the bytes are, and the reasons."""
    out, best = Report(), choice.best
    out.say(headline(choice.problem))
    out.say(
        f"Best {choice.objective}: [bold]{best.schedule}[/bold] with {_in_words(best)}: "
        f"[bold]{best.throughput_tokens_per_s:,.2f} tokens/s[/bold]{_within(bands)}, {best.token_s:.3g} s a token of a "
        f"request (confirmed by the simulator: {prediction.throughput_tokens_per_s:,.2f})"
    )
    out.say(f"{choice.objective.capitalize()} means {MEANING[choice.objective]}.")
    out.say(_effort(choice, wall_s))
    core = {"schedule": TEXT, "policy": WORDS, "tokens/s": ",.2f"}
    more = [{"at most": ",.2f", "busiest": TEXT, **DURATIONS}, PEAKS]
    within = {WITHIN: ">"} if bands else {}
    each = (_candidate(plan.best, bands.get(name)) for name, plan in choice.plans.items())
    out.table([{**core, **within, **SPEEDS}, *more], each, "each schedule's best", keys=2)
    if len(choice.ranked) > 1:
        shown = choice.ranked[:top]
        out.table([{**core, **SPEEDS}, *more], map(_candidate, shown), f"best {len(shown)} of those simulated", keys=2)
    for name, reason in choice.failed.items():
        out.say(f"does not fit: {reason}" if reason.startswith(name) else f"{name} does not fit: {reason}")
    say_where_bytes_are(out, why.tiers)
    if why.replanned:
        changes = {f"× {factor:g}": ">" for factor in FACTORS}
        headings = {"resource": TEXT, **changes, f"best at × {max(FACTORS):g}": TEXT}
        out.table(headings, _changes(why.replanned), "planned anew with other machines")
    out.say(*sentences(choice, why), *(in_sentences(bands) if bands else ()))


def say_where_bytes_are(out: Report, tiers: Sequence[MemoryUse]) -> None:
    """What each memory holds, the most first."""
    rows = ((one.name, one.used_bytes / 1e9, one.capacity_bytes / 1e9, _parts(one.parts)) for one in tiers)
    out.table({"memory": TEXT, "used": ",.1f", "of": ",.1f", "for": PROSE}, rows, "where the bytes are (GB)")


def headline(problem: Problem) -> str:
    """What is asked, in a sentence."""
    workload = problem.workload
    mean, longest = workload.mean_prompt_tokens, workload.max_prompt_tokens
    length = f"padded to {longest}" if workload.padded else f"of {mean:.0f} on average and {longest} at most"
    return (
        f"[bold]{problem.model.name} on {problem.hardware.name}[/bold], {workload.name}: prompts {length} tokens, "
        f"{workload.gen_len} generated. Simulated.{'' if problem.hardware.disk is None else DISK_STANDS_BY}"
    )


def title(problem: Problem) -> str:
    """What a picture shows."""
    workload = problem.workload
    how = f"{'padded, ' if workload.padded else ''}{workload.gen_len} tokens generated"
    return f"{problem.model.name} on {problem.hardware.name}, {workload.name} ({how})"


def in_short(policy: Policy) -> str:
    """A policy in a cell, as `75×21 cpu 42 pages locked`."""
    shares = {"r_w": policy.experts_on_device, "r_h": policy.experts_on_host, "r_f": policy.experts_fetched}
    shares |= {"r_c": policy.kv_on_device, "r_a": policy.attention_on_device}
    words = [f"{policy} {policy.attention}", *(f"{name} {share:.3g}" for name, share in shares.items() if share)]
    if policy.host_layers:
        words.append(f"r_h {policy.host_layers[1] - policy.host_layers[0]} layers")
    if policy.layers_on_host:
        words.append(f"{policy.layers_on_host[1] - policy.layers_on_host[0]} layers on host")
    if policy.pages:
        words.append(f"{policy.pages} pages")
    if policy.groups:
        words.append(f"{policy.groups} groups")
    if policy.prefill_experts is Place.CPU:
        words.append("prefill cpu")
    if policy.stream_non_experts:
        words.append("all stream")
    if policy.defer_experts:
        words.append(f"defers {policy.defer_experts}")
    if policy.pin_weights:
        words.append("locked" if policy.pin_weights == 1 else f"locked {policy.pin_weights:.1%}")
    return " ".join(words)


def speeds(one: Prediction) -> tuple[Any, ...]:
    """Prompt tokens a second, when the first token is there, later tokens a second of all requests, and of each."""
    decode = one.decode_tokens_per_s
    of_each = decode and decode / one.num_requests
    return one.prefill_tokens_per_s, seconds(one.time_to_first_token_s), decode, of_each


def peaks_gb(setup: Setup) -> tuple[float, ...]:
    """The most that each memory holds: one device, host, page-locked."""
    return tuple(size / 1e9 for size in setup.memory.peak_bytes().values())


def seconds(value: float) -> str:
    """Three digits of a time."""
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def _within(bands: Mapping[str, Band]) -> str:
    """The band of the first, the best, in parentheses."""
    return next((f" ({one.throughput_tokens_per_s})" for one in bands.values()), "")


def _candidate(one: Candidate, band: Band | None = None) -> tuple[Any, ...]:
    within = (str(band.throughput_tokens_per_s),) if band else ()
    rates = (one.throughput_tokens_per_s, *within, *speeds(one), one.bound_tokens_per_s)
    times = (one.bottleneck, seconds(one.prefill_s), seconds(one.decode_s))
    return one.schedule, in_short(one.policy), *rates, *times, *peaks_gb(one.setup)


def _effort(choice: Choice, wall_s: float) -> str:
    feasible, considered, simulated, unsettled = choice.effort.values()
    left_out = f", but for {unsettled:,} that a limit on simulations left out" if unsettled else ""
    return (
        f"{considered:,} policies considered, {feasible:,} fit and were bounded, {simulated:,} simulated in "
        f"{wall_s:.1f} s; no other can be more than {TOLERANCE:.1%} better{left_out}."
    )


def _in_words(one: Candidate) -> str:
    policy = one.setup.policy
    experts = list(in_words(placed_experts(one.setup.placement)))
    on_host, splits = host_layers_in_words(one.setup.placement), one.setup.schedule.system.splits_experts
    words = {
        f"{policy} requests": True,
        f"attention on the {policy.attention}{_beside(one.setup)}": True,
        on_host: on_host,
        f"experts {'; '.join(experts)}": experts and (policy.experts_on_device or splits),
        f"computed for {policy.groups} groups of micro-batches": policy.groups,
        "prefill of the host's on the host": policy.prefill_experts is Place.CPU,
        "all weights streaming": policy.stream_non_experts,
        f"{policy.kv_on_device:.0%} of the KV cache there": policy.kv_on_device,
        f"{policy.pages} pages": policy.pages,
        "weights page-locked": policy.pin_weights == 1,
        f"{policy.pin_weights:.0%} of the weights page-locked": 0 < policy.pin_weights < 1,
    }
    return ", ".join(text for text, holds in words.items() if holds)


def _beside(setup: Setup) -> str:
    """How many micro-batches attend on the device beside others on the CPU."""
    there, n = setup.shape.attending_on_device, setup.shape.num_micro_batches
    return f", of {there} of {n} micro-batches on the gpu" if there else ""


def _parts(sizes: Mapping[str, int]) -> str:
    largest_first = sorted(sizes.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in largest_first)


def _changes(replanned: Sequence[Replanned]) -> Iterator[tuple[str, ...]]:
    found = {(one.resource, one.factor): one for one in replanned}
    for resource in RESOURCES:
        row = [found[resource, factor] for factor in FACTORS]
        last = row[-1].best
        yield resource, *map(_change, row), f"{last.schedule} {in_short(last.setup.policy)}" if last else ""


def _change(one: Replanned) -> str:
    return "nothing fits" if one.change is None else f"{round(one.change, 3) + 0.0:+.1%}"
