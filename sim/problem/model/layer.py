"""One decoder layer as the simulator sees it: what it stores, moves and computes.

One multiply-accumulate is 2 FLOPs. Softmax, rotary embedding, normalisation and activations are not counted: they are
below 1 % of the arithmetic of any layer here. `bits` is the width of one stored number.
"""

from dataclasses import dataclass

from sim.problem.widths import Widths, packed_bytes
from traces.errors import InputError


def check_at_least(owner: object, minimum: float, *names: str) -> None:
    """Refuse a field below `minimum`; a field that is None is absent and passes."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value >= minimum:
            raise InputError(f"{type(owner).__name__}.{name} must be at least {minimum:g}, got {value}")


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: the cache holds one compressed vector a token, shared by all heads.

    The projections between latent and heads are applied to the query and to the result ("absorbed", DeepSeek-V2,
    arXiv 2405.04434, section 2.1.2), so attention itself runs on the compressed cache.
    """

    kv_rank: int
    rope_head_dim: int
    query_rank: int | None = None
    """Width of the query's own bottleneck; None projects the query from the hidden state."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "kv_rank", "rope_head_dim", "query_rank")


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one layer: its projections, its cache and its arithmetic.

    Raises InputError when a size is not positive, or heads do not divide into groups.
    """

    hidden_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    """Size of a query and a key; with MLA it includes the rotary part."""
    value_head_dim: int
    window: int | None = None
    """Tokens a query can look back on; None is all of them."""
    latent: Latent | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    output_gate: bool = False
    """The result is multiplied by a projection of the hidden state as wide as itself (AFMoE)."""
    stored_query_heads: int | None = None
    """Query heads that exist, where a token is routed to some of them (JetMoE); None is `num_query_heads`."""
    sinks: bool = False
    """Each head has a weight that takes part in the softmax (gpt-oss)."""
    extra_params: int = 0
    """Norms of queries, keys and latents, attention sinks."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_query_heads", "num_kv_heads", "head_dim", "value_head_dim", "window")
        check_at_least(self, 1, *sizes)
        check_at_least(self, 0, "extra_params")
        check_at_least(self, self.num_query_heads, "stored_query_heads")
        heads, groups = self.num_query_heads, self.num_kv_heads
        if heads % groups:
            raise InputError(f"Attention.num_query_heads must be a multiple of num_kv_heads, got {heads} and {groups}")
        rope = self.latent.rope_head_dim if self.latent else 0
        if rope >= self.head_dim:
            raise InputError(f"Latent.rope_head_dim must be below head_dim, got {rope} and {self.head_dim}")

    @property
    def query_width(self) -> int:
        return self.num_query_heads * self.head_dim

    @property
    def output_width(self) -> int:
        """Width of the heads' results side by side: what the output projection takes."""
        return self.num_query_heads * self.value_head_dim

    @property
    def cached_width(self) -> int:
        """Numbers the cache keeps of one token: keys and values, or the latent and its rotary key."""
        if self.latent:
            return self.latent.kv_rank + self.latent.rope_head_dim
        return self.num_kv_heads * (self.head_dim + self.value_head_dim)

    @property
    def sent_query_width(self) -> int:
        """Width of a query as attention over the cache takes it; with MLA each head's is as wide as the cache."""
        return self.num_query_heads * self.cached_width if self.latent else self.query_width

    @property
    def returned_width(self) -> int:
        """Width of a result as attention over the cache gives it; with MLA still in the latent space."""
        return self.num_query_heads * self.latent.kv_rank if self.latent else self.output_width

    @property
    def pre_weights(self) -> int:
        """Multiply-accumulates of one token before attention."""
        gate = self.hidden_size * self.output_width if self.output_gate else 0
        if self.latent is None:
            return self.hidden_size * (self.query_width + self.cached_width) + gate
        latent, nope_head_dim = self.latent, self.head_dim - self.latent.rope_head_dim
        query = self.hidden_size * self.query_width
        if latent.query_rank is not None:
            query = latent.query_rank * (self.hidden_size + self.query_width)
        absorbed_key = self.num_query_heads * nope_head_dim * latent.kv_rank
        return query + self.hidden_size * self.cached_width + absorbed_key + gate

    @property
    def post_weights(self) -> int:
        """Multiply-accumulates of one token after attention: the output projection."""
        absorbed_value = self.output_width * self.latent.kv_rank if self.latent else 0
        return self.hidden_size * self.output_width + absorbed_value

    @property
    def idle_query_heads(self) -> int:
        return (self.stored_query_heads or self.num_query_heads) - self.num_query_heads

    @property
    def pre_params(self) -> int:
        query_bias = (self.latent.query_rank or 0) if self.latent else self.query_width
        bias = query_bias + self.cached_width if self.qkv_bias else 0
        return self.pre_weights + self.hidden_size * self.idle_query_heads * self.head_dim + bias + self.extra_params

    @property
    def post_params(self) -> int:
        bias = self.hidden_size if self.output_bias else 0
        return self.post_weights + self.hidden_size * self.idle_query_heads * self.value_head_dim + bias


