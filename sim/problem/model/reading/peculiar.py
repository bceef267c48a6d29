"""What single families have that no other one does: projections, scales and convolutions beside the usual parts."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from sim.problem.model.attention import HeadAttention, LatentAttention
from sim.problem.model.layer import Layer
from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from sim.problem.model.reading.kinds import Kind

Finish = Callable[[Fields, Kind, int, Layer], Layer]


def with_peculiarities(fields: Fields, family: Family, kind: Kind, index: int, layer: Layer) -> Layer:
    """A layer with what its family alone has."""
    finish = FINISHES.get(family.name)
    return layer if finish is None else finish(fields, kind, index, layer)


def peculiar_ends(fields: Fields, family: Family) -> int:
    """What a family alone has before its first layer and behind its last one."""
    hidden = fields.count("hidden_size")
    if family.name == "qwen4_exp":
        return fields.count("hc_count") * hidden * (1 + 2 * fields.count("hc_lowrank"))
    inputs = fields.count("hidden_size_per_layer_input", default=0, minimum=0) if family.name == "gemma4" else 0
    if not inputs:
        return 0
    words, layers = fields.count("vocab_size_per_layer_input"), fields.count("num_hidden_layers")
    return layers * inputs * (words + hidden) + inputs


def _axk2(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """Norms with a gate of low rank: before attention, and before experts."""
    gate = 2 * fields.count("gated_norm_rank") * layer.hidden_size
    return replace(layer, norm_params=layer.norm_params + gate * (2 if layer.num_experts else 1))


def _beam(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """A bias of the gate, one for each head."""
    return _with_attention(layer, extra_params=fields.count("num_attention_heads"))


def _deepseek_v4(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """The first layers choose experts by a table of words, which needs no correction."""
    named = fields.per_layer("mlp_layer_types", index)
    by_word = named == "hash_moe" if named else index < fields.count("num_hash_layers", default=3, minimum=0)
    return replace(layer, router_params=layer.router_params - layer.num_experts) if by_word else layer


def _gemma4(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """A scale of what the router sees and of each expert; inputs that each layer has of its own."""
    hidden, inputs = layer.hidden_size, fields.count("hidden_size_per_layer_input", default=0, minimum=0)
    router = hidden + layer.num_experts if layer.num_experts else 0
    norms = layer.norm_params + (2 * hidden * inputs + hidden if inputs else 0)
    return replace(layer, router_params=layer.router_params + router, norm_params=norms)


def _inkling(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """Relative positions that are projected; convolutions over keys, values, and what attention and experts return."""
    attention, hidden = layer.attention, layer.hidden_size
    assert isinstance(attention, HeadAttention)
    kernel, relative = fields.count("conv_kernel_size"), fields.count("d_rel")
    extent = attention.window or fields.count("rel_extent")
    convolved = attention.cached_width
    layer = _with_attention(
        layer,
        extra_weights=hidden * attention.num_query_heads * relative,
        extra_params=convolved * kernel + relative * extent,
        remembered=(convolved + 2 * hidden) * (kernel - 1),
    )
    shared = fields.count("n_shared_experts", default=0, minimum=0) if layer.num_experts else 0
    router = layer.router_params + shared * hidden + 1 if layer.num_experts else 0
    return replace(layer, router_params=router, norm_params=layer.norm_params + 2 * hidden * kernel)


def _inkling2(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """The same, with sinks that are projected, scales of clipped queries, and queries over the residuals of blocks."""
    attention, hidden = layer.attention, layer.hidden_size
    assert isinstance(attention, HeadAttention)
    kernel, relative, heads = fields.count("conv_kernel_size"), fields.count("d_rel"), attention.num_query_heads
    convolved, whole = attention.cached_width, kind is Kind.FULL
    dynamic = 2 * hidden * attention.num_kv_heads * kernel if whole else 0
    layer = _with_attention(
        layer,
        extra_weights=hidden * heads * (relative + 1) + dynamic,
        extra_params=convolved * kernel
        + relative * fields.count("rel_extent")
        + heads * (attention.head_dim + relative),
        remembered=(convolved + 2 * hidden) * (kernel - 1),
    )
    streams = (3 if whole else 1) * (index > 0) + 1
    norms = layer.norm_params + hidden * (streams + (2 if whole else 0) + 2 * kernel)
    return replace(layer, norm_params=norms)


def _mistral_large4(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """Scales of the softmax by position, of attention and of the index, which normalises its input besides."""
    attention = layer.attention
    assert isinstance(attention, LatentAttention)
    if attention.indexer is None:
        scaled = replace(attention, extra_params=attention.extra_params + 2 * attention.num_heads)
        return replace(layer, attention=scaled)
    more = 2 * layer.hidden_size + 2 * attention.indexer.num_heads
    indexer = replace(attention.indexer, extra_params=attention.indexer.extra_params + more)
    return replace(
        layer,
        attention=replace(attention, indexer=indexer, extra_params=attention.extra_params + 2 * attention.num_heads),
    )


def _muse_spark(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """Norms before and behind experts that are narrower than the hidden state."""
    narrow = layer.expert.hidden_size if layer.expert else 0
    return replace(layer, norm_params=layer.norm_params + 2 * narrow)


def _qwen4_exp(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """Streams of the residual mixed through a bottleneck before attention and before experts; no other norms."""
    streams = fields.count("hc_count") * layer.hidden_size
    mixing = streams * (1 + 2 * fields.count("hc_lowrank") + fields.count("hc_count"))
    return replace(layer, norm_params=layer.norm_params + 2 * mixing)


def _zaya(fields: Fields, kind: Kind, index: int, layer: Layer) -> Layer:
    """Queries and keys convolved twice, the second time within heads; a router of several layers; scaled residuals."""
    attention, hidden, width = layer.attention, layer.hidden_size, fields.count("router_hidden_size")
    assert isinstance(attention, HeadAttention)
    channels = attention.query_width + attention.num_kv_heads * attention.head_dim
    first, second = fields.count("cca_time0"), fields.count("cca_time1")
    layer = _with_attention(
        layer,
        extra_weights=channels * second * attention.head_dim,
        extra_params=channels * (first + 2) + attention.num_kv_heads,
        remembered=channels * (first + second - 2) + hidden,
    )
    outputs = layer.num_experts + 1
    router = width * hidden + 2 * width * width + outputs * width
    biases = 4 * width + (width if index else 0) + outputs
    return replace(layer, router_params=router + biases)


def _with_attention(layer: Layer, extra_weights: int = 0, extra_params: int = 0, remembered: int = 0) -> Layer:
    """A layer whose attention over heads has more of these."""
    attention = layer.attention
    assert isinstance(attention, HeadAttention)
    weights, params = attention.extra_weights + extra_weights, attention.extra_params + extra_params
    more = replace(attention, extra_weights=weights, extra_params=params, remembered=remembered)
    return replace(layer, attention=more)


FINISHES: Mapping[str, Finish] = {
    "axk2": _axk2,
    "beam": _beam,
    "deepseek_v4": _deepseek_v4,
    "gemma4": _gemma4,
    "inkling": _inkling,
    "inkling2": _inkling2,
    "mistral_large4": _mistral_large4,
    "muse_spark": _muse_spark,
    "qwen4_exp": _qwen4_exp,
    "zaya": _zaya,
}
