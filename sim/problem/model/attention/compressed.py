"""Attention over a window and, beyond it, over entries that stand for several tokens each (DeepSeek-V4).

One head of keys, which are values too, serves all queries. Where an index chooses among the far entries it has keys of
its own, one for each of them.
"""

from dataclasses import dataclass, field

from sim.problem.model.attention.base import Attention, Keeping, Matrix, check_at_least
from sim.problem.model.attention.indexer import Indexer

FOR_GATES = 2
"""What is compressed has a gate as wide as itself."""


@dataclass(frozen=True, slots=True)
class CompressedAttention(Attention):
    """Raises InputError when a size is not positive."""

    hidden_size: int
    num_heads: int
    head_dim: int
    query_rank: int
    window: int = field()
    """Tokens of the window."""
    stride: int | None
    """Tokens that one entry beyond it stands for; None where there are none."""
    compressed_width: int
    """Numbers that a token adds to the entry it belongs to: twice the head's where entries overlap."""
    output_groups: int
    output_rank: int
    indexer: Indexer | None = None
    index_width: int = 0
    """The same of the index's entries."""
    extra_params: int = 0

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_heads", "head_dim", "query_rank", "window", "stride")
        check_at_least(self, 1, *sizes, "output_groups", "output_rank")
        check_at_least(self, 0, "compressed_width", "index_width", "extra_params")

    @property
    def kind(self) -> str:
        if self.stride is None:
            return "sliding"
        return "compressed, indexed" if self.indexer else "compressed"

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def keeping(self) -> Keeping:
        return Keeping(self.window, self.stride, self.indexer.top_k if self.indexer else None)

    @property
    def cached_width(self) -> int:
        return self.head_dim

    def cache_copies(self, num_devices: int) -> float:
        return float(num_devices)

    @property
    def index_key_dim(self) -> int:
        return self.indexer.key_dim if self.indexer else 0

    @property
    def state_bytes(self) -> int:
        """Tokens that wait for the entry they belong to, in 16 bits, with their gates."""
        waiting = FOR_GATES * (self.compressed_width + self.index_width)
        return 2 * waiting * (self.stride or 0)

    @property
    def sent_query_width(self) -> int:
        return self.query_width + (self.indexer.sent_width if self.indexer else 0)

    @property
    def new_width(self) -> int:
        return self.head_dim + FOR_GATES * (self.compressed_width + self.index_width)

    @property
    def returned_width(self) -> int:
        return self.query_width

    @property
    def pre_weights(self) -> int:
        query = self.query_rank * (self.hidden_size + self.query_width)
        return query + self.hidden_size * self.new_width + (self.indexer.weights if self.indexer else 0)

    @property
    def post_weights(self) -> int:
        """Each group of heads has a bottleneck of its own."""
        return self.output_rank * (self.query_width + self.output_groups * self.hidden_size)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        inner = self.output_groups * self.output_rank
        return (
            ("q_a", self.hidden_size, self.query_rank),
            ("q_b", self.query_rank, self.query_width),
            ("kv_a", self.hidden_size, self.head_dim),
            ("o", self.query_width // self.output_groups, inner),
            ("o", inner, self.hidden_size),
        )

    @property
    def pre_params(self) -> int:
        return self.pre_weights + self.extra_params + (self.indexer.extra_params if self.indexer else 0)

    @property
    def post_params(self) -> int:
        return self.post_weights

    @property
    def pair_width(self) -> int:
        return 2 * self.query_width

    @property
    def index_pair_width(self) -> int:
        return self.indexer.pair_width if self.indexer else 0

    @property
    def held_width(self) -> int:
        return 4 * self.query_width + self.new_width

    @property
    def scored_heads(self) -> int:
        return self.num_heads

    @property
    def softmax_heads(self) -> int:
        return self.num_heads

    @property
    def group(self) -> float:
        return float(self.num_heads)
