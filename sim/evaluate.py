"""From a setup to a prediction: throughput, what each lane did, what binds, and how far the schedule is from its bound.

A generation has as many decode steps as tokens, and they differ only in the length of the KV cache. Every cost is the
larger of functions linear in that length, and a makespan is a maximum of sums of costs: convex in it. So a few steps
are simulated exactly, each behind the step before it, and those between are interpolated, with more steps simulated
where the curve bends until a midpoint is met within `TOLERANCE`. The last step, which fetches nothing for a next one,
stands alone. `exact` simulates all of them instead.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sim.estimate import hrm_tokens_per_s
from sim.policy import Policy
from sim.schedule.task import Lane
from sim.schedule.tensor_parallel import over_ranks
from sim.setup import Setup
from sim.simulator import Simulation, StepUse
from traces.trace import lane_order

TOLERANCE = 1e-3
"""Relative gap between a simulated midpoint and the interpolation that is accepted."""

WARM_UP = 1
"""Steps simulated before a step in the middle of the generation: it finds the lanes as they left them."""

START = 3
"""Steps simulated from the beginning: prefill and the first decode steps, of which the very first differs."""

NS = 1e-9


@dataclass(frozen=True, slots=True)
class LaneSummary:
    """One lane over the whole generation: seconds busy, and seconds idle by what it waited for."""

    busy_s: float
    utilisation: float
    waited_s: dict[str, float]

    @property
    def waited_most_for(self) -> str:
        """The op that kept the lane idle longest; empty if it never waited."""
        return max(self.waited_s, key=lambda op: self.waited_s[op], default="")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulator says of one setup. Seconds and tokens; bytes are per device for the device's tier."""

    schedule: str
    policy: Policy
    num_requests: int
    throughput_tokens_per_s: float
    prefill_s: float
    decode_s: float
    lanes: dict[str, LaneSummary]
    bottleneck: str
    lower_bound_s: float
    memory_peak_bytes: dict[str, int]
    hrm_tokens_per_s: float | None
    simulated_tasks: int
    simulated_steps: list[int]
    wall_s: float

    @property
    def total_s(self) -> float:
        """Prefill and decode."""
        return self.prefill_s + self.decode_s

    @property
    def gpu_idle(self) -> float:
        """Share of the time in which the (mean) device computes nothing."""
        gpus = [lane.utilisation for name, lane in self.lanes.items() if name.startswith("GPU")]
        return 1.0 - sum(gpus) / len(gpus)


@dataclass(slots=True)
class _Period:
    """Nanoseconds of a stretch of the run and what the lanes did in it; a linear space, so that steps interpolate."""

    span_ns: float = 0.0
    busy_ns: dict[Lane, float] = field(default_factory=dict)
    waited_ns: dict[tuple[Lane, str], float] = field(default_factory=dict)

    def add(self, other: "_Period", weight: float = 1.0) -> None:
        """Accumulate a weighted period."""
        self.span_ns += weight * other.span_ns
        for lane, busy in other.busy_ns.items():
            self.busy_ns[lane] = self.busy_ns.get(lane, 0.0) + weight * busy
        for what, waited in other.waited_ns.items():
            self.waited_ns[what] = self.waited_ns.get(what, 0.0) + weight * waited


