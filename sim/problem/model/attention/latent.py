"""Multi-head latent attention: the cache holds one compressed vector a token, shared by all heads.

The projections between latent and heads are applied to the query and to the result ("absorbed", DeepSeek-V2,
arXiv 2405.04434, section 2.1.2), so attention itself runs on the compressed cache.
"""

from dataclasses import dataclass

from sim.problem.model.attention.base import Attention, Keeping, Matrix, check_at_least
from sim.problem.model.attention.indexer import Indexer


@dataclass(frozen=True, slots=True)
class LatentAttention(Attention):
    """Heads over a latent. Raises InputError when a size is not positive."""

    hidden_size: int
    num_heads: int
    nope_head_dim: int
    """Of a query and a key, what is not rotated."""
    rope_head_dim: int
    """What is; 0 where nothing is."""
    value_head_dim: int
    kv_rank: int
    query_rank: int | None = None
    """Width of the query's own bottleneck; None projects the query from the hidden state."""
    query_input: int | None = None
    """Width of what queries are projected from, where it is not the bottleneck (A.X K2: with norm and without)."""
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    gate_weights: int = 0
    """Multiply-accumulates of one token for what the result is multiplied by."""
    sinks: bool = False
    reads_index: int | None = None
    """Entries that are attended to where the index is that of an earlier layer."""
    indexer: Indexer | None = None
    extra_params: int = 0
    """Norms of latents, attention sinks."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_heads", "nope_head_dim", "value_head_dim", "kv_rank", "query_rank", "query_input")
        check_at_least(self, 1, *sizes, "window", "reads_index")
        check_at_least(self, 0, "rope_head_dim", "gate_weights", "extra_params")

    @property
    def kind(self) -> str:
        return "latent" if self.keeping.top_k is None else "latent, indexed"

    @property
    def head_dim(self) -> int:
        return self.nope_head_dim + self.rope_head_dim

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def output_width(self) -> int:
        return self.num_heads * self.value_head_dim

    @property
    def keeping(self) -> Keeping:
        if self.indexer is None:
            return Keeping(self.window, None, self.reads_index)
        return Keeping(self.window, None, self.indexer.top_k, self.indexer.pool)

    @property
    def cached_width(self) -> int:
        """The latent and its rotary key."""
        return self.kv_rank + self.rope_head_dim

    def cache_copies(self, num_devices: int) -> float:
        return float(num_devices)

    @property
    def undivided_params(self) -> int:
        """What leads to latents, the query's and the cache's."""
        to_latents = self.hidden_size * ((self.query_rank or 0) + self.cached_width)
        return to_latents + self.extra_params + (self.indexer.params if self.indexer else 0)

    @property
    def index_key_dim(self) -> int:
        return self.indexer.key_dim if self.indexer else 0

    @property
    def sent_query_width(self) -> int:
        """Each head's query is as wide as the cache."""
        return self.num_heads * self.cached_width + (self.indexer.sent_width if self.indexer else 0)

    @property
    def new_width(self) -> int:
        return self.cached_width + self.index_key_dim

    @property
    def returned_width(self) -> int:
        """Still in the latent space."""
        return self.num_heads * self.kv_rank

    @property
    def pre_weights(self) -> int:
        query = self.hidden_size * self.query_width
        if self.query_rank is not None:
            query = self.hidden_size * self.query_rank + (self.query_input or self.query_rank) * self.query_width
        absorbed_key = self.num_heads * self.nope_head_dim * self.kv_rank
        index = self.indexer.weights if self.indexer else 0
        return query + self.hidden_size * self.cached_width + absorbed_key + self.gate_weights + index

    @property
    def post_weights(self) -> int:
        return self.hidden_size * self.output_width + self.output_width * self.kv_rank

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        query: tuple[Matrix, ...] = (("q", self.hidden_size, self.query_width),)
        if self.query_rank is not None:
            inner = self.query_input or self.query_rank
            query = ("q_a", self.hidden_size, self.query_rank), ("q_b", inner, self.query_width)
        return (
            *query,
            ("kv_a", self.hidden_size, self.cached_width),
            ("k_b", self.nope_head_dim, self.num_heads * self.kv_rank),
            ("v_b", self.kv_rank, self.output_width),
            ("o", self.output_width, self.hidden_size),
        )

    @property
    def pre_params(self) -> int:
        bias = (self.query_rank or 0) + self.cached_width if self.qkv_bias else 0
        return self.pre_weights + bias + self.extra_params + (self.indexer.extra_params if self.indexer else 0)

    @property
    def post_params(self) -> int:
        return self.post_weights + (self.hidden_size if self.output_bias else 0)

    @property
    def pair_width(self) -> int:
        return self.num_heads * self.cached_width + self.returned_width

    @property
    def prompt_pair_width(self) -> int:
        """Prompts attend with keys and values projected out per head; that projection counts in the weights."""
        return self.query_width + self.output_width

    @property
    def index_pair_width(self) -> int:
        return self.indexer.pair_width if self.indexer else 0

    @property
    def held_width(self) -> int:
        """In prefill keys and values of every head, and their parts before they are put together."""
        keys_values = self.new_width + 2 * self.num_heads * (self.head_dim + self.value_head_dim)
        return 4 * self.query_width + keys_values

    @property
    def scored_heads(self) -> int:
        return self.num_heads if self.sinks else 0

    @property
    def joins_cache(self) -> bool:
        return True

    @property
    def expanded_width(self) -> int:
        """Every head's key, and what it and its value are put together of."""
        return self.num_heads * (self.head_dim + self.nope_head_dim + self.value_head_dim)

    @property
    def softmax_heads(self) -> int:
        return self.num_heads
