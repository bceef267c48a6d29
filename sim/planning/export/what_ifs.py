"""What if the machine, the batch or the experts' width were another: every combination answered beforehand.

Policies are planned anew, on a thinned grid, for each batch, width and size of host memory, and for each of the faster
rates; then all of them are simulated with all rates, and each combination has the best of those that fit it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from sim.cost import Setup
from sim.planning.explanation import scaled
from sim.planning.policies import PolicyGrid
from sim.planning.search import Candidate, Choice, NothingFitsError, best_policy, ranked
from sim.problem import Hardware, Policy, Problem
from sim.schedule import Tier, by_name
from traces.cli import in_processes
from traces.errors import InputError
from traces.page import SliderAxis, SliderMeasure, Sliders

FACTORS_OF_A_MACHINE = (0.5, 1.0, 2.0)
FACTORS_OF_A_BATCH = (0.25, 1.0, 4.0)
NARROWER = (4.0, 8.0)
"""Widths of experts beside the plan's own, where that is more."""
MOST_SCHEDULES = 2
"""So many of the schedules are planned with, the best ones."""
MOST_SIZES = 6
"""So many micro-batch sizes, and numbers of micro-batches, are looked at."""
MOST_EACH = 4
"""Policies of a schedule that are simulated while planning anew."""
GAIN = 0.01
"""Relative gain below which another is not simulated."""

LINK, DRAM, HOST_MEMORY = "link", "DRAM bandwidth", "host memory"
OF_A_MACHINE: dict[str, tuple[str, Callable[[Hardware], float]]] = {
    LINK: ("GB/s", lambda one: float(one.link.h2d_bytes_per_s) / 1e9),
    DRAM: ("GB/s", lambda one: float(one.host_memory.bandwidth_bytes_per_s) / 1e9),
    HOST_MEMORY: ("GB", lambda one: float(one.host_memory.capacity_bytes) / 1e9),
}
"""What of a machine is changed, as planning anew names it: its unit, and what a machine has of it."""

MEASURES = (
    SliderMeasure("tokens/s of all requests", digits=2),
    SliderMeasure("decode tokens/s", digits=2),
    SliderMeasure("first token", "s", 2),
    SliderMeasure("requests at once", digits=0),
    SliderMeasure("device memory", "GB", 1),
    SliderMeasure("host memory", "GB", 1),
    SliderMeasure("schedule"),
)

Named = tuple[str, Policy]
"""A policy and the schedule it is of."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What is asked of one time planning anew, or of one time simulating."""

    factors: dict[str, float]
    """Of the machine."""
    expert_bits: float
    requests: int | None = None
    policies: tuple[Named, ...] = ()


def slider_grid(choice: Choice, jobs: int | None, done: Callable[[int, int], object]) -> Sliders:
    """Every combination answered; `done` is told how much of how much is done."""
    batches, widths = _batches(choice), _widths(choice)
    rates = list(product(FACTORS_OF_A_MACHINE, repeat=2))
    plans = list(_to_plan(batches, widths))
    steps = len(plans) + len(rates) * len(widths)
    policies: dict[float, set[Named]] = defaultdict(set)
    for at, found in enumerate(in_processes(partial(_planned_anew, choice), plans, jobs)):
        policies[plans[at].expert_bits].update(found)
        done(at + 1, steps)
    policies[widths[-1]].add((choice.best.schedule, choice.best.policy))
    runs = [
        Changed({LINK: link, DRAM: dram}, bits, policies=tuple(sorted(policies[bits], key=str)))
        for (link, dram), bits in product(rates, widths)
    ]
    simulated = dict[tuple[float, float, float], list[Candidate]]()
    for at, candidates in enumerate(in_processes(partial(_simulated, choice.problem), runs, jobs)):
        simulated[runs[at].factors[LINK], runs[at].factors[DRAM], runs[at].expert_bits] = candidates
        done(len(plans) + at + 1, steps)
    now = (1.0, 1.0, 1.0, choice.best.num_requests, widths[-1])
    points = list[tuple[Any, ...] | None]()
    for combination in product(FACTORS_OF_A_MACHINE, FACTORS_OF_A_MACHINE, FACTORS_OF_A_MACHINE, batches, widths):
        link, dram, memory, requests, bits = combination
        room = memory * int(choice.problem.hardware.host_memory.capacity_bytes)
        fitting = [one for one in simulated[link, dram, bits] if _fits(one, requests, room)]
        best = choice.best if combination == now else ranked(fitting, choice.objective)[0] if fitting else None
        points.append(None if best is None else _measures(best))
    axes = (
        *_machine_axes(choice.problem.hardware),
        SliderAxis("requests at once, at most", "", tuple(map(float, batches)), batches.index(now[3])),
        SliderAxis("experts' weights", "bits", tuple(widths), len(widths) - 1),
    )
    return Sliders("What if", axes, MEASURES, tuple(points), "Nothing fits here, or beside here.", _note(choice))


