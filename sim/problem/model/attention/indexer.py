"""An index over the cache: small heads score every entry, and attention looks at the best ones alone.

DeepSeek Sparse Attention (DeepSeek-V3.2) has one key a token beside its latent; MiniMax-M3 chooses whole blocks.
"""

from dataclasses import dataclass

from sim.problem.model.attention.base import check_at_least


@dataclass(frozen=True, slots=True)
class Indexer:
    """The index of one layer. Its keys are shared by its heads. Raises InputError when a size is not positive."""

    num_heads: int
    key_dim: int
    top_k: int
    """Entries of the cache that attention looks at."""
    query_input: int
    """Width of what its queries are projected from."""
    key_input: int
    """Width of what its keys are projected from."""
    pool: int = 1
    """Tokens that share a key."""
    projects_keys: bool = True
    """Whether keys are projected here; else they are compressed with the cache's entries."""
    weighs_heads: bool = True
    """Whether heads count for as much as a projection of the hidden state says."""
    extra_params: int = 0
    """Norms, biases."""
    extra_weights: int = 0
    """Further projections, such as the gates by which tokens count where several of them share a key."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_heads", "key_dim", "top_k", "query_input", "key_input", "pool")
        check_at_least(self, 0, "extra_params", "extra_weights")

    @property
    def weights(self) -> int:
        """Multiply-accumulates of one token before it is scored."""
        heads = self.num_heads * self.key_input if self.weighs_heads else 0
        query = self.num_heads * self.key_dim * self.query_input
        keys = self.key_dim * self.key_input if self.projects_keys else 0
        return query + keys + heads + self.extra_weights

    @property
    def params(self) -> int:
        return self.weights + self.extra_params

    @property
    def pair_width(self) -> int:
        """Multiply-accumulates of a token with one key."""
        return self.num_heads * self.key_dim

    @property
    def sent_width(self) -> int:
        """Numbers of one token that ask: the queries, and what each head counts for."""
        return self.num_heads * self.key_dim + (self.num_heads if self.weighs_heads else 0)
