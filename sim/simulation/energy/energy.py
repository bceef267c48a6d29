"""The joules of a run: by part of the machine, request and generated token; of a generation by phase, too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.simulation.energy.draws import Component, Joules


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What all of a machine drew in a run, what it draws idle and what the supply loses included."""

    span_s: float
    num_requests: int
    generated_tokens: int
    joules: Mapping[Component, float]
    idle_w: Mapping[Component, float]
    """What each part draws while nothing runs."""

    @property
    def by_component_j(self) -> Joules:
        """In the order of components."""
        return {part: self.joules[part] for part in Component if part in self.joules}

    @property
    def total_j(self) -> float:
        return sum(self.joules.values())

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
            "j_per_request": self.j_per_request,
            "average_w": self.average_w,
            "by_component_j": {str(part): joules for part, joules in self.by_component_j.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy(Drawn):
    """Those of a generation, which has phases: `joules` are of both."""

    prefill_j: Mapping[Component, float]
    decode_j: Mapping[Component, float]
    peak_w: float
    """Mean watts of the step that draws most: a step is what a meter sees. A trace shows moments within it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        phases = {"prefill_j": sum(self.prefill_j.values()), "decode_j": sum(self.decode_j.values())}
        return {**Drawn.to_dict(self), **phases, "peak_w": self.peak_w}
