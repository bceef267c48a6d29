"""What a stream gave: tokens a second, and how long each request waited for its first token and for the others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sim.simulation.energy import Drawn
from sim.simulation.prediction import NS, LaneSummary
from traces.analysis import LaneUse
from traces.trace import lane_order

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Quantiles(NamedTuple):
    """Seconds that so large a share of the requests do not exceed: each the value of one of them."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Quantiles":
        found = np.quantile(list(values), list(QUANTILES.values()), method="inverted_cdf")
        return cls(*found.tolist())


STREAM_MEASURES = (
    "num_requests",
    "generated_tokens",
    "total_s",
    "throughput_tokens_per_s",
    "steady_tokens_per_s",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "occupancy",
    "bottleneck",
    "energy_j_per_token",
    "energy",
    "num_steps",
    "num_simulated",
    "num_preempted",
)
"""What only requests that were served have as JSON, lanes aside."""


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """One request: when it came, had its first token and its last, in nanoseconds from the start."""

    id: int
    arrival_ns: int
    first_token_ns: int
    end_ns: int
    num_tokens: int

    @property
    def first_token_s(self) -> float:
        """From its arrival to its first token."""
        return (self.first_token_ns - self.arrival_ns) * NS

    @property
    def token_s(self) -> float:
        """Mean seconds of each token after the first; none if there is no other."""
        return (self.end_ns - self.first_token_ns) * NS / max(1, self.num_tokens - 1)

    @property
    def whole_s(self) -> float:
        """From its arrival to its last token."""
        return (self.end_ns - self.arrival_ns) * NS


@dataclass(frozen=True, slots=True)
class StreamResult:
    """All requests of a stream, and what the lanes did meanwhile."""

    requests: tuple[RequestTimes, ...]
    lanes: Mapping[str, LaneSummary]
    steady_tokens_per_s: float | None
    """While requests ended and others still waited to enter; None if there was no such time."""
    num_steps: int
    num_simulated: int
    """Of these steps, those that were simulated; the others were like one of them."""
    num_preempted: int
    occupancy: float
    """Mean share of the places that requests hold, from when their prompts begin to when they end."""
    drawn: Drawn | None = None
    """What the machine drew, while nobody was there, too; None where its watts are not known."""

    @property
    def num_requests(self) -> int:
        return len(self.requests)

    @property
    def total_s(self) -> float:
        """From the start to the last token."""
        return max(one.end_ns for one in self.requests) * NS

    @property
    def generated_tokens(self) -> int:
        """Tokens of all requests."""
        return sum(one.num_tokens for one in self.requests)

    @property
    def throughput_tokens_per_s(self) -> float:
        """These, over all the time."""
        return self.generated_tokens / self.total_s

    @property
    def at_most_tokens_per_s(self) -> dict[str, float]:
        """By lane, tokens a second if it never waited."""
        return {name: self.generated_tokens / lane.busy_s for name, lane in self.lanes.items() if lane.busy_s}

    @property
    def bottleneck(self) -> str:
        """The lane that works most."""
        return max(self.lanes, key=lambda name: self.lanes[name].busy_s)

    def goodput(self, first_token_limit_s: float = float("inf"), token_limit_s: float = float("inf")) -> float:
        """Requests a second that met both limits."""
        met = (one.first_token_s <= first_token_limit_s and one.token_s <= token_limit_s for one in self.requests)
        return sum(met) / self.total_s

    @property
    def first_token_s(self) -> Quantiles:
        return Quantiles.of(one.first_token_s for one in self.requests)

    @property
    def token_s(self) -> Quantiles:
        return Quantiles.of(one.token_s for one in self.requests)

    @property
    def whole_s(self) -> Quantiles:
        return Quantiles.of(one.whole_s for one in self.requests)

    @property
    def energy_j_per_token(self) -> float | None:
        """Joules of the whole machine for each generated token."""
        return self.drawn.j_per_token if self.drawn else None

    @property
    def energy(self) -> dict[str, Any] | None:
        """What it drew, as JSON values."""
        return self.drawn.to_dict() if self.drawn else None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values; latencies under the names that serving benchmarks give them."""
        latencies = {"ttft_s": self.first_token_s, "tpot_s": self.token_s, "e2e_s": self.whole_s}
        known = {name: quantiles._asdict() for name, quantiles in latencies.items()}
        bounds = self.at_most_tokens_per_s
        return {
            **{name: known[name] if name in known else getattr(self, name) for name in STREAM_MEASURES},
            "lanes": {
                name: {
                    "busy_s": lane.busy_s,
                    "utilisation": lane.utilisation,
                    "at_most_tokens_per_s": bounds.get(name),
                }
                for name, lane in self.lanes.items()
            },
        }


def lane_summaries(uses: Iterable[LaneUse], span_ns: float) -> dict[str, LaneSummary]:
    """What lanes did in so long a time, in the order in which people read them."""
    in_order = sorted(uses, key=lambda use: lane_order(use.lane))
    return {str(use.lane): LaneSummary(use.busy_ns * NS, use.busy_ns / span_ns, {}) for use in in_order}
