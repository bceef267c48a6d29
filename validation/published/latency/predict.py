"""Predictions of published rates, each simulated, or why there is none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim.problem import Hardware
from sim.simulation import Prediction, predict
from traces.cli import in_processes
from traces.errors import InputError
from validation.published.latency.known import POPULARITY, name_of_machine
from validation.published.latency.placement import options_in_words
from validation.published.latency.pose import pose_rate
from validation.published.latency.rows import LatencyRow, Metric


@dataclass(frozen=True, slots=True)
class Values:
    """What takes the place of the presets: machines by name, and exponents of popularity by a model's preset."""

    machines: Mapping[str, Hardware]
    exponents: Mapping[str, float]


AS_THEY_ARE = Values({}, POPULARITY)


@dataclass(frozen=True, slots=True)
class PredictedRate:
    """What is predicted of one row, in tokens/s or seconds; `reason` says why nothing is."""

    row: LatencyRow
    value: float | None
    machine: str = ""
    schedule: str = ""
    bottleneck: str = ""
    assumed: str = ""
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Relative error of the prediction; None without a measurement or a prediction."""
        return None if self.value is None or self.row.value is None else self.value / self.row.value - 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        row = self.row
        return {
            **{"row": row.number, "id": row.name, "system": row.system, "model": row.model},
            **{"machine": self.machine, "metric": row.metric.value},
            **{"unit": "s" if row.metric.in_seconds else "tokens/s", "measured": row.value, "predicted": self.value},
            "error": self.error,
            **{name: getattr(self, name) for name in ("schedule", "bottleneck", "assumed", "reason")},
        }


def predict_rate(row: LatencyRow, values: Values = AS_THEY_ARE) -> PredictedRate:
    """Simulate one row. A row that asks for what is unknown or impossible gets a reason instead of a number."""
    machine = ""
    try:
        machine = machine_of_row(row)
        posed = pose_rate(row, values.machines.get(machine), values.exponents)
        said = predict(posed.setup, compiled=True, must_fit=False)
    except InputError as error:
        return PredictedRate(row, None, machine, reason=str(error))
    value = measured_of(said, posed.metric)
    return PredictedRate(row, value, machine, said.schedule, said.bottleneck, posed.assumed)


def machine_of_row(row: LatencyRow) -> str:
    """The machine that a row ran on. Raises InputError."""
    return name_of_machine(row, options_in_words(row.policy))


def measured_of(said: Prediction, metric: Metric) -> float:
    """What of a prediction a row measures."""
    if metric is Metric.PREFILL:
        return said.setup.batch.prompt_tokens / said.prefill_s
    if metric is Metric.THROUGHPUT:
        return said.throughput_tokens_per_s
    return said.token_s if metric is Metric.TOKEN else said.num_requests / said.token_s


def predict_rates(
    rows: Sequence[LatencyRow], values: Values = AS_THEY_ARE, jobs: int | None = None
) -> Iterator[PredictedRate]:
    """Predictions in the order of the rows, each as soon as it is there; `jobs` processes share the work."""
    return in_processes(partial(predict_rate, values=values), rows, jobs)
