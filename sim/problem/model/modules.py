"""The matrices of a model as quantisers see them: what kind each is of, how large, in which layer."""

from collections.abc import Iterator, Sequence

from sim.problem.model.layer import Attention, FeedForward, Layer
from sim.problem.widths import Module


def modules_of(layers: Sequence[Layer], vocab_size: int, *, tied: bool) -> tuple[Module, ...]:
    """All of them; what is no matrix is counted with the kind that it belongs to."""
    hidden = layers[0].hidden_size
    ends = [Module("embedding", "embedding", vocab_size * hidden, hidden)]
    if not tied:
        ends.append(Module("head", "head", vocab_size * hidden, hidden))
    return (*ends, *(module for index, layer in enumerate(layers) for module in _of_layer(layer, index)))


def _of_layer(layer: Layer, index: int) -> Iterator[Module]:
    yield from _of_attention(layer.attention, index)
    for kind, count, network in (
        ("experts", layer.num_experts, layer.expert),
        ("shared", 1, layer.shared),
        ("dense", 1, layer.dense),
    ):
        if network is not None:
            yield from _of_network(kind, count, network, index)


def _of_network(kind: str, count: int, network: FeedForward, index: int) -> Iterator[Module]:
    hidden, width = network.hidden_size, network.intermediate_size
    for part, inputs in (("gate", hidden), ("up", hidden), ("down", width)):
        yield Module(kind, part, count * hidden * width, inputs, index)
    if network.params > network.weights:
        yield Module(kind, "", count * (network.params - network.weights), layer=index)


def _of_attention(attention: Attention, index: int) -> Iterator[Module]:
    hidden, heads, latent = attention.hidden_size, attention.num_query_heads, attention.latent
    matrices = [("q", hidden, attention.query_width)]
    if latent is None:
        keys, values = (attention.num_kv_heads * dim for dim in (attention.head_dim, attention.value_head_dim))
        matrices += [("k", hidden, keys), ("v", hidden, values)]
    else:
        if latent.query_rank is not None:
            matrices = [("q_a", hidden, latent.query_rank), ("q_b", latent.query_rank, attention.query_width)]
        nope = attention.head_dim - latent.rope_head_dim
        matrices.append(("kv_a", hidden, attention.cached_width))
        matrices.append(("k_b", nope, heads * latent.kv_rank))
        matrices.append(("v_b", latent.kv_rank, attention.output_width))
    matrices.append(("o", attention.output_width, hidden))
    if attention.output_gate:
        matrices.append(("q", hidden, attention.output_width))
    counted = 0
    for part, inputs, outputs in matrices:
        counted += inputs * outputs
        yield Module("attention", part, inputs * outputs, inputs, index)
    others = attention.pre_params + attention.post_params - counted
    if others:
        yield Module("attention", "", others, layer=index)
