"""What a stream did, in numbers."""

from dataclasses import dataclass, fields
from typing import Any

from engine.device import EnergyUse
from engine.generation.trace import described_energy
from sim.simulation import Quantiles, RequestTimes


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream did. `total_s` is from its first step to its end; peaks are by tier."""

    num_requests: int
    generated_tokens: int
    num_steps: int
    total_s: float
    peak_bytes: dict[str, int]
    times: tuple[RequestTimes, ...]
    """Of each request that came to its end: when it had its first token, and its last, from the first step on."""
    energy: EnergyUse | None = None
    """Where it was asked for: the joules from the first step to the end, in one phase, as prompts go beside decode."""

    @property
    def tokens_per_s(self) -> float:
        return self.generated_tokens / self.total_s if self.total_s else 0.0

    @property
    def first_token_s(self) -> Quantiles:
        return Quantiles.of(one.first_token_s for one in self.times)

    @property
    def whole_s(self) -> Quantiles:
        return Quantiles.of(one.whole_s for one in self.times)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values; of the times, what so large a share of the requests does not exceed."""
        numbers = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("times", "energy")}
        numbers |= described_energy(self.energy, self.generated_tokens)
        times = {name: getattr(self, name)._asdict() for name in ("first_token_s", "whole_s") if self.times}
        return {**numbers, "tokens_per_s": self.tokens_per_s, **times}
