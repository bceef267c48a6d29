"""A network that each token passes alone: of an expert, of shared experts, of a dense layer."""

from dataclasses import dataclass

from sim.problem.model.attention import check_at_least

Held = tuple[tuple[int, int], ...]
"""Vectors that one token holds inside a network, at each moment that may be the widest: (so many as wide as the hidden
state, so many as wide as the network)."""

FUSED: Held = ((1, 3), (4, 0))
"""Input, gate, up and their product; later input and output, the latter as computed, weighted, and put back in the
order of tokens: the fused experts of transformers 5."""


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A feed-forward network: gate and up projections, activation, down projection; without a gate two matrices."""

    hidden_size: int
    intermediate_size: int
    bias: bool = False
    held: Held = FUSED
    """What a routed token holds of it."""
    gated: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, 1, "hidden_size", "intermediate_size")

    @property
    def weights(self) -> int:
        """Multiply-accumulates of one token."""
        return (3 if self.gated else 2) * self.hidden_size * self.intermediate_size

    @property
    def params(self) -> int:
        inner = (2 if self.gated else 1) * self.intermediate_size
        return self.weights + (inner + self.hidden_size if self.bias else 0)

    def held_numbers(self, num_devices: int) -> float:
        """Numbers of the widest moment of a routed token, where devices share the network's width."""
        width = self.intermediate_size / num_devices
        return max(hidden * self.hidden_size + inner * width for hidden, inner in self.held)
