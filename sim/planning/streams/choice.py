"""How to serve the requests at hand: each schedule's best with prompts beside decode, and its best batch after batch.

Policies for prompts beside decode are ranked by estimates from a few steps; those that come near the best are then
simulated to the last request, as all are batch after batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from sim.admission import Prompts, RequestStream, Service
from sim.cost import Setup
from sim.planning.explanation import MemoryUse
from sim.planning.search import Choice
from sim.planning.streams.estimate import StreamEstimate
from sim.planning.streams.flow import Flow
from sim.planning.streams.search import StreamPlan, best_stream_policy
from sim.problem import Policy, Problem, WeightBits
from sim.schedule import by_name
from sim.simulation import StreamResult, StreamSetup, serve_in_batches, serve_stream
from traces.cli import in_processes
from traces.data_frame import Tabular
from traces.errors import InputError

NEAR = 0.98
"""Share of the best estimate from which on a schedule's policy is simulated to the last request."""

HAS_NO_MIXED_STEPS = "steps cannot carry prompts beside decode"
"""And why is a trait of the system."""


@dataclass(frozen=True, slots=True)
class Way:
    """One schedule with a policy on the requests at hand, prompts in one place."""

    prompts: Prompts
    setup: Setup | StreamSetup
    throughput_tokens_per_s: float
    steady_tokens_per_s: float | None
    at_most_tokens_per_s: dict[str, float]
    """By lane, if it never waited."""
    result: StreamResult | None = None
    """The requests simulated to the last; None where the numbers are estimated from a few steps."""

    @property
    def schedule(self) -> str:
        return self.setup.schedule.name

    @property
    def policy(self) -> Policy:
        return self.setup.policy

    @property
    def prefill_chunk(self) -> int | None:
        """Tokens of a micro-batch of prompts in a step, beside decode."""
        return self.setup.prefill_chunk if isinstance(self.setup, StreamSetup) else None

    @property
    def num_prompts(self) -> int | None:
        """Such micro-batches."""
        return self.setup.num_prompts if isinstance(self.setup, StreamSetup) else None

    @property
    def block_tokens(self) -> int | None:
        """Tokens of a block of the KV cache, beside decode."""
        return self.setup.block_tokens if isinstance(self.setup, StreamSetup) else None

    @property
    def memory(self) -> tuple[MemoryUse, ...]:
        """What each memory holds at most; in a stream all blocks of the KV cache, taken or not."""
        setup = self.setup
        memory = setup.full_memory if isinstance(setup, StreamSetup) else setup.memory
        return MemoryUse.of(memory, setup.problem.hardware)

    @property
    def bottleneck(self) -> str:
        """The lane that works most."""
        return min(self.at_most_tokens_per_s, key=lambda lane: self.at_most_tokens_per_s[lane])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schedule": self.schedule,
            "prompts": self.prompts.value,
            "policy": self.policy.to_dict(),
            "prefill_chunk": self.prefill_chunk,
            "prompt_batches": self.num_prompts,
            "block_tokens": self.block_tokens,
            "throughput_tokens_per_s": self.throughput_tokens_per_s,
            "steady_tokens_per_s": self.steady_tokens_per_s,
            "at_most_tokens_per_s": self.at_most_tokens_per_s,
            "bottleneck": self.bottleneck,
            "energy_j_per_token": self.result and self.result.energy_j_per_token,
            "estimated": self.result is None,
        }


