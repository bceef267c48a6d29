"""Layers that mix their tokens more than once, one after the other or side by side."""

from dataclasses import dataclass

from sim.problem.model.attention.base import EVERYTHING, Attention, Keeping, Matrix
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class SeveralAttentions(Attention):
    """All of a layer's attentions as one. Raises InputError unless those with a cache keep theirs alike."""

    parts: tuple[Attention, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or len({one.hidden_size for one in self.parts}) > 1:
            raise InputError(f"SeveralAttentions.parts must be two or more of one width, got {len(self.parts)}")
        if len({one.keeping for one in self._cached}) > 1:
            raise InputError("SeveralAttentions.parts keep their caches in different ways")

    @property
    def _cached(self) -> tuple[Attention, ...]:
        return tuple(one for one in self.parts if one.cached_width)

    @property
    def hidden_size(self) -> int:  # type: ignore[override]
        return self.parts[0].hidden_size

    @property
    def kind(self) -> str:
        return " + ".join(one.kind for one in self.parts)

    @property
    def keeping(self) -> Keeping:
        return self._cached[0].keeping if self._cached else EVERYTHING

    @property
    def pre_weights(self) -> int:
        return sum(one.pre_weights for one in self.parts)

    @property
    def post_weights(self) -> int:
        return sum(one.post_weights for one in self.parts)

    @property
    def pre_params(self) -> int:
        return sum(one.pre_params for one in self.parts)

    @property
    def post_params(self) -> int:
        return sum(one.post_params for one in self.parts)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return tuple(matrix for one in self.parts for matrix in one.matrices)

    @property
    def idle_params(self) -> int:
        return sum(one.idle_params for one in self.parts)

    @property
    def sent_query_width(self) -> int:
        return sum(one.sent_query_width for one in self.parts)

    @property
    def new_width(self) -> int:
        return sum(one.new_width for one in self.parts)

    @property
    def returned_width(self) -> int:
        return sum(one.returned_width for one in self.parts)

    @property
    def cached_width(self) -> int:
        return sum(one.cached_width for one in self.parts)

    @property
    def index_key_dim(self) -> int:
        return sum(one.index_key_dim for one in self.parts)

    @property
    def state_bytes(self) -> int:
        return sum(one.state_bytes for one in self.parts)

    @property
    def pair_width(self) -> int:
        return sum(one.pair_width for one in self.parts)

    @property
    def prompt_pair_width(self) -> int:
        return sum(one.prompt_pair_width for one in self.parts)

    @property
    def index_pair_width(self) -> int:
        return sum(one.index_pair_width for one in self.parts)

    @property
    def state_weights(self) -> int:
        return sum(one.state_weights for one in self.parts)

    @property
    def prompt_state_weights(self) -> int:
        return sum(one.prompt_state_weights for one in self.parts)

    @property
    def held_width(self) -> int:
        return max(one.held_width for one in self.parts)

    def cache_copies(self, num_devices: int) -> float:
        return max(one.cache_copies(num_devices) for one in self.parts)

    @property
    def undivided_params(self) -> int:
        return sum(one.undivided_params for one in self.parts)

    @property
    def scored_heads(self) -> int:
        return max(one.scored_heads for one in self.parts)

    @property
    def joins_cache(self) -> bool:
        return any(one.joins_cache for one in self.parts)

    @property
    def expanded_width(self) -> int:
        return max(one.expanded_width for one in self.parts)

    @property
    def softmax_heads(self) -> int:
        return sum(one.softmax_heads for one in self.parts)

    @property
    def group(self) -> float:
        return max(one.group for one in self.parts)
