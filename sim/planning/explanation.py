"""Why a plan is the best, in words and numbers: what binds, what fills each memory, what a better machine would give.

Each change of the machine is planned anew, on a fine grid around the choice and a coarse one beyond it, for the
schedule chosen and the runner-up. Gains are of the objective's own value.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from sim.cost import UNIFIED, MemoryPlan, reserve_bytes
from sim.planning.policies import (
    ExpertPlaces,
    PolicyGrid,
    host_layers_in_words,
    in_words,
    placed_experts,
    remarks,
)
from sim.planning.search import Candidate, Choice, NothingFitsError, Objective, best_policy, in_essence, ranked
from sim.problem import Hardware, Policy, Problem
from sim.schedule import Tier, by_name
from sim.simulation import Prediction, predict
from traces.cli import in_processes
from traces.data_frame import Tabular
from traces.errors import InputError

FACTORS = (0.9, 1.1, 2.0)
DEVICE_MEMORY = "device memory"
RESOURCES: dict[str, tuple[str, ...]] = {
    "host memory": ("host_memory.capacity",),
    DEVICE_MEMORY: ("device_memory.capacity",),
    "link": ("link.peak", "link.h2d", "link.d2h", "link.duplex"),
    "DRAM bandwidth": ("host_memory.bandwidth",),
    "CPU rate": ("host.peak", "1 / host.request_overhead"),
    "GPU rate": ("device.peak",),
}
"""What each resource is on a machine; a time is divided by the factor."""

MEMORIES = ("host_memory", "device_memory")

NEAR_SIZES = (0.25, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1, 1.05, 1.1, 1.15, 1.4, 2, 4)
"""Multiples of the chosen μ that planning anew looks at."""

MOST_AGAIN = 20
"""Policies of one schedule that are simulated at most when planning anew."""

FULL = 0.98
"""Share of a memory above which it is called full."""

NO_GAIN = 0.005
"""Relative change below which a resource is said to give nothing, and up to which planning anew may be off."""


@dataclass(frozen=True, slots=True)
class Replanned:
    """The best policy of a machine that has `factor` times as much of one resource."""

    resource: str
    factor: float
    best: Candidate | None
    """None if nothing fits any more, or the machine allows no such number."""
    change: float | None
    """Relative change of the objective's value: above 0 is better."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"resource": self.resource, "factor": self.factor, "change": self.change, **_in_brief(self.best)}


