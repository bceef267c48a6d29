"""The best policy: the whole grid bounded, then simulated exactly from the best bound on until no bound beats the best.

Nothing is skipped but what its bound excludes: a candidate is left out only if even its lower bound of the time does
not beat the best found by more than `TOLERANCE`, which is what the simulator's own numbers are good for. Where a limit
on the number of simulations is given and met, `Plan.unsettled` says how many candidates might have been better.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sim.cost import Setup
from sim.hrm import SCHEDULE, search_policies
from sim.planning.policies import (
    PolicyGrid,
    Space,
    candidates_of,
    host_layer_candidates,
    usually_locked,
)
from sim.planning.search.best_first import TOLERANCE, Plan, at_best
from sim.planning.search.candidate import Candidate
from sim.planning.search.objectives import Objective, ranked
from sim.planning.search.refusals import AboveLimitError, NothingFitsError, check_limit, nothing_fits
from sim.problem import NoRoomError, Policy, Problem
from sim.schedule import ExpertPlace, Schedule, by_name, registered
from traces.cli import in_processes
from traces.data_frame import Tabular

NARROWER_BITS = (8.0, 4.0)
"""Widths of weights that are tried where nothing fits."""

MOST_SIMULATIONS = 2000
"""Policies of a schedule that are simulated at most, if no other limit is given: some tens of seconds. Several times
what any problem has needed that we know; one that needs more says how many were left out."""

NEAR = ((0.2, 16),)
NEAR_SPLIT = ((0.2, 7), (0.05, 5))
"""Within which share of the best sizes others are looked at, and at how many; where experts are in several places, with
these near the best ones too, which is much for one fine grid, in two steps."""

FINER = (1 / 32, 1 / 128)
"""Steps in which places of experts are looked at near the best ones."""
PARTS = (0.5, 0.75, 1.0)
"""Of the most residents that fit there; at other sizes the most alone, as fewer are rarely better."""


@dataclass(frozen=True, slots=True)
class Choice(Tabular):
    """The best policy of several schedules, and each one's own."""

    problem: Problem
    objective: Objective
    plans: dict[str, Plan]
    """By schedule, the best first; those that fit the machine."""
    failed: dict[str, str]
    """Why nothing fits, by schedule."""
    num_requests: int | None = None
    """What was asked for exactly, if anything."""
    most_joules: float | None = None
    """Joules a token that the best may use at most, if that is given."""
    above: dict[str, Plan] = field(default_factory=dict)
    """Plans of schedules that fit, none of whose policies uses so few, by schedule."""

    @property
    def plan(self) -> Plan:
        return next(iter(self.plans.values()))

    @property
    def best(self) -> Candidate:
        return self.plan.best

    @property
    def ranked(self) -> list[Candidate]:
        """All simulated candidates of all schedules, the best first."""
        return ranked([one for plan in self.plans.values() for one in plan.ranked], self.objective, self.most_joules)

    def allows(self, one: Candidate) -> bool:
        """Whether a candidate uses no more joules than it may."""
        return self.most_joules is None or one.joules_per_token <= self.most_joules

    @property
    def effort(self) -> dict[str, int]:
        """How many policies of all schedules fit and were bounded, were looked at, simulated, and left unsettled."""
        of = {"candidates": "feasible", "considered": "considered", "simulated": "simulated", "left_out": "unsettled"}
        return {name: sum(getattr(plan, field) for plan in self.plans.values()) for name, field in of.items()}

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """The best candidate as JSON values, how it was found, and the `top` best."""
        return {
            **self.best.to_dict(),
            "objective": self.objective.value,
            **self.effort,
            "infeasible": self.failed,
            "top": [one.to_dict() for one in self.ranked[:top]],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One for each simulated candidate, the best first."""
        return [one.to_dict() for one in self.ranked]


def plan(
    problem: Problem,
    schedules: Sequence[str] | None = None,
    *,
    objective: Objective = Objective.THROUGHPUT,
    jobs: int | None = None,
    **options: Any,
) -> Choice:
    """The best policy of any of the schedules (default: all); `jobs` processes share the work (one per core).

    Options are those of `best_policy`. Raises InputError for an unknown schedule, and NothingFitsError, with the
    smallest change that would help, if no policy of any of them fits.
    """
    schedules = [by_name(name).name for name in (registered() if schedules is None else schedules)]
    work = partial(_try, problem, objective, {"mix_attention": options.get("refine", True), **options})
    longest_first = sorted(schedules, key=lambda name: -by_name(name).system.experts.bit_count())
    done = dict(zip(longest_first, in_processes(work, longest_first, jobs), strict=True))
    found = {name: done[name] for name in schedules}
    plans = {name: one for name, one in found.items() if isinstance(one, Plan)}
    failed = {name: one for name, one in found.items() if isinstance(one, NothingFitsError)}
    above = {name: one for name, one in failed.items() if isinstance(one, AboveLimitError)}
    if not plans:
        if above:
            least = min(above.values(), key=lambda one: one.least_joules)
            raise AboveLimitError(
                str(least), least.least_joules, [plan for one in above.values() for plan in one.plans]
            )
        nearest = min(failed.values(), key=lambda one: (one.is_on_device, one.short_bytes))
        text = f"{nearest}{_narrower(problem, schedules, options)}"
        raise NothingFitsError(text, nearest.short_bytes, is_on_device=nearest.is_on_device)
    best_first = [one.schedule for one in ranked([one.best for one in plans.values()], objective)]
    reasons = {name: str(one) for name, one in failed.items()}
    best = {name: plans[name] for name in best_first}
    asked = options.get("num_requests"), options.get("most_joules")
    return Choice(problem, objective, best, reasons, *asked, {name: one.plans[0] for name, one in above.items()})


def _try(problem: Problem, objective: Objective, options: dict[str, Any], name: str) -> "Plan | NothingFitsError":
    try:
        return best_policy(problem, by_name(name), objective=objective, **options)
    except NothingFitsError as error:
        return error


def _narrower(problem: Problem, schedules: Sequence[str], options: dict[str, Any]) -> str:
    """Which usual width of the experts would fit, in words."""
    grid = (options.get("grid") or PolicyGrid()).with_sizes(
        options.get("micro_batch_size"), options.get("num_micro_batches")
    )
    native = Policy(1, 1, weight_bits=grid.weight_bits).widths(problem.model).experts
    for bits in (bits for bits in NARROWER_BITS if bits < native):
        narrower = replace(grid, weight_bits=bits)
        fitting = list[str]()
        with suppress(NoRoomError):  # in no width
            fitting = [name for name in schedules if len(candidates_of(problem, by_name(name), narrower))]
        if fitting:
            return f"; with weight_bits {bits:g} {', '.join(fitting)} would fit"
    return f"; nor would it with weight_bits {NARROWER_BITS[-1]:g}" if native > NARROWER_BITS[-1] else ""


def best_policy(
    problem: Problem,
    schedule: Schedule,
    *,
    objective: Objective = Objective.THROUGHPUT,
    num_requests: int | None = None,
    micro_batch_size: int | None = None,
    num_micro_batches: int | None = None,
    grid: PolicyGrid | None = None,
    refine: bool = True,
    tolerance: float = TOLERANCE,
    most_simulations: int = MOST_SIMULATIONS,
    at_least: int = 1,
    mix_attention: bool = False,
    most_joules: float | None = None,
    along_front: bool = False,
) -> Plan:
    """The best policy of one schedule, sizes that are given kept.

    `num_requests` asks for exactly these requests in one batch, or if that fits no memory for the best smaller batch.
    `at_least` so many candidates that differ in more than pages and page-locked weights are simulated, to have some to
    compare with. With `mix_attention` some micro-batches may attend on the device beside others on the CPU, where the
    schedule can: near the best policy without. Of those that use at most `most_joules` a token the best is looked for.
    With `along_front` what is best in both, speed and joules, is looked for too. Raises NothingFitsError with the
    smallest lack of memory on the grid, or AboveLimitError with the fewest joules.
    """
    grid = (grid or PolicyGrid()).with_sizes(micro_batch_size, num_micro_batches)
    if num_requests is not None:
        grid = replace(grid, num_requests=num_requests)
    nothing: list[Space] = []
    for tried in _grids(schedule, grid):
        try:
            found = candidates_of(problem, schedule, tried)
        except NoRoomError as error:
            raise NothingFitsError(f"{schedule.name}: {error}") from None
        if len(found):
            break
        nothing.append(found)
    else:
        on_host = host_layer_candidates(problem, schedule, grid)
        if not len(on_host):
            raise nothing_fits(schedule.name, [nothing[0], on_host])
        plan = Plan(objective, TOLERANCE, MOST_SIMULATIONS, most_joules, along_front)
        plan.look_through(on_host, at_least)
        check_limit(schedule.name, plan)
        return plan
    plan = Plan(objective, tolerance, most_simulations, most_joules, along_front)
    plan.look_through(found, at_least)
    ends = (plan.fastest, plan.thriftiest) if along_front else ()
    looked_near = set[Policy]()
    for start in (lambda: plan.best, *ends) if refine else ():
        if start().policy not in looked_near:
            for near in _near(schedule, tried, start, sizes=num_requests is None):
                plan.look_through(candidates_of(problem, schedule, near), 1)
            looked_near.add(start().policy)
    if mix_attention and schedule.system.mixes_attention:
        plan.look_beside_the_cpu()
        if along_front:
            plan.look_from_cpu_to_device()
    check_limit(schedule.name, plan)
    return plan


def _near(schedule: Schedule, grid: PolicyGrid, start: Callable[[], Candidate], *, sizes: bool) -> Iterator[PolicyGrid]:
    """Finer grids around a policy, which may be another one when the next is asked for."""
    splits = schedule.system.splits_experts
    for reach, values in (NEAR_SPLIT if splits else NEAR) if sizes else ():
        policy = start().policy
        near = grid.around(policy, reach, values)
        yield near.with_places_near(policy, FINER[0], (1.0,)) if splits else near
    for step in FINER if splits else ():
        policy = start().policy
        near = grid.with_sizes(policy.micro_batch_size, policy.num_micro_batches)
        yield near.with_places_near(policy, step, PARTS)


def _grids(schedule: Schedule, grid: PolicyGrid) -> list[PolicyGrid]:
    """What is tried until something fits: the grid, with fewer requests, and with all weights streaming."""
    found, system = [grid], schedule.system
    if grid.num_requests is not None:
        found.append(replace(grid, num_requests=None, most_requests=grid.num_requests))
    if system.experts & ExpertPlace.STREAMED and not system.streams_non_experts:
        found += [replace(one, stream_non_experts=True) for one in found]
    return found


def hrm_setup(problem: Problem) -> tuple[Setup, int]:
    """What the paper's own search chooses, and of how many policies; whether that fits our memory plan or not."""
    found = search_policies(problem.model, problem.hardware, problem.workload)
    return usually_locked(Setup(problem, by_name(SCHEDULE), found.policy)), found.candidates


def hrm_plan(problem: Problem) -> Choice:
    """That, simulated. Raises InputError if HRM finds nothing, or if what it finds does not fit our memory plan."""
    setup, count = hrm_setup(problem)
    found = {setup.policy: Candidate.of(setup, _bound_of(setup))}
    plan = Plan(Objective.THROUGHPUT, found=found, considered=count, feasible=count)
    return Choice(problem, plan.objective, {SCHEDULE: plan}, {})


def _bound_of(setup: Setup) -> float:
    """The most that candidates of the same shape and memory may reach; a policy off the grid has no bound."""
    policy, total = setup.policy, setup.problem.model.num_experts
    grid = PolicyGrid((policy.micro_batch_size,), (policy.num_micro_batches,), pages=(1.0,), expert_values=total + 1)
    space = candidates_of(setup.problem, setup.schedule, grid)
    rows = ((space.setup(row), rate) for row, rate in enumerate(at_best(space)[0].tolist()))
    return max((rate for one, rate in rows if (one.shape, one.memory) == (setup.shape, setup.memory)), default=math.inf)
