"""A layer whose tokens do not meet: it has nothing but networks."""

from dataclasses import dataclass

from sim.problem.model.attention.base import Attention, check_at_least


@dataclass(frozen=True, slots=True)
class NoAttention(Attention):
    """Nothing between tokens."""

    hidden_size: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "hidden_size")

    @property
    def kind(self) -> str:
        return "none"

    @property
    def pre_weights(self) -> int:
        return 0

    @property
    def post_weights(self) -> int:
        return 0

    @property
    def pre_params(self) -> int:
        return 0

    @property
    def post_params(self) -> int:
        return 0

    @property
    def sent_query_width(self) -> int:
        return 0

    @property
    def new_width(self) -> int:
        return 0

    @property
    def returned_width(self) -> int:
        return 0

    @property
    def held_width(self) -> int:
        return 0