RESERVE = "reserve"
"""What others keep of a memory, as a part of it."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """One memory: how much it holds, and what for; what others keep of it is a part too."""

    name: str
    capacity_bytes: int
    parts: dict[str, int]

    @staticmethod
    def of(memory: MemoryPlan, hardware: Hardware) -> "tuple[MemoryUse, ...]":
        """Every memory of a machine under a plan; device and host together where they are one."""
        holds: dict[str, int] = {
            Tier.DEVICE: int(hardware.device_memory.capacity_bytes),
            Tier.HOST: int(hardware.host_memory.capacity_bytes),
            Tier.PINNED: int(hardware.pinned_bytes),
        }
        plans: dict[str, Counter[str]] = {tier: Counter(parts) for tier, parts in memory.tiers().items()}
        for tier, kept in reserve_bytes(hardware).items():
            plans[tier][RESERVE] += kept
        if hardware.unified:
            plans[UNIFIED] = plans.pop(Tier.DEVICE) + plans.pop(Tier.HOST)
            holds = {UNIFIED: holds[Tier.HOST], Tier.PINNED: holds[Tier.PINNED]}
        return tuple(MemoryUse(name, limit, dict(+plans[name])) for name, limit in holds.items())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"capacity_bytes": self.capacity_bytes, "used_bytes": self.used_bytes, "parts": self.parts}

    @property
    def used_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def share(self) -> float:
        return self.used_bytes / self.capacity_bytes


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The next best, and why it lost: its seconds, and each lane's, for as many requests as the winner runs."""

    candidate: Candidate
    reason: str
    lanes_s: dict[str, tuple[float, float]]
    """Seconds busy a thousand tokens: of the winner, of the runner-up."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        lanes = {lane: {"best": mine, "this": theirs} for lane, (mine, theirs) in self.lanes_s.items()}
        return {**_in_brief(self.candidate), "reason": self.reason, "lanes_s_per_thousand_tokens": lanes}


@dataclass(frozen=True, slots=True)
class Explanation(Tabular):
    """All of it."""

    tiers: tuple[MemoryUse, ...]
    above_bound: float
    """Time beyond the lower bound of this very policy, as a share of it."""
    binding: tuple[str, ...]
    next_schedule: RunnerUp | None
    next_policy: RunnerUp | None
    replanned: tuple[Replanned, ...]
    experts: tuple[ExpertPlaces, ...]
    one_more_gb: Replanned | None = None
    """With so much more device memory, planned anew."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "binding": list(self.binding),
            "memory": {tier.name: tier.to_dict() for tier in self.tiers},
            "above_lower_bound": self.above_bound,
            "next_schedule": self.next_schedule and self.next_schedule.to_dict(),
            "next_policy": self.next_policy and self.next_policy.to_dict(),
            "replanned": [one.to_dict() for one in self.replanned],
            "experts": [asdict(one) for one in self.experts],
            "one_more_gb_of_device_memory": self.one_more_gb and self.one_more_gb.to_dict(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One for each machine that was planned anew."""
        return [one.to_dict() for one in self.replanned]


def _in_brief(one: Candidate | None) -> dict[str, Any]:
    found = one.to_dict() if one else {}
    return {name: found.get(name) for name in ("schedule", "policy", "throughput_tokens_per_s")}


def explain(
    choice: Choice, prediction: Prediction | None = None, *, jobs: int | None = None, replan: bool = True
) -> Explanation:
    """Explain a choice, and the simulator's prediction of it. `jobs` processes plan anew (default: one per core)."""
    prediction = prediction or predict(choice.best.setup)
    best = choice.best
    tiers = MemoryUse.of(best.setup.memory, choice.problem.hardware)
    runner_up = next((plan.best for plan in list(choice.plans.values())[1:]), None)
    rival = next((one for one in choice.plan.ranked if in_essence(one.policy) != in_essence(best.policy)), None)
    above, binding = best.bound_tokens_per_s / best.throughput_tokens_per_s - 1, tuple(_binding(prediction, tiers))
    next_schedule, next_policy = (_lost(best, one) if one else None for one in (runner_up, rival))
    *replanned, one_more_gb = _replan(choice, jobs) if replan else [None]
    experts = placed_experts(best.setup.placement)
    rivals = next_schedule, next_policy
    return Explanation(tiers, above, binding, *rivals, tuple(filter(None, replanned)), experts, one_more_gb)


def _binding(prediction: Prediction, tiers: Sequence[MemoryUse]) -> Iterator[str]:
    """The lane that each phase waits for, and the memories that are full."""
    for name, phase in (("prefill", prediction.prefill), ("decode", prediction.decode)):
        if phase.span_s:
            share = min(1.0, phase.busiest_s / phase.span_s)
            of_all = phase.span_s / prediction.total_s
            yield f"{name} ({of_all:.0%} of the time) is bound by {phase.bottleneck}, {share:.0%} busy"
    for tier in tiers:
        if tier.share >= FULL:
            largest = max(tier.parts, key=lambda part: tier.parts[part])
            yield f"{tier.name} memory is full ({tier.share:.1%}), mostly with {largest}"


def _lost(best: Candidate, other: Candidate) -> RunnerUp:
    """Compare lane by lane, in seconds for a thousand tokens."""
    mine, theirs = ({name: 1000 * s for name, s in one.busy_s_a_token.items()} for one in (best, other))
    both = {lane: (mine.get(lane, 0.0), theirs.get(lane, 0.0)) for lane in mine | theirs}
    slower = 1 - other.throughput_tokens_per_s / best.throughput_tokens_per_s
    text = f"{other.schedule} {other.policy} reaches {other.throughput_tokens_per_s:,.2f} tokens/s ({-slower:+.1%})"
    took = 1000 / other.throughput_tokens_per_s
    more, lane = max((late - early, lane) for lane, (early, late) in both.items())
    idle = took - max(late for _, late in both.values())
    if more > 0.02 * took:
        text += f": {lane} works {both[lane][1]:,.1f} s instead of {both[lane][0]:,.1f} s for a thousand tokens"
    if idle > 0.05 * took:
        text += f"; its busiest lane waits {idle / took:.0%} of the time"
    return RunnerUp(other, text, both)


def _replan(choice: Choice, jobs: int | None) -> list[Replanned]:
    """Changes are relative to the machine as it is, planned in the same way; the last is one more GB on the device."""
    changes = [(resource, factor) for resource in RESOURCES for factor in FACTORS]
    one_more_gb = (DEVICE_MEMORY, 1 + 1e9 / choice.problem.hardware.device_memory.capacity_bytes)
    changes.append(one_more_gb)  # a few experts a layer: too little for the grid alone to see
    work = partial(_replanned, replace(choice, plans={}), list(choice.plans)[:2], choice.best)
    asked = [(next(iter(RESOURCES)), 1.0), *changes]
    same, *others = in_processes(work, [(change, change is one_more_gb) for change in asked], jobs)
    before = max(_worth(one, choice.objective) for one in (choice.best, same) if one is not None)
    worth = (None if best is None else _worth(best, choice.objective) / before - 1 for best in others)
    return [
        Replanned(resource, factor, best, None if change is None else without_anomaly(change, factor))
        for (resource, factor), best, change in zip(changes, others, worth, strict=True)
    ]


def without_anomaly(change: float, factor: float) -> float:
    """What more of a resource gives, or less takes: work that starts earlier may meet other work, and end later.

    But what is more may be left unused, and what is less is no help.
    """
    return max(0.0, change) if factor > 1 else min(0.0, change)


def _replanned(
    choice: Choice, schedules: Sequence[str], best: Candidate, asked: tuple[tuple[str, float], bool]
) -> Candidate | None:
    """The best of a changed machine, if so asked refined; None if nothing fits or it allows no such number."""
    (change, refine), policy = asked, best.policy
    try:
        changed = replace(choice.problem, hardware=scaled(choice.problem.hardware, *change))
    except InputError:
        return None
    options: dict[str, Any] = {"objective": choice.objective, "num_requests": choice.num_requests}
    options |= {
        "most_joules": choice.most_joules,
        "tolerance": NO_GAIN,
        "mix_attention": policy.attention_on_device > 0,
    }
    found = _as_it_is(best, changed)  # what is looked at anew is less than what was at first
    for name in schedules:
        splits = by_name(name).system.splits_experts
        grid = near_in_few(policy) if splits else near(policy)
        options["refine"] = refine and splits
        with suppress(NothingFitsError):
            found.append(best_policy(changed, by_name(name), grid=grid, most_simulations=MOST_AGAIN, **options).best)
    best_first = ranked(found, choice.objective, choice.most_joules)
    return next((one for one in best_first if choice.allows(one)), None)


def _as_it_is(best: Candidate, changed: Problem) -> list[Candidate]:
    """The best policy unchanged on another machine, with nothing known of its bound; nothing if it does not fit."""
    setup = replace(best.setup, problem=changed)
    if setup.shortages:
        return []
    found = Candidate.of(setup, best.bound_tokens_per_s)
    return [replace(found, bound_tokens_per_s=max(found.throughput_tokens_per_s, found.bound_tokens_per_s))]


def scaled(hardware: Hardware, resource: str, factor: float) -> Hardware:
    """A machine with `factor` times as much of a resource. Raises InputError where it allows no such number."""
    paths = RESOURCES[resource]
    if hardware.unified and paths[0].partition(".")[0] in MEMORIES:  # which are one
        number = paths[0].partition(".")[2]
        paths = tuple(f"{memory}.{number}" for memory in MEMORIES)
    for path in paths:
        name, by = (path.removeprefix("1 / "), 1 / factor) if path.startswith("1 / ") else (path, factor)
        hardware = hardware.scaled(name, by)
    return hardware


def near(policy: Policy) -> PolicyGrid:
    """Sizes close to the policy's, and some from a quarter to four times as much."""
    size, count = policy.micro_batch_size, policy.num_micro_batches
    sizes = {max(1, round(size * factor)) for factor in NEAR_SIZES}
    counts = {max(1, round(count * factor)) for factor in (0.25, 0.5, 0.7, 1.4, 2, 4)}
    counts |= {max(1, count + step * max(1, count // 24)) for step in range(-4, 5)}
    shares = tuple(sorted({0.0, 0.5, 1.0, policy.kv_on_device}))
    grid = PolicyGrid(tuple(sorted(sizes)), tuple(sorted(counts)), shares, pages=(0.5, 1.0))
    return replace(grid, weight_bits=policy.weight_bits, kv_bits=policy.kv_bits)


def near_in_few(policy: Policy) -> PolicyGrid:
    """Half, once and twice the policy's sizes in its own groups: experts may be anywhere."""
    size, count = policy.micro_batch_size, policy.num_micro_batches
    sizes, counts = ({max(1, round(one * factor)) for factor in (0.5, 1, 2)} for one in (size, count))
    grid = PolicyGrid(tuple(sorted(sizes)), tuple(sorted(counts)), groups=(policy.groups or 0,))
    grid = replace(grid, weight_bits=policy.weight_bits, kv_bits=policy.kv_bits)
    return replace(grid, prefill_experts=policy.prefill_experts, stream_non_experts=policy.stream_non_experts)


def _worth(one: Candidate, objective: Objective) -> float:
    """What the objective measures, larger is better."""
    if objective is Objective.ENERGY:
        return 1 / one.joules_per_token
    others = {Objective.LATENCY: 1 / one.token_s, Objective.MEMORY: 1 / one.device_bytes}
    return others.get(objective, one.throughput_tokens_per_s)


def sentences(choice: Choice, why: Explanation) -> list[str]:
    """The explanation in words, a sentence each."""
    effort = choice.effort
    found = [
        f"{choice.best.schedule}: {'; '.join(why.binding)}.",
        f"It takes {why.above_bound:.1%} longer than the lower bound of this policy; {effort['simulated']:,} of "
        f"{effort['candidates']:,} policies that fit were worth simulating.",
    ]
    found += [f"{one[0].upper()}{one[1:]}." for one in remarks(choice.best.setup)]
    on_host = host_layers_in_words(choice.best.setup.placement)
    found += [f"{on_host.capitalize()}: what the device has no room for runs there, prompts too."] if on_host else []
    found += [f"Experts: {text}." for text in in_words(why.experts)]
    rivals = {"schedule": why.next_schedule, "policy": why.next_policy}
    found += [f"Next best {what}: {one.reason}." for what, one in rivals.items() if one]
    if why.one_more_gb is not None:
        found.append(_one_more(choice, why.one_more_gb))
    return [*found, _gains(why.replanned)] if why.replanned else found


def _one_more(choice: Choice, again: Replanned) -> str:
    if again.change is None or again.change <= NO_GAIN:
        return "One more GB of device memory would give nothing, planned anew."
    gain = again.change * choice.best.throughput_tokens_per_s
    of_all = f"{gain:,.2f} tokens/s more ({again.change:+.1%})"
    what = of_all if choice.objective is Objective.THROUGHPUT else f"{again.change:+.1%} of the objective"
    return f"One more GB of device memory would give {what}, planned anew."


def _gains(replanned: Sequence[Replanned]) -> str:
    twice = {one.resource: one.change for one in replanned if one.factor == max(FACTORS) and one.change is not None}
    helpful = sorted(((name, gain) for name, gain in twice.items() if gain > NO_GAIN), key=lambda one: -one[1])
    idle = [name for name in twice if name not in dict(helpful)]
    text = ", ".join(f"{name} {gain:+.0%}" for name, gain in helpful) or "nothing"
    return f"Twice as much of one resource would give: {text}" + (f"; no gain from {', '.join(idle)}." if idle else ".")