def _batches(choice: Choice) -> list[int]:
    return sorted({max(1, round(choice.best.num_requests * factor)) for factor in FACTORS_OF_A_BATCH})


def _widths(choice: Choice) -> list[float]:
    bits = choice.best.policy.widths(choice.problem.model).experts
    return [*(one for one in NARROWER if one < bits), bits]


def _to_plan(batches: list[int], widths: list[float]) -> Iterator[Changed]:
    """Machines that differ in one thing from the one that is planned for: other sizes of memory, faster rates."""
    faster = max(FACTORS_OF_A_MACHINE)
    machines = [{HOST_MEMORY: factor} for factor in FACTORS_OF_A_MACHINE] + [{LINK: faster}, {DRAM: faster}]
    for factors, requests, bits in product(machines, batches, widths):
        yield Changed(factors, bits, requests)


def _planned_anew(choice: Choice, asked: Changed) -> list[Named]:
    """The best policy of each schedule; of nothing that fits, none."""
    planned, found = choice.best.policy, list[Named]()
    own = asked.expert_bits == planned.widths(choice.problem.model).experts
    bits = planned.weight_bits if own else asked.expert_bits
    grid = PolicyGrid(weight_bits=bits, kv_bits=planned.kv_bits).thinned(MOST_SIZES)
    options: dict[str, Any] = {"refine": False, "most_simulations": MOST_EACH, "tolerance": GAIN, "grid": grid}
    with suppress(InputError):  # a number that the machine cannot have
        problem = _on(choice.problem, asked.factors)
        for name in list(choice.plans)[:MOST_SCHEDULES]:
            with suppress(NothingFitsError):
                best = best_policy(problem, by_name(name), num_requests=asked.requests, **options).best
                found.append((name, best.policy))
    return found


def _simulated(problem: Problem, asked: Changed) -> list[Candidate]:
    """All policies with other rates, however much host memory they need."""
    try:
        changed = _on(problem, {**asked.factors, HOST_MEMORY: max(FACTORS_OF_A_MACHINE)})
    except InputError:
        return []
    setups = (Setup(changed, by_name(name), policy) for name, policy in asked.policies)
    return [Candidate.of(one, math.inf) for one in setups if not one.shortages]


def _on(problem: Problem, factors: dict[str, float]) -> Problem:
    hardware = problem.hardware
    for name, factor in factors.items():
        hardware = hardware if factor == 1 else scaled(hardware, name, factor)
    return replace(problem, hardware=hardware)


def _fits(one: Candidate, requests: int, host_bytes: float) -> bool:
    return one.num_requests <= requests and one.setup.memory.peak_bytes()[Tier.HOST] <= host_bytes


def _measures(one: Candidate) -> tuple[Any, ...]:
    memory = {tier: size / 1e9 for tier, size in one.setup.memory.peak_bytes().items()}
    rates = (one.throughput_tokens_per_s, one.decode_tokens_per_s, one.time_to_first_token_s)
    return (*rates, one.num_requests, memory[Tier.DEVICE], memory[Tier.HOST], one.schedule)


def _machine_axes(hardware: Hardware) -> Iterator[SliderAxis]:
    for name, (unit, of) in OF_A_MACHINE.items():
        now = of(hardware)
        values = tuple(now * factor for factor in FACTORS_OF_A_MACHINE)
        yield SliderAxis(name, unit, values, FACTORS_OF_A_MACHINE.index(1.0))


def _note(choice: Choice) -> str:
    return (
        f"Policies of {' and '.join(list(choice.plans)[:MOST_SCHEDULES])} were planned anew on a coarse grid for each "
        "batch, width and memory, and simulated with all rates: a thorough plan may find more. Simulated, not measured."
    )
