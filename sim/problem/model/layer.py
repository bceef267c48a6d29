"""One decoder layer as the simulator sees it: what it stores, moves and computes.

One multiply-accumulate is 2 FLOPs. Softmax, rotary embedding, normalisation and activations are not counted: they are
below 1 % of the arithmetic of any layer here. `bits` is the width of one stored number.
"""

from dataclasses import dataclass

from sim.problem.model.attention import Attention, check_at_least
from sim.problem.model.feed_forward import FeedForward
from sim.problem.widths import Widths, packed_bytes
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: attention, then any of routed experts, shared experts and a dense network.

    A layer without experts has `num_experts` 0 and no `expert`. Raises InputError when `top_k` exceeds `num_experts`.
    """

    attention: Attention
    num_experts: int = 0
    top_k: int = 0
    """Experts that a token uses; on average, where it may choose experts that compute nothing instead."""
    expert: FeedForward | None = None
    shared: FeedForward | None = None
    """All shared experts as one network: every token passes through it."""
    dense: FeedForward | None = None
    """A network in place of experts, or beside them."""
    router_params: int = 0
    """What stands between a token and its experts: the router, and projections to experts of another width."""
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
        return self.top_k * self.expert_params + self.non_expert_params - self.attention.idle_params

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

    def undivided_bytes(self, widths: Widths) -> int:
        """Of that, what devices which share each tensor have each for itself: norms, routers, ways to latents."""
        router = self.router_params + self.norm_params
        return widths.bytes_of(attention=self.attention.undivided_params, router=router)

    def kv_bytes_per_token(self, bits: float) -> int:
        """What the KV cache of this layer keeps of one token: keys and values, or what stands for them."""
        return packed_bytes(self.attention.cached_width, bits)

    def index_bytes_per_token(self, bits: float) -> int:
        """What an index over the cache keeps of one token."""
        return packed_bytes(self.attention.index_key_dim, bits)

    def qkv_bytes_per_token(self, bits: float) -> int:
        """D1 of MoE-Lightning (section 4.1): query, key and value of one token, on their way to attention."""
        return packed_bytes(self.attention.sent_query_width + self.attention.new_width, bits)

    def attention_output_bytes_per_token(self, bits: float) -> int:
        """D2 in decode: what attention returns. It equals the hidden state only where heads × head size do."""
        return packed_bytes(self.attention.returned_width, bits)

    def hidden_bytes_per_token(self, bits: float) -> int:
        """D2 of MoE-Lightning (section 4.1): the hidden state of one token."""
        return packed_bytes(self.hidden_size, bits)

    def routed_bytes_per_token(self, bits: float) -> int:
        """What goes into an expert, and comes out of it: the hidden state, or what of it narrower experts see."""
        return packed_bytes(self.expert.hidden_size if self.expert else self.hidden_size, bits)

    def attended(self, context: int) -> int:
        """Entries of the cache that a query looks at."""
        return self.attention.keeping.attended(context, 1) if self.attention.cached_width else 0

    def experts_touched(self, tokens: float) -> float:
        """Distinct experts that `tokens` tokens are expected to use, when each picks its top k uniformly."""
        if self.num_experts == 0:
            return 0.0
        untouched: float = (1.0 - self.top_k / self.num_experts) ** tokens
        return self.num_experts * (1.0 - untouched)

    def pre_attn_flops(self, tokens: float) -> float:
        """Projections to query, key and value."""
        return 2.0 * tokens * self.attention.pre_weights

    def out_proj_flops(self, tokens: float) -> float:
        return 2.0 * tokens * self.attention.post_weights

    def ffn_flops(self, tokens: float) -> float:
        """Router, the top k experts, shared experts and dense network."""
        networks = ((self.top_k, self.expert), (1, self.shared), (1, self.dense))
        weights = sum(count * network.weights for count, network in networks if network)
        return 2.0 * tokens * (self.router_params + weights)
