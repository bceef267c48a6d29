"""The joules of a run: by phase, part of the machine, request and generated token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.simulation.energy.draws import Component, Joules


@dataclass(frozen=True, slots=True)
class Energy:
    """What all of a machine drew in prefill and in decode, what the supply loses included."""

    prefill_j: Mapping[Component, float]
    decode_j: Mapping[Component, float]
    span_s: float
    num_requests: int
    generated_tokens: int
    peak_w: float
    """Mean watts of the step that draws most: a step is what a meter sees. A trace shows moments within it."""

    @property
    def by_component_j(self) -> Joules:
        """Joules of both phases."""
        parts = [part for part in Component if part in self.prefill_j or part in self.decode_j]
        return {part: self.prefill_j.get(part, 0.0) + self.decode_j.get(part, 0.0) for part in parts}

    @property
    def total_j(self) -> float:
        return sum(self.by_component_j.values())

    @property
    def j_per_request(self) -> float:
        return self.total_j / self.num_requests

    @property
    def j_per_token(self) -> float:
        """Joules of all of the run for each generated token."""
        return self.total_j / self.generated_tokens

    @property
    def average_w(self) -> float:
        return self.total_j / self.span_s

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "total_j": self.total_j,
            "prefill_j": sum(self.prefill_j.values()),
            "decode_j": sum(self.decode_j.values()),
            "j_per_request": self.j_per_request,
            "average_w": self.average_w,
            "peak_w": self.peak_w,
            "by_component_j": {str(part): joules for part, joules in self.by_component_j.items()},
        }
