"""From a setup to a prediction: throughput, what each lane did, what binds, and how far the schedule is from its bound.

A generation has as many decode steps as tokens, and they differ only in the length of the KV cache. Every cost is the
larger of functions linear in that length, and a makespan is a maximum of sums of costs: convex in it. So a few steps
are simulated exactly, each behind the step before it, and those between are interpolated, with more steps simulated
where the curve bends until a midpoint is met within `TOLERANCE`. The last step, which fetches nothing for a next one,
and the one before it stand alone. `exact` simulates all of them and adds them up instead.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
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

WARM_UP_LAYERS = 4
"""Layers at least that are simulated, as whole steps, before a step that others are interpolated from: two weight slots
and two staging buffers let lanes run ahead of each other by so much, and the step is to find them in their pace."""

END = 3
"""Steps kept up to the last: the last two, and the one that the interpolation ends with."""

AFTER = 1
"""Steps simulated behind a step that is kept: what they start early shares the pools with its last tasks."""

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
class Phase:
    """Prefill or decode: how long it took, and the lane that worked most in it."""

    span_s: float
    bottleneck: str
    busiest_s: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulator says of one setup. Seconds and tokens; bytes are per device for the device's tier."""

    schedule: str
    policy: Policy
    num_requests: int
    throughput_tokens_per_s: float
    prefill: Phase
    decode: Phase
    lanes: dict[str, LaneSummary]
    bottleneck: str
    lower_bound_s: float
    memory_peak_bytes: dict[str, int]
    hrm_tokens_per_s: float | None
    simulated_tasks: int
    simulated_steps: list[int]
    wall_s: float

    @property
    def prefill_s(self) -> float:
        """From the start until the first token of the last micro-batch."""
        return self.prefill.span_s

    @property
    def decode_s(self) -> float:
        """From there until the last token."""
        return self.decode.span_s

    @property
    def total_s(self) -> float:
        """Prefill and decode."""
        return self.prefill_s + self.decode_s

    @property
    def over_busiest(self) -> float:
        """Time beyond the work of each phase's busiest lane, as a share of it: what a better order could save."""
        return max(0.0, self.total_s / (self.prefill.busiest_s + self.decode.busiest_s) - 1)

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
        self._cost = setup.costs(only_contended=True)
        self._warm_up = -(-WARM_UP_LAYERS // setup.shape.num_layers)
        self.start = 2 + self._warm_up
        """Steps kept from the beginning: prefill and decode steps until one is like those that follow."""
        self.simulated_tasks = 0
        self.steps: dict[int, _Period] = {}

    def simulate(self, first: int, stop: int) -> None:
        """Simulate steps `first` to `stop` - 1; keep those behind the warm-up that others, or nothing, come after."""
        setup, uses = self._setup, list[StepUse]()
        steps = setup.schedule.steps(setup.shape, first, stop, last=setup.last_step)
        ranked = over_ranks(steps, setup.problem.hardware.num_devices)
        result = Simulation(ranked, self._cost, self._cost.capacities, on_step=uses.append).run()
        self.simulated_tasks += result.num_tasks
        before = 0
        begin = 0 if first == 0 else first + self._warm_up
        end = stop if stop > setup.last_step else stop - AFTER
        for step, use in zip(range(first, stop), uses, strict=True):
            if begin <= step < end:
                self.steps[step] = _period(use, before)
            before = use.end_ns

    def at(self, step: int) -> _Period:
        """One decode step between the steps around it."""
        if step not in self.steps:
            self.simulate(max(0, step - self._warm_up), step + 1 + AFTER)
        return self.steps[step]

    def ends(self) -> None:
        """Simulate the first steps and the last ones."""
        last = self._setup.last_step
        self.simulate(0, self.start + AFTER)
        self.simulate(last + 1 - END - self._warm_up, last + 1)


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
    sampler, decode = _Sampler(setup), _Period()
    last = setup.last_step
    if exact or last < 2 * (sampler.start + END):
        sampler.simulate(0, last + 1)
        alone: Iterable[int] = range(1, last + 1)
    else:
        sampler.ends()
        _interpolate(sampler.at, sampler.start - 1, last + 1 - END, decode)
        alone = [*range(1, sampler.start), *range(last + 2 - END, last + 1)]
    for step in alone:
        decode.add(sampler.at(step))
    prefill = sampler.steps[0]
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
        prefill=_phase(prefill),
        decode=_phase(decode),
        lanes=lanes,
        bottleneck=busiest,
        lower_bound_s=lanes[busiest].busy_s,
        memory_peak_bytes=setup.memory.peak_bytes(),
        hrm_tokens_per_s=hrm_tokens_per_s(setup),
        simulated_tasks=sampler.simulated_tasks,
        simulated_steps=sorted(sampler.steps),
        wall_s=wall_s,
    )


def _phase(period: _Period) -> Phase:
    busiest = max(period.busy_ns, key=lambda lane: period.busy_ns[lane], default=None)
    if busiest is None:  # a single token leaves no decode
        return Phase(0.0, "", 0.0)
    return Phase(period.span_ns * NS, str(busiest), period.busy_ns[busiest] * NS)


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
        "phases": {name: asdict(getattr(prediction, name)) for name in ("prefill", "decode")},
        "gpu_idle": prediction.gpu_idle,
        "memory_peak_bytes": prediction.memory_peak_bytes,
        "hrm_tokens_per_s": prediction.hrm_tokens_per_s,
        "lower_bound_s": prediction.lower_bound_s,
        "simulated_tasks": prediction.simulated_tasks,
        "simulated_steps": prediction.simulated_steps,
        "wall_s": prediction.wall_s,
    }