Held = tuple[tuple[int, int], ...]
"""Vectors that one token holds inside a network, at each moment that may be the widest: (so many as wide as the hidden
state, so many as wide as the network)."""

FUSED: Held = ((1, 3), (4, 0))
"""Input, gate, up and their product; later input and output, the latter as computed, weighted, and put back in the
order of tokens: the fused experts of transformers 5."""


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A gated feed-forward network: gate and up projections, activation, down projection."""

    hidden_size: int
    intermediate_size: int
    bias: bool = False
    held: Held = FUSED
    """What a routed token holds of it."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "hidden_size", "intermediate_size")

    @property
    def weights(self) -> int:
        """Multiply-accumulates of one token."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def params(self) -> int:
        return self.weights + (2 * self.intermediate_size + self.hidden_size if self.bias else 0)

    def held_numbers(self, num_devices: int) -> float:
        """Numbers of the widest moment of a routed token, where devices share the network's width."""
        width = self.intermediate_size / num_devices
        return max(hidden * self.hidden_size + inner * width for hidden, inner in self.held)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: attention, then any of routed experts, shared experts and a dense network.

    A leading dense layer has `num_experts` 0 and no `expert`. Raises InputError when `top_k` exceeds `num_experts`.
    """

    attention: Attention
    num_experts: int = 0
    top_k: int = 0
    expert: FeedForward | None = None
    shared: FeedForward | None = None
    """All shared experts as one network: every token passes through it."""
    dense: FeedForward | None = None
    router_params: int = 0
    norm_params: int = 0
    computes_all_experts: bool = False
    """Whether every token goes through every expert, those it does not use with an input of zero (Llama 4)."""
    computes_experts_in_turn: bool = False
    """Whether the model's code goes from one expert to the next, each with the tokens that use it (DBRX)."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "num_experts", "router_params", "norm_params")
        if (self.num_experts > 0) != (self.expert is not None):
            raise InputError(f"Layer.expert and num_experts must agree, got {self.expert} and {self.num_experts}")
        if not min(1, self.num_experts) <= self.top_k <= self.num_experts:
            raise InputError(f"Layer.top_k must be between 1 and num_experts = {self.num_experts}, got {self.top_k}")

    @property
    def hidden_size(self) -> int:
        return self.attention.hidden_size

    @property
    def computed_experts(self) -> int:
        """Routed experts that the model's code computes for a token at once."""
        if self.computes_experts_in_turn:
            return min(1, self.top_k)
        return self.num_experts if self.computes_all_experts else self.top_k

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert; 0 in a dense layer."""
        return self.expert.params if self.expert else 0

    @property
    def shared_expert_params(self) -> int:
        return self.shared.params if self.shared else 0

    @property
    def dense_ffn_params(self) -> int:
        return self.dense.params if self.dense else 0

    @property
    def attention_params(self) -> int:
        return self.attention.pre_params + self.attention.post_params

    @property
    def non_expert_params(self) -> int:
        """Everything in the layer but its routed experts."""
        networks = self.shared_expert_params + self.dense_ffn_params
        return self.attention_params + self.router_params + networks + self.norm_params

    @property
    def total_params(self) -> int:
        return self.num_experts * self.expert_params + self.non_expert_params

    @property
    def active_params(self) -> int:
        """Parameters that one token uses."""
        idle_heads = self.attention.idle_query_heads * (self.attention.head_dim + self.attention.value_head_dim)
        return self.top_k * self.expert_params + self.non_expert_params - self.hidden_size * idle_heads

    def expert_bytes(self, bits: float) -> int:
        """One routed expert."""
        return packed_bytes(self.expert_params, bits)

    def experts_bytes(self, bits: float) -> int:
        """All routed experts."""
        return packed_bytes(self.num_experts * self.expert_params, bits)

    def non_expert_bytes(self, widths: Widths) -> int:
        """Everything in the layer but its routed experts."""
        return widths.bytes_of(
            attention=self.attention_params,
            shared=self.shared_expert_params,
            dense=self.dense_ffn_params,
            router=self.router_params + self.norm_params,
        )

    def kv_bytes_per_token(self, bits: float) -> int:
        """What the KV cache of this layer keeps of one token."""
        return packed_bytes(self.attention.cached_width, bits)

    def qkv_bytes_per_token(self, bits: float) -> int:
        """D1 of MoE-Lightning (section 4.1): query, key and value of one token, on their way to attention."""
        return packed_bytes(self.attention.sent_query_width + self.attention.cached_width, bits)

    def attention_output_bytes_per_token(self, bits: float) -> int:
        """D2 in decode: what attention returns. It equals the hidden state only where heads × head size do."""
        return packed_bytes(self.attention.returned_width, bits)

    def hidden_bytes_per_token(self, bits: float) -> int:
        """D2 of MoE-Lightning (section 4.1): the hidden state of one token."""
        return packed_bytes(self.hidden_size, bits)

    def attended(self, context: int) -> int:
        """Tokens of the context that a query looks at."""
        return context if self.attention.window is None else min(context, self.attention.window)

    def experts_touched(self, tokens: float) -> float:
        """Distinct experts that `tokens` tokens are expected to use, when each picks its top k uniformly."""
        if self.num_experts == 0:
            return 0.0
        untouched: float = (1.0 - self.top_k / self.num_experts) ** tokens
        return self.num_experts * (1.0 - untouched)

    def pre_attn_flops(self, tokens: float) -> float:
        """Projections to query, key and value."""
        return 2.0 * tokens * self.attention.pre_weights

    def attention_flops(self, queries_times_context: float, *, expanded: bool = False) -> float:
        """QK and PV over that many pairs of a query and a token it attends to.

        `expanded` counts MLA with keys and values projected out per head, as in prefill; else over the latent cache,
        as in decode. The projections themselves are in `pre_attn_flops` and `out_proj_flops` either way.
        """
        attention = self.attention
        if attention.latent and not expanded:
            width = attention.sent_query_width + attention.returned_width
        else:
            width = attention.query_width + attention.output_width
        return 2.0 * queries_times_context * width

    def out_proj_flops(self, tokens: float) -> float:
        return 2.0 * tokens * self.attention.post_weights

    def ffn_flops(self, tokens: float) -> float:
        """Router, the top k experts, shared experts and dense network."""
        networks = ((self.top_k, self.expert), (1, self.shared), (1, self.dense))
        weights = sum(count * network.weights for count, network in networks if network)
        return 2.0 * tokens * (self.router_params + weights)