@dataclass(frozen=True, slots=True)
class StreamChoice(Tabular):
    """All ways that were found, the best first."""

    problem: Problem
    stream: RequestStream
    ways: tuple[Way, ...]
    failed: dict[str, str]
    """By schedule, why it cannot have prompts beside decode here."""
    considered: int
    """Policies for prompts beside decode that were looked at."""

    @property
    def best(self) -> Way:
        return self.ways[0]

    @property
    def rival(self) -> Way | None:
        """The best way that has prompts in the other place."""
        return next((one for one in self.ways if one.prompts is not self.best.prompts), None)

    @property
    def gain(self) -> float | None:
        """How many times as fast the best is."""
        rival = self.rival
        return self.best.throughput_tokens_per_s / rival.throughput_tokens_per_s if rival else None

    def to_dict(self, top: int | None = None) -> dict[str, Any]:
        """As JSON values, with the `top` best ways, or all."""
        result = self.best.result
        return {
            "num_requests": len(self.stream.requests),
            **self.best.to_dict(),
            "of_the_other_place": self.gain,
            "memory": {tier.name: tier.to_dict() for tier in self.best.memory},
            "considered": self.considered,
            "infeasible": self.failed,
            "served": None if result is None else result.to_dict(),
            "ways": self.rows()[:top],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One for each way."""
        return [one.to_dict() for one in self.ways]


Serve = Callable[[Any, RequestStream, Service], Way]
"""Requests served under a setup to the last one."""


def plan_stream(
    problem: Problem,
    stream: RequestStream,
    schedules: Sequence[str],
    batches: Choice | None,
    service: Service | None = None,
    *,
    weight_bits: WeightBits | None = None,
    kv_bits: float | None = None,
    jobs: int | None = None,
) -> StreamChoice:
    """How the schedules serve a stream best. `batches` are their best policies for one batch, if any fit.

    What the service leaves open of chunks is searched. Raises InputError where nothing fits in either way.
    """
    service = service or Service()
    given = {name: getattr(service, name) for name in ("num_prompts", "prefill_chunk", "block_tokens")}
    asked = {**given, "weight_bits": weight_bits, "kv_bits": kv_bits}
    mixing = [name for name in schedules if by_name(name).system.mixes]
    plans = list(in_processes(partial(_planned, problem, Flow.of(stream), asked), mixing, jobs))
    apart = {name: by_name(name).system.keeps_prompts_apart for name in schedules}
    failed = {name: f"{HAS_NO_MIXED_STEPS}: {why}" for name, why in apart.items() if why}
    failed |= {one.schedule: one.reason for one in plans if not one.found}
    expected = [one.ranked[0] for one in plans if one.found]
    least = NEAR * max((one.throughput_tokens_per_s for one in expected), default=0.0)
    tried: list[tuple[Serve, Any]] = [
        *((_served_beside, one.setup) for one in expected if one.throughput_tokens_per_s >= least),
        *((_served_in_batches, setup) for setup in _batches(batches, len(stream.requests))),
    ]
    ways = [_expected(one) for one in expected if one.throughput_tokens_per_s < least]
    for one in in_processes(partial(_served, stream, service), tried, jobs):
        if isinstance(one, Way):
            ways.append(one)
        else:
            failed[one.schedule] = one.reason
    ways = _with_a_served_best(ways, lambda setup: _served(stream, service, (_served_beside, setup)))
    if not ways:
        reasons = " | ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise InputError(f"{problem.hardware.name} serves none of the requests: {reasons}")
    return StreamChoice(problem, stream, _one_of_each(ways), failed, sum(one.considered for one in plans))


def _one_of_each(ways: Sequence[Way]) -> tuple[Way, ...]:
    """The first of each schedule and place of prompts."""
    first: dict[tuple[str, Prompts], Way] = {}
    for way in ways:
        first.setdefault((way.schedule, way.prompts), way)
    return tuple(first.values())


def _with_a_served_best(ways: list[Way], serve: Callable[[Setup | StreamSetup], "Way | _Refused"]) -> list[Way]:
    """The ways, the best first, which is served if it was only estimated: until the best one is no estimate."""
    while True:
        ways = sorted(ways, key=lambda one: -one.throughput_tokens_per_s)
        if not ways or ways[0].result is not None:
            return ways
        expected, *ways = ways
        ways += [one for one in [serve(expected.setup)] if isinstance(one, Way)]


def _planned(problem: Problem, flow: Flow, asked: dict[str, Any], name: str) -> StreamPlan:
    return best_stream_policy(problem, by_name(name), flow, **asked)


def _batches(choice: Choice | None, num_requests: int) -> Iterator[Setup]:
    """Each schedule's best batch, and one with which as many batches are all of one size."""
    for setup in (one.best.setup for one in choice.plans.values()) if choice else ():
        yield setup
        most = setup.policy.batch_size
        even = -(-num_requests // -(-num_requests // most))
        if even < most:
            with suppress(InputError):  # fewer micro-batches than it has groups, or than attend on the device
                yield replace(setup, policy=replace(setup.policy, batch_size=even))


def _expected(one: StreamEstimate) -> Way:
    """What is estimated of a policy."""
    rates = (one.throughput_tokens_per_s, one.steady_tokens_per_s, one.at_most_tokens_per_s)
    return Way(Prompts.BESIDE, one.setup, *rates)


class _Refused(NamedTuple):
    """A schedule that cannot serve the requests, and why."""

    schedule: str
    reason: str


def _served(stream: RequestStream, service: Service, one: "tuple[Serve, Any]") -> Way | _Refused:
    """What simulation to the last request gives, or why it cannot be."""
    serve, setup = one
    try:
        return serve(setup, stream, service)
    except InputError as error:
        return _Refused(setup.schedule.name, str(error))


def _served_beside(setup: StreamSetup, stream: RequestStream, service: Service) -> Way:
    return _way(Prompts.BESIDE, setup, serve_stream(setup, stream, service.priority, preempts=service.preempts))


def _served_in_batches(setup: Setup, stream: RequestStream, service: Service) -> Way:
    return _way(Prompts.BEFORE, setup, serve_in_batches(setup, stream, service.priority))


def _way(prompts: Prompts, setup: Setup | StreamSetup, result: StreamResult) -> Way:
    rates = (result.throughput_tokens_per_s, result.steady_tokens_per_s, result.at_most_tokens_per_s)
    return Way(prompts, setup, *rates, result)
