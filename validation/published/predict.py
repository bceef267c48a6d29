"""Predictions of published rows with machines as they are: throughput, HRM's beside it, or why there is none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim.problem import Hardware, Policy
from sim.simulation import predict
from traces.cli import in_processes
from traces.errors import InputError
from validation.published.rows import Row
from validation.published.setups import machine_of, pose

Machines = Mapping[str, Hardware]
"""Machines by preset name that take the place of the presets."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What is predicted of one row; `reason` says why nothing is, `assumed` what the row left open."""

    row: Row
    tokens_per_s: float | None
    hrm_tokens_per_s: float | None
    policy: str = ""
    bottleneck: str = ""
    assumed: str = ""
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Relative error of the prediction; None without a measurement or a prediction."""
        return _error(self.tokens_per_s, self.row.tokens_per_s)

    @property
    def hrm_error(self) -> float | None:
        return _error(self.hrm_tokens_per_s, self.row.tokens_per_s)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **{name: getattr(self.row, name) for name in ("setting", "schedule", "workload", "padded", "gen_len")},
            "policy": self.policy,
            "measured_tokens_per_s": self.row.tokens_per_s,
            "predicted_tokens_per_s": self.tokens_per_s,
            **{name: getattr(self, name) for name in ("hrm_tokens_per_s", "bottleneck", "assumed", "reason")},
        }


def _error(said: float | None, measured: float | None) -> float | None:
    return None if said is None or measured is None else said / measured - 1


def predict_row(row: Row, machines: Machines | None = None) -> Predicted:
    """Simulate one row. A row that asks for what is unknown or impossible gets a reason instead of a number."""
    try:
        posed = pose(row, (machines or {}).get(machine_of(row)))
        said = predict(posed.setup, compiled=True, must_fit=False)
    except InputError as error:
        return Predicted(row, None, None, reason=str(error))
    policy = _in_words(posed.setup.policy)
    return Predicted(row, said.throughput_tokens_per_s, said.hrm_tokens_per_s, policy, said.bottleneck, posed.assumed)


def _in_words(policy: Policy) -> str:
    """Sizes, and what is page-locked of the weights."""
    share = policy.pin_weights
    return f"{policy}{f' {share:.0%}' if 0 < share < 1 else ''}{' pinned' if share else ''}"


def predict_all(rows: Sequence[Row], machines: Machines | None = None, jobs: int | None = None) -> Iterator[Predicted]:
    """Predictions in the order of the rows, each as soon as it is there; `jobs` processes share the work."""
    return in_processes(partial(predict_row, machines=machines), rows, jobs)
