"""From a setup to a prediction: throughput, what each lane did, what binds, and how far the schedule is from its bound.

As many steps are simulated as `sim.simulation.sampling` asks for, with SimPy or compiled: both say the same.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import sim.simulation.compiled  # its door loads numba only when it is asked for something
from sim.cost import Setup
from sim.hrm import hrm_tokens_per_s
from sim.problem import Policy
from sim.simulation.energy import Energy, energy_of
from sim.simulation.sampling import TOLERANCE, Simulate, StepShare, StepTotals, sample
from sim.simulation.simulator import StepUse, simulate_steps
from traces.data_frame import Tabular
from traces.trace import lane_order

NS = 1e-9

MEASURES = (
    "num_requests",
    "throughput_tokens_per_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "time_to_first_token_s",
    "seconds_per_token",
    "prefill_s",
    "decode_s",
    "bottleneck",
    "phases",
    "gpu_idle",
    "hrm_tokens_per_s",
    "energy_j_per_token",
    "energy",
    "lower_bound_s",
    "simulated_tasks",
    "wall_s",
)
"""What only a feasible result has as JSON."""


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

    @classmethod
    def of(cls, totals: StepTotals) -> "Phase":
        """From nanoseconds; a single token leaves no decode."""
        busiest = max(totals.lanes.values(), key=lambda use: use.busy_ns, default=None)
        return cls(totals.span_ns * NS, str(busiest.lane), busiest.busy_ns * NS) if busiest else cls(0.0, "", 0.0)


@dataclass(frozen=True, slots=True)
class Prediction(Tabular):
    """What the simulator says of one setup. Seconds and tokens; bytes are per device for the device's tier."""

    setup: Setup
    prefill: Phase
    decode: Phase
    lanes: dict[str, LaneSummary]
    simulated_tasks: int
    simulated_steps: list[int]
    wall_s: float
    steps: tuple[StepShare, ...]
    """The simulated steps that others stand behind."""

    @property
    def schedule(self) -> str:
        return self.setup.schedule.name

    @property
    def policy(self) -> Policy:
        return self.setup.policy

    @property
    def num_requests(self) -> int:
        return self.setup.batch.num_requests

    @property
    def phases(self) -> dict[str, dict[str, Any]]:
        """Both phases as JSON values."""
        return {"prefill": asdict(self.prefill), "decode": asdict(self.decode)}

    @property
    def prefill_s(self) -> float:
        """From the start until the first token of the last micro-batch; without decode, until all copies have ended."""
        return self.prefill.span_s

    @property
    def decode_s(self) -> float:
        """From there until the last token is out and the last copy has ended."""
        return self.decode.span_s

    @property
    def total_s(self) -> float:
        """Prefill and decode."""
        return self.prefill_s + self.decode_s

    @property
    def token_s(self) -> float:
        """Mean seconds of a decode step, which gives each request a token; of prefill if there is no decode."""
        steps = self.setup.last_step
        return self.decode_s / steps if steps else self.prefill_s

    @property
    def seconds_per_token(self) -> float:
        """The same, as results name it."""
        return self.token_s

    @property
    def time_to_first_token_s(self) -> float:
        """Until each request has its first token: all of prefill."""
        return self.prefill_s

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens of all requests over prefill."""
        return self.setup.batch.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens of all requests but the first ones over decode; None without one."""
        return self.num_requests * self.setup.last_step / self.decode_s if self.setup.last_step else None

    @property
    def throughput_tokens_per_s(self) -> float:
        """Generated tokens of all requests over prefill and decode."""
        return self.setup.batch.generated_tokens / self.total_s

    @property
    def busy_s_a_token(self) -> dict[str, float]:
        """Seconds that each lane works for one generated token of one request."""
        tokens = self.setup.batch.generated_tokens
        return {name: lane.busy_s / tokens for name, lane in self.lanes.items()}

    @property
    def bottleneck(self) -> str:
        """The lane that works most."""
        return max(self.lanes, key=lambda name: self.lanes[name].busy_s)

    @property
    def lower_bound_s(self) -> float:
        """The work of that lane."""
        return self.lanes[self.bottleneck].busy_s

    @property
    def over_busiest(self) -> float:
        """Time beyond the work of each phase's busiest lane, as a share of it: what a better order could save."""
        return max(0.0, self.total_s / (self.prefill.busiest_s + self.decode.busiest_s) - 1)

    @property
    def gpu_idle(self) -> float:
        """Share of the time in which the (mean) device computes nothing."""
        gpus = [lane.utilisation for name, lane in self.lanes.items() if name.startswith("GPU")]
        return 1.0 - sum(gpus) / len(gpus)

    @property
    def memory_peak_bytes(self) -> dict[str, int]:
        return self.setup.memory.peak_bytes()

    @property
    def hrm_tokens_per_s(self) -> float | None:
        """What HRM says of the same setup; None without a decode step."""
        return hrm_tokens_per_s(self.setup)

    @property
    def energy(self) -> Energy | None:
        """What the machine draws for it; None where its watts are not known. It is worked out when it is asked for."""
        return energy_of(self.setup, self.steps, (self.prefill_s, self.decode_s))

    def to_dict(self) -> dict[str, Any]:
        """A feasible result as JSON values."""
        energy = self.energy
        joules = {
            "energy_j_per_token": energy and energy.j_per_token,
            "energy": energy and energy.to_dict(),
        }
        return {
            "schedule": self.schedule,
            "feasible": True,
            "reason": "",
            "policy": self.policy.to_dict(),
            "memory_peak_bytes": self.memory_peak_bytes,
            "lanes": {name: asdict(lane) for name, lane in self.lanes.items()},
            "simulated_steps": self.simulated_steps,
            **{name: joules[name] if name in joules else getattr(self, name) for name in MEASURES},
        }


def predict(
    setup: Setup,
    *,
    exact: bool = False,
    compiled: bool = False,
    must_fit: bool = True,
    tolerance: float = TOLERANCE,
) -> Prediction:
    """Simulate one setup: steps sampled and interpolated, or all of them if `exact`.

    `compiled` takes a millisecond where SimPy takes a hundred, and says the same but for waits of no length, which it
    leaves out. `tolerance` is how near the interpolation of decode steps has to be. Raises InputError naming the
    memory, and the bytes, that the policy is short of, if it `must_fit`.
    """
    started = time.perf_counter()
    if must_fit:
        setup.require_fit()
    path = sim.simulation.compiled.CompiledPath(setup) if compiled else _simpy_path(setup)
    found = sample(setup, path, exact=exact, tolerance=tolerance)
    whole = StepTotals()
    whole.add(found.prefill)
    whole.add(found.decode)
    return Prediction(
        setup,
        Phase.of(found.prefill),
        Phase.of(found.decode),
        {
            str(use.lane): LaneSummary(
                use.busy_ns * NS, use.busy_ns / whole.span_ns, {op: ns * NS for op, ns in use.waited_ns.items()}
            )
            for use in sorted(whole.lanes.values(), key=lambda use: lane_order(use.lane))
        },
        found.simulated_tasks,
        found.simulated_steps,
        time.perf_counter() - started,
        found.shares,
    )


def _simpy_path(setup: Setup) -> Simulate:
    costs = setup.costs(only_contended=True)

    def simulate(first: int, stop: int) -> list[StepUse]:
        uses: list[StepUse] = []
        simulate_steps(setup, first, stop, costs=costs, on_step=uses.append)
        return uses

    return simulate
