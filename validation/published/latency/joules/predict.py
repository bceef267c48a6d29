"""Joules of a token from data sheets alone: what a run's tasks draw, and idle watts for as long as it was seen to take.

The time is the published one: joules are judged by themselves, whatever is known of rates. What comes of the simulated
time stands beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sim.cost import Setup
from sim.problem import Hardware, Policy, Problem, Workload
from sim.schedule import by_name
from sim.simulation import predict
from traces.cli import in_processes
from validation.published.latency.joules.rows import JoulesRow
from validation.published.latency.known import named_model
from validation.published.latency.placement import Options
from validation.published.latency.rows import LatencyRow, Metric

SCHEDULE = "n-cpu-moe"
"""With no layer's experts on the CPU: everything is on the device, layer after layer."""


@dataclass(frozen=True, slots=True)
class PredictedJoules:
    """What is predicted of one row, in joules a token of what was metered."""

    row: JoulesRow
    at_published_rate: float
    at_own_rate: float
    own_tokens_per_s: float

    @property
    def error(self) -> float:
        """Relative, at the published rate."""
        return self.at_published_rate / self.row.j_per_token - 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        row = self.row
        known = {name: getattr(row, name) for name in ("id", "system", "model", "machine", "tokens_per_s", "source")}
        return {
            **known,
            "metered": row.metered.value,
            "measured_j_per_token": row.j_per_token,
            "predicted_j_per_token": self.at_published_rate,
            "error": self.error,
            "own_tokens_per_s": self.own_tokens_per_s,
            "own_j_per_token": self.at_own_rate,
        }


def joules_of_row(row: JoulesRow) -> PredictedJoules:
    """Simulate one row."""
    said = predict(setup_of(row), compiled=True, must_fit=False)
    energy = said.energy
    assert energy is not None, "every preset says what it draws"
    idle_w = sum(watts for part, watts in energy.idle_w.items() if row.metered.counts(part))
    whole = sum(joules for part, joules in energy.by_component_j.items() if row.metered.counts(part))
    active = (whole - idle_w * energy.span_s) / energy.generated_tokens
    rate = said.throughput_tokens_per_s
    return PredictedJoules(row, active + idle_w / row.tokens_per_s, active + idle_w / rate, rate)


def setup_of(row: JoulesRow) -> Setup:
    """All of a model on the device, and all requests in one micro-batch."""
    named = LatencyRow(0, row.id, row.system, row.model, Metric.THROUGHPUT, row.precision)
    model = named_model(named, Options(top_k=int(row.experts) if row.experts else None))
    problem = Problem(model, Hardware.load(row.machine), Workload.fixed(row.prompt_len, row.gen_len))
    schedule = by_name(SCHEDULE)
    places = {"experts_on_device": 1.0, "host_layers": (0, 0)}
    return Setup(problem, schedule, Policy.usual(schedule, row.requests, row.requests, **places))


def predict_joules(rows: Sequence[JoulesRow], jobs: int | None = None) -> Iterator[PredictedJoules]:
    """Predictions in the order of the rows, each as soon as it is there; `jobs` processes share the work."""
    return in_processes(joules_of_row, rows, jobs)