class _Sampler:
    """Simulates the steps that are asked for."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._cost = setup.costs()
        self.simulated_tasks = 0
        self.steps: dict[int, _Period] = {}

    def simulate(self, first: int, stop: int) -> None:
        """Simulate steps `first` to `stop` - 1; keep all from prefill on, else those behind the warm-up."""
        setup, uses = self._setup, list[StepUse]()
        steps = setup.schedule.steps(setup.shape, first, stop, last=setup.last_step)
        ranked = over_ranks(steps, setup.problem.hardware.num_devices)
        result = Simulation(ranked, self._cost, self._cost.capacities, on_step=uses.append).run()
        self.simulated_tasks += result.num_tasks
        before = 0
        for step, use in zip(range(first, stop), uses, strict=True):
            if first == 0 or step >= first + WARM_UP:
                self.steps[step] = _period(use, before)
            before = use.end_ns

    def at(self, step: int) -> _Period:
        """One decode step behind the step before it."""
        if step not in self.steps:
            self.simulate(step - WARM_UP, step + 1)
        return self.steps[step]


def _period(use: StepUse, before_ns: int) -> _Period:
    return _Period(
        use.end_ns - before_ns,
        {lane: float(did.busy_ns) for lane, did in use.lanes.items()},
        {(lane, op): float(waited) for lane, did in use.lanes.items() for op, waited in did.waited_ns.items()},
    )


def evaluate(setup: Setup, *, exact: bool = False) -> Prediction:
    """Simulate one setup. Raises InputError naming the memory, and the bytes, that its policy is short of."""
    started = time.perf_counter()
    setup.require_fit()
    sampler = _Sampler(setup)
    last = setup.last_step
    sampler.simulate(0, last + 1 if exact else min(START, last + 1))
    prefill, decode = sampler.steps[0], _Period()
    for step in range(1, min(START, last + 1)):
        decode.add(sampler.at(step))
    if last >= START:
        _interpolate(sampler.at, START - 1, last - 1, decode)
        decode.add(sampler.at(last))
    return _summarise(setup, sampler, prefill, decode, time.perf_counter() - started)


def _interpolate(at: Callable[[int], _Period], low: int, high: int, total: _Period) -> None:
    """Add steps low + 1 to high to the total, by the chord if the midpoint lies on it, else by halves."""
    if low == high:
        return
    middle = (low + high) // 2
    if middle > low:
        share = (middle - low) / (high - low)
        chord = (1 - share) * at(low).span_ns + share * at(high).span_ns
        if abs(at(middle).span_ns - chord) > TOLERANCE * chord:
            _interpolate(at, low, middle, total)
            _interpolate(at, middle, high, total)
            return
    steps = high - low
    total.add(at(low), (steps - 1) / 2)  # sum over s of the chord's weights of both ends
    total.add(at(high), (steps + 1) / 2)


def _summarise(setup: Setup, sampler: _Sampler, prefill: _Period, decode: _Period, wall_s: float) -> Prediction:
    whole = _Period()
    whole.add(prefill)
    whole.add(decode)
    lanes = {}
    for lane in sorted(whole.busy_ns, key=lambda lane: lane_order((lane.kind.value, lane.rank))):
        waited = {op: ns * NS for (of, op), ns in whole.waited_ns.items() if of == lane}
        lanes[str(lane)] = LaneSummary(whole.busy_ns[lane] * NS, whole.busy_ns[lane] / whole.span_ns, waited)
    busiest = max(lanes, key=lambda name: lanes[name].busy_s)
    return Prediction(
        schedule=setup.schedule.name,
        policy=setup.policy,
        num_requests=setup.batch.num_requests,
        throughput_tokens_per_s=setup.batch.generated_tokens / (whole.span_ns * NS),
        prefill_s=prefill.span_ns * NS,
        decode_s=decode.span_ns * NS,
        lanes=lanes,
        bottleneck=busiest,
        lower_bound_s=lanes[busiest].busy_s,
        memory_peak_bytes=setup.memory.peak_bytes(),
        hrm_tokens_per_s=hrm_tokens_per_s(setup),
        simulated_tasks=sampler.simulated_tasks,
        simulated_steps=sorted(sampler.steps),
        wall_s=wall_s,
    )


def to_dict(prediction: Prediction) -> dict[str, Any]:
    """A feasible result as JSON values."""
    lanes = {
        name: {"busy_s": lane.busy_s, "utilisation": lane.utilisation, "waited_s": lane.waited_s}
        for name, lane in prediction.lanes.items()
    }
    return {
        "schedule": prediction.schedule,
        "feasible": True,
        "reason": "",
        "policy": prediction.policy.to_dict(),
        "num_requests": prediction.num_requests,
        "throughput_tokens_per_s": prediction.throughput_tokens_per_s,
        "prefill_s": prediction.prefill_s,
        "decode_s": prediction.decode_s,
        "lanes": lanes,
        "bottleneck": prediction.bottleneck,
        "gpu_idle": prediction.gpu_idle,
        "memory_peak_bytes": prediction.memory_peak_bytes,
        "hrm_tokens_per_s": prediction.hrm_tokens_per_s,
        "lower_bound_s": prediction.lower_bound_s,
        "simulated_tasks": prediction.simulated_tasks,
        "simulated_steps": prediction.simulated_steps,
        "wall_s": prediction.wall_s,
    }
