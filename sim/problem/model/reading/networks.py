"""The networks of a layer: routed and shared experts, a dense one in their place or beside them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sim.problem.model.feed_forward import FeedForward
from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from traces.errors import InputError

MOST_EXPERTS = 4096
"""Of a layer: the widest model, Switch-C, has 2,048."""


class RoutedExperts(NamedTuple):
    """What a layer with experts has."""

    num_experts: int
    top_k: int
    expert: FeedForward
    shared: FeedForward | None
    router_params: int

    def of_layer(self) -> Mapping[str, Any]:
        return self._asdict()


def dense_network(fields: Fields, family: Family, index: int) -> FeedForward:
    """The one network of a layer without experts."""
    hidden, width = fields.count("hidden_size"), fields.count("intermediate_size_mlp", layer=index)
    return FeedForward(hidden, width, family.expert_bias or fields.flag("mlp_bias"), gated=family.gated)


def routed_experts(fields: Fields, family: Family, index: int) -> RoutedExperts:
    """Raises InputError where a token cannot use as many as it should."""
    hidden = fields.count("hidden_size")
    number = fields.count("num_local_experts", layer=index, most=MOST_EXPERTS)
    idle = fields.count("zero_expert_num", default=family.zero_experts, minimum=0)
    inner = fields.count("moe_hidden_size", default=0, minimum=0)
    shared = _shared(fields, family, hidden, index)
    router = (number + idle) * (hidden + family.router_bias) + 2 * hidden * inner
    if family.routed_heads:  # JetMoE: a second router, for heads, and a bias on the sum of both kinds of experts
        router += number * hidden + 2 * hidden
    if family.shared_gate and shared:
        router += hidden
    width = fields.count("moe_intermediate_size", layer=index)
    bias = family.expert_bias or fields.flag("mlp_bias")
    expert = FeedForward(inner or hidden, width, bias, held=family.expert_held, gated=family.gated)
    return RoutedExperts(number, _top_k(fields, index, number, idle), expert, shared, router)


def _top_k(fields: Fields, index: int, number: int, idle: int) -> int:
    """RoutedExperts that a token uses, on average where some of those it may choose compute nothing."""
    top_k = fields.count("num_experts_per_tok", layer=index)
    if top_k > number + idle:
        chosen, there = (fields.find(name)[0] for name in ("num_experts_per_tok", "num_local_experts"))
        raise InputError(
            f"{chosen} = {top_k} exceeds {there} = {number}: a token cannot use more experts than there are"
        )
    return max(1, round(top_k * number / (number + idle))) if idle else top_k


def _shared(fields: Fields, family: Family, hidden: int, index: int) -> FeedForward | None:
    number = fields.count("n_shared_experts", default=family.shared_experts, minimum=0, layer=index)
    width = fields.count("shared_expert_intermediate_size", default=0, minimum=0, layer=index)
    if not width and number:
        width = number * fields.count("moe_intermediate_size", layer=index)
    return FeedForward(hidden, width, fields.flag("mlp_bias"), gated=family.gated) if width else None
