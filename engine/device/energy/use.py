"""What a run used: joules by phase and component, and of what was not counted why."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class EnergyUse:
    """Joules by phase, in each by component. `missing` says of a component in a line why it was not counted.

    `counters` names by component what counted it.
    """

    phases_j: Mapping[str, Mapping[str, float]]
    missing: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Self) -> "EnergyUse":
        """Of both. What was not counted in one of them is not counted in both together."""
        missing = {**self.missing, **other.missing}
        phases_j = {
            phase: {
                name: sum(one.phases_j.get(phase, {}).get(name, 0.0) for one in (self, other))
                for name in {**self.by_component, **other.by_component}
                if name not in missing
            }
            for phase in {**self.phases_j, **other.phases_j}
        }
        return EnergyUse(phases_j, missing, {**self.counters, **other.counters})

    @property
    def by_component(self) -> dict[str, float]:
        """Joules of all phases."""
        found: dict[str, list[float]] = {}
        for own in self.phases_j.values():
            for name, joules in own.items():
                found.setdefault(name, []).append(joules)
        return {name: math.fsum(joules) for name, joules in found.items()}

    @property
    def total_j(self) -> float | None:
        """Of all that was counted; None if nothing was."""
        found = self.by_component
        return math.fsum(found.values()) if found else None

    def per_token(self, tokens: int) -> float | None:
        """Joules of all that was counted for each generated token; None if nothing was."""
        return None if self.total_j is None or not tokens else self.total_j / tokens

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values."""
        return {
            "total_j": self.total_j,
            "by_component_j": self.by_component,
            "by_phase_j": {phase: dict(own) for phase, own in self.phases_j.items()},
            "counters": dict(self.counters),
            "missing": dict(self.missing),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` made."""
        return cls(values["by_phase_j"], values["missing"], values["counters"])

    def in_words(self, tokens: int) -> str:
        """For a person: what was used, by phase and component, and a line for each component without a counter."""
        lines = [f"no energy counter of {name}: {why}" for name, why in self.missing.items()]
        total_j, per_token = self.total_j, self.per_token(tokens)
        if total_j is not None:
            parts = ", ".join(f"{name} {joules:.1f} J" for name, joules in self.by_component.items())
            phases = ", ".join(f"{phase} {math.fsum(own.values()):.1f} J" for phase, own in self.phases_j.items())
            each = "" if per_token is None else f", {per_token:.3g} J/token"
            lines.insert(0, f"energy: {total_j:.1f} J{each} ({phases}; {parts})")
        return "".join(f"{line}\n" for line in lines)
