"""A policy that was simulated, with what it could reach at best."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from sim.cost import Setup
from sim.problem import Policy
from sim.schedule import Tier
from sim.simulation import Prediction, predict
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Candidate(Prediction):
    """One simulated policy, and what it could reach at best."""

    bound_tokens_per_s: float
    known_joules: float | None = None
    """Joules of a generated token, where a search asks for them again and again."""

    @classmethod
    def of(cls, setup: Setup, bound: float, *, with_joules: bool = False) -> Self:
        """Simulate a setup. Raises InputError if it does not fit."""
        found = predict(setup, compiled=True)
        one = cls(**{one.name: getattr(found, one.name) for one in fields(found)}, bound_tokens_per_s=bound)
        return replace(one, known_joules=one.joules_per_token) if with_joules else one

    @property
    def joules_per_token(self) -> float:
        """Of the whole machine, for each generated token. Raises InputError where its watts are not known."""
        joules = self._joules()
        if joules is None:
            machine = self.setup.problem.hardware.name
            raise InputError(f"joules: {machine} does not say what it draws: give it power.device.limit")
        return joules

    def _joules(self) -> float | None:
        if self.known_joules is not None:
            return self.known_joules
        energy = self.energy
        return energy.j_per_token if energy else None

    @property
    def device_bytes(self) -> int:
        return self.memory_peak_bytes[Tier.DEVICE]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schedule": self.schedule,
            "policy": self.policy.to_dict(),
            "num_requests": self.num_requests,
            "throughput_tokens_per_s": self.throughput_tokens_per_s,
            "bound_tokens_per_s": self.bound_tokens_per_s,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "time_to_first_token_s": self.time_to_first_token_s,
            "seconds_per_token": self.seconds_per_token,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "bottleneck": self.bottleneck,
            "energy_j_per_token": self._joules(),
            "memory_peak_bytes": self.memory_peak_bytes,
        }


def in_essence(policy: Policy) -> Policy:
    """The policy without its pages and page-locked weights: equal for two that are about the same."""
    return replace(policy, pages=None, pin_weights=0.0)
