"""The matrices of a model as quantisers see them: what kind each is of, how large, in which layer."""

from collections.abc import Iterator, Sequence

from sim.problem.model.attention import Attention
from sim.problem.model.feed_forward import FeedForward
from sim.problem.model.layer import Layer
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
    for part, inputs in (*((("gate", hidden),) if network.gated else ()), ("up", hidden), ("down", width)):
        yield Module(kind, part, count * hidden * width, inputs, index)
    if network.params > network.weights:
        yield Module(kind, "", count * (network.params - network.weights), layer=index)


def _of_attention(attention: Attention, index: int) -> Iterator[Module]:
    others = attention.pre_params + attention.post_params
    for part, inputs, outputs in attention.matrices:
        others -= inputs * outputs
        yield Module("attention", part, inputs * outputs, inputs, index)
    if others:
        yield Module("attention", "", others, layer=index)
