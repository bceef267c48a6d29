"""Attention with a key and a value of each head in the cache, grouped or not: full, in a window, in chunks."""

from dataclasses import dataclass

from sim.problem.model.attention.base import Attention, Keeping, Matrix, check_at_least
from sim.problem.model.attention.indexer import Indexer
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class HeadAttention(Attention):
    """Query, key and value heads. Raises InputError when a size is not positive, or heads do not divide into groups."""

    hidden_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    """Size of a query and a key."""
    value_head_dim: int
    window: int | None = None
    """Tokens a query can look back on; None is all of them."""
    qkv_bias: bool = False
    output_bias: bool = False
    gate_width: int = 0
    """The result is multiplied by a projection of the hidden state, as wide as itself (AFMoE) or as its heads."""
    values_are_keys: bool = False
    """Values are not projected: they are keys before these are normalised and rotated (Gemma 4)."""
    stored_query_heads: int | None = None
    """Query heads that exist, where a token is routed to some of them (JetMoE); None is `num_query_heads`."""
    sinks: bool = False
    """Each head has a weight that takes part in the softmax (gpt-oss)."""
    indexer: Indexer | None = None
    remembered: int = 0
    """Numbers of a request beside the cache: the last tokens that a convolution over keys and values looks back on."""
    extra_weights: int = 0
    """Further projections of the hidden state."""
    extra_params: int = 0
    """Norms of queries and keys, attention sinks."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_query_heads", "num_kv_heads", "head_dim", "value_head_dim", "window")
        check_at_least(self, 1, *sizes)
        check_at_least(self, 0, "gate_width", "remembered", "extra_weights", "extra_params")
        check_at_least(self, self.num_query_heads, "stored_query_heads")
        heads, groups = self.num_query_heads, self.num_kv_heads
        if heads % groups:
            raise InputError(f"Attention.num_query_heads must be a multiple of num_kv_heads, got {heads} and {groups}")

    @property
    def kind(self) -> str:
        if self.indexer:
            return "indexed"
        return "full" if self.window is None else "sliding"

    @property
    def query_width(self) -> int:
        return self.num_query_heads * self.head_dim

    @property
    def output_width(self) -> int:
        """Width of the heads' results side by side: what the output projection takes."""
        return self.num_query_heads * self.value_head_dim

    @property
    def keeping(self) -> Keeping:
        if self.indexer is None:
            return Keeping(self.window)
        return Keeping(self.window, None, self.indexer.top_k, self.indexer.pool)

    @property
    def cached_width(self) -> int:
        return self.num_kv_heads * (self.head_dim + self.value_head_dim)

    def cache_copies(self, num_devices: int) -> float:
        return max(1.0, num_devices / self.num_kv_heads)

    @property
    def undivided_params(self) -> int:
        return self.extra_params

    @property
    def index_key_dim(self) -> int:
        return self.indexer.key_dim if self.indexer else 0

    @property
    def state_bytes(self) -> int:
        return 2 * self.remembered

    @property
    def sent_query_width(self) -> int:
        return self.query_width + (self.indexer.sent_width if self.indexer else 0)

    @property
    def new_width(self) -> int:
        return self.cached_width + self.index_key_dim

    @property
    def returned_width(self) -> int:
        return self.output_width

    @property
    def pre_weights(self) -> int:
        values = 0 if self.values_are_keys else self.num_kv_heads * self.value_head_dim
        projected = self.query_width + self.num_kv_heads * self.head_dim + values + self.gate_width
        return self.hidden_size * projected + self.extra_weights + (self.indexer.weights if self.indexer else 0)

    @property
    def post_weights(self) -> int:
        return self.hidden_size * self.output_width

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Query with what the result is multiplied by, as most checkpoints store them; key, value, output."""
        keys, values = (self.num_kv_heads * dim for dim in (self.head_dim, self.value_head_dim))
        value = () if self.values_are_keys else (("v", self.hidden_size, values),)
        query = ("q", self.hidden_size, self.query_width + self.gate_width)
        return query, ("k", self.hidden_size, keys), *value, ("o", self.output_width, self.hidden_size)

    @property
    def _idle_query_heads(self) -> int:
        return (self.stored_query_heads or self.num_query_heads) - self.num_query_heads

    @property
    def idle_params(self) -> int:
        return self.hidden_size * self._idle_query_heads * (self.head_dim + self.value_head_dim)

    @property
    def pre_params(self) -> int:
        bias = self.query_width + self.cached_width if self.qkv_bias else 0
        index = self.indexer.extra_params if self.indexer else 0
        idle = self.hidden_size * self._idle_query_heads * self.head_dim
        return self.pre_weights + idle + bias + index + self.extra_params

    @property
    def post_params(self) -> int:
        bias = self.hidden_size if self.output_bias else 0
        return self.post_weights + self.hidden_size * self._idle_query_heads * self.value_head_dim + bias

    @property
    def pair_width(self) -> int:
        return self.query_width + self.output_width

    @property
    def index_pair_width(self) -> int:
        return self.indexer.pair_width if self.indexer else 0

    @property
    def held_width(self) -> int:
        """Rotation holds the query times its cosines, its halves swapped, and these times their sines."""
        return 4 * self.query_width + self.new_width

    @property
    def scored_heads(self) -> int:
        return self.num_query_heads if self.sinks else 0

    @property
    def softmax_heads(self) -> int:
        return self.num_query_heads

    @property
    def group(self) -> float:
        return self.num_query_heads / self.num_kv_heads
