"""From a setup to a prediction: throughput, what each lane did, what binds, and how far the schedule is from its bound.

Steps are simulated with SimPy, as many as `sim.simulation.sampling` asks for.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

from sim.cost import Setup
from sim.hrm import hrm_tokens_per_s
from sim.problem import Policy
from sim.schedule import over_ranks
from sim.simulation.sampling import SampledGeneration, StepTotals, sample
from sim.simulation.simulator import Simulation, StepUse
from traces.data_frame import Tabular
from traces.trace import lane_order

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
class Prediction(Tabular):
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return to_dict(self)


class _SimPy:
    """Steps of one setup by the simulator."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._cost = setup.costs(only_contended=True)

    def __call__(self, first: int, stop: int) -> list[StepUse]:
        setup, uses = self._setup, list[StepUse]()
        steps = setup.schedule.steps(setup.shape, first, stop, last=setup.last_step)
        ranked = over_ranks(steps, setup.num_ranks)
        cost = self._cost
        Simulation(ranked, cost, cost.capacities, on_step=uses.append, hand_over_ns=cost.hand_over_ns).run()
        return uses


def evaluate(setup: Setup, *, exact: bool = False) -> Prediction:
    """Simulate one setup. Raises InputError naming the memory, and the bytes, that its policy is short of."""
    started = time.perf_counter()
    setup.require_fit()
    generation = sample(setup, _SimPy(setup), exact=exact)
    return _summarise(setup, generation, time.perf_counter() - started)


predict = evaluate


def _summarise(setup: Setup, generation: SampledGeneration, wall_s: float) -> Prediction:
    whole = StepTotals()
    whole.add(generation.prefill)
    whole.add(generation.decode)
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
        prefill=_phase(generation.prefill),
        decode=_phase(generation.decode),
        lanes=lanes,
        bottleneck=busiest,
        lower_bound_s=lanes[busiest].busy_s,
        memory_peak_bytes=setup.memory.peak_bytes(),
        hrm_tokens_per_s=hrm_tokens_per_s(setup),
        simulated_tasks=generation.simulated_tasks,
        simulated_steps=generation.simulated_steps,
        wall_s=wall_s,
    )


def _phase(period: StepTotals) -> Phase:
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
