"""A layer of a configuration: what mixes its tokens, its networks, its norms."""

from dataclasses import replace

from sim.problem.model.feed_forward import FeedForward
from sim.problem.model.layer import Layer
from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from sim.problem.model.reading.kinds import has_experts, kind_of, type_of
from sim.problem.model.reading.mixers import mixer_of
from sim.problem.model.reading.networks import dense_network, routed_experts
from sim.problem.model.reading.peculiar import peculiar_ends, with_peculiarities

MOST_LAYERS = 1000
"""The deepest models have about 130."""


def number_of_layers(fields: Fields) -> int:
    """As it says, or as many as it names one by one."""
    listed, pattern = fields.entries("layer_types"), fields.text("hybrid_override_pattern")
    named = len(listed) if listed else len(pattern.replace("|", "")) or None
    return fields.count("num_hidden_layers", default=named, most=MOST_LAYERS)


def read_layer(fields: Fields, family: Family, index: int) -> Layer:
    """The layer of this number. Raises InputError, naming the field, where it cannot be told."""
    fields = fields.of_layer(index)
    kind, name = kind_of(fields, family, index), type_of(fields, family, index)
    attention = mixer_of(fields, family, kind, index)
    bare = Layer(attention, norm_params=family.norms_per_layer * norm_params(fields, family) + _mixing(fields, family))
    if family.one_part:
        if name == "mlp":
            return replace(bare, dense=dense_network(fields, family, index))
        if name != "moe":
            return bare
    elif not has_experts(fields, family, index):
        dense = dense_network(fields, family, index)
        return with_peculiarities(fields, family, kind, index, replace(bare, dense=_repeated(dense, family)))
    more = family.norms_with_experts * norm_params(fields, family)
    beside = _repeated(dense_network(fields, family, index), family) if family.dense_beside_experts else None
    computed = family.computes_all_experts, family.computes_experts_in_turn
    routed = replace(
        bare, **routed_experts(fields, family, index).of_layer(), dense=beside, norm_params=bare.norm_params + more
    )
    routed = replace(routed, computes_all_experts=computed[0], computes_experts_in_turn=computed[1])
    return with_peculiarities(fields, family, kind, index, routed)


def _repeated(network: FeedForward, family: Family) -> FeedForward:
    """Two networks one after the other store and compute what one of twice the width does."""
    return replace(network, intermediate_size=2 * network.intermediate_size) if family.attends_twice else network


def norm_params(fields: Fields, family: Family) -> int:
    """Of one norm over the hidden state."""
    return fields.count("hidden_size") * (1 + family.norm_bias)


def _mixing(fields: Fields, family: Family) -> int:
    """What mixes the streams of the residual before and behind a layer's attention and networks (hyper-connections)."""
    if not family.residual_rows:
        return 0
    streams, hidden = fields.count("hc_mult"), fields.count("hidden_size")
    rows, scales = ((2 + streams) * streams, 3) if family.residual_rows == "full" else (2 * streams, 2)
    return 2 * (rows * (streams * hidden + 1) + scales)


def ends_params(fields: Fields, family: Family) -> int:
    """What the model has behind its last layer, the head apart: a norm, and what sums up streams of the residual."""
    norm = family.end_norms * norm_params(fields, family) + peculiar_ends(fields, family)
    if not family.residual_head:
        return norm
    streams = fields.count("hc_mult")
    return norm + streams * (streams * fields.count("hidden_size") + 1) + 1
