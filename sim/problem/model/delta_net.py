"""Gated delta-rule layers (Qwen3-Next, Qwen3.5): linear attention, told in the nouns of attention.

A request's state takes the cache's place: a matrix of key by value of each value head, in 32 bits, that no context
makes longer. That is a window of as many tokens as the state has room for. A key head is shared by several value heads,
whose values stand side by side in one wide head here, so projections, parameters and state come out as they are.
"""

import math

from sim.problem.model.fields import Fields
from sim.problem.model.layer import Attention
from traces.errors import InputError

STATE_PER_NUMBER = 2
"""Numbers of the cache, of 16 bits, that one number of the state takes."""


def is_linear(fields: Fields, index: int) -> bool:
    """Whether a layer is one: as the list of layers says, or all but every so many."""
    kind = fields.per_layer("layer_types", index)
    if kind is not None:
        return kind == "linear_attention"
    return (index + 1) % fields.count("full_attention_interval", default=1) != 0


def delta_net(fields: Fields) -> Attention:
    """One such layer. Raises InputError where value heads do not divide among key heads."""
    keys, values = fields.count("linear_num_key_heads"), fields.count("linear_num_value_heads")
    if values % keys:
        raise InputError(f"linear_num_value_heads = {values} must be a multiple of linear_num_key_heads = {keys}")
    key_dim, value_dim = fields.count("linear_key_head_dim"), fields.count("linear_value_head_dim")
    hidden, mixed = fields.count("hidden_size"), 2 * keys * key_dim + values * value_dim
    kernel = fields.count("linear_conv_kernel_dim")
    state = STATE_PER_NUMBER * values * key_dim * value_dim + mixed * (kernel - 1)
    decays = (
        2 * values * hidden + 2 * values
    )  # how much is kept and how much is new of each head, from the hidden state
    return Attention(
        hidden_size=hidden,
        num_query_heads=keys,
        num_kv_heads=keys,
        head_dim=key_dim,
        value_head_dim=values // keys * value_dim,
        window=math.ceil(state / (mixed - keys * key_dim)),
        output_gate=True,
        extra_params=decays + mixed * kernel + value_dim,
    )
