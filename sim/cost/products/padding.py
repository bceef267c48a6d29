"""How much more a device computes than it is asked for, because it computes whole tiles.

All are ratios of multiply-accumulates, 1 where nothing is padded, of one rank's share of a product: tensor parallelism
splits what projections give, what the output projection and down projections take, and the vocabulary.
"""

from collections.abc import Iterable

from sim.problem import NO_TILES, FeedForward, Layer, Model, Tiles

Product = tuple[float, float, float]
"""Rows, inputs and outputs."""

AFTERWARDS = frozenset({"o", "out"})
"""What checkpoints call the matrices behind attention."""


class Padding:
    """The ratios of one device that shares its tensors with so many ranks in all."""

    def __init__(self, tiles: Tiles | None, ranks: int) -> None:
        self._tiles, self._ranks = tiles or NO_TILES, ranks
        self.is_none = self._tiles == NO_TILES

    def pre_attn(self, layer: Layer, tokens: float) -> float:
        """Of the projections in front of attention, as wide as the checkpoint's matrices are; else as one matrix."""
        attention, ranks = layer.attention, self._ranks
        before = [(tokens, inputs, out / ranks) for name, inputs, out in attention.matrices if name not in AFTERWARDS]
        return self._ratio(before or [(tokens, layer.hidden_size, attention.pre_weights / layer.hidden_size / ranks)])

    def out_proj(self, layer: Layer, tokens: float) -> float:
        """Of the output projection."""
        attention, ranks = layer.attention, self._ranks
        behind = [(tokens, inputs / ranks, out) for name, inputs, out in attention.matrices if name in AFTERWARDS]
        return self._ratio(behind or [(tokens, attention.post_weights / layer.hidden_size / ranks, layer.hidden_size)])

    def networks(self, layer: Layer, tokens: float, *, router: bool) -> float:
        """Of what every token passes beside attention and routed experts: shared and dense networks, the router."""
        found = list[Product]()
        for network in filter(None, (layer.shared, layer.dense)):
            found += self._network(network, tokens)
        return self._ratio([*found, *self._router(layer, tokens)] if router else found)

    def router(self, layer: Layer, tokens: float) -> float:
        """Of the router alone."""
        return self._ratio(self._router(layer, tokens))

    def experts(self, layer: Layer, computed: float, asked: float) -> float:
        """Of routed experts that compute `computed` rows for `asked` pairs of a token and an expert."""
        if self.is_none or layer.expert is None or not asked:
            return computed / asked if asked else 1.0
        return computed / asked * self._ratio(self._network(layer.expert, self._tiles.rows))

    def head(self, model: Model, requests: float) -> float:
        """Of the LM head."""
        return self._ratio([(requests, model.hidden_size, model.vocab_size / self._ranks)])

    def decode_attention(self, layer: Layer) -> float:
        """Of one new token a request: the query heads that share a head of the cache are the rows."""
        return self._heads(layer, layer.attention.group)

    def prompt_attention(self, layer: Layer) -> float:
        """Of prompts, whose rows are many."""
        return self._heads(layer, self._tiles.rows)

    def _heads(self, layer: Layer, rows: float) -> float:
        """Of queries with many keys, which sums over a head's size, and of weights with many values, which gives it."""
        heads, entries = layer.attention.softmax_heads, self._tiles.inputs * self._tiles.outputs
        if self.is_none or not heads:
            return 1.0
        query, value = (width / heads for width in (layer.attention.sent_query_width, layer.attention.returned_width))
        return self._ratio([(rows, query, entries), (rows, entries, value)])

    def _network(self, network: FeedForward, tokens: float) -> list[Product]:
        hidden, width = network.hidden_size, network.intermediate_size / self._ranks
        return [*[(tokens, hidden, width)] * (2 if network.gated else 1), (tokens, width, hidden)]

    def _router(self, layer: Layer, tokens: float) -> list[Product]:
        return [(tokens, layer.hidden_size, layer.num_experts)] if layer.router_params else []

    def _ratio(self, products: Iterable[Product]) -> float:
        if self.is_none:
            return 1.0
        some = [one for one in products if min(one) > 0]
        asked = sum(rows * inputs * outputs for rows, inputs, outputs in some)
        return sum(self._tiles.padded_product(*one) for one in some) / asked if asked else 1.0
