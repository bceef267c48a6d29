"""What tokens use of experts at least, in whichever layer: where a histogram tells how popular each layer's own are.

A bound asks about one layer of a kind and takes it for all. Whatever ranks it asks for, it is told what the layer uses
that uses least of them, so that no layer's popular experts make a policy faster than its bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sim.cost import ExpertUse, Sizes
from sim.planning.policies import Floats
from sim.problem import Layer, Model, Placement, Routing, Use
from sim.schedule import ExpertPlace, System


class LeastUse(ExpertUse):
    """As `ExpertUse`, of layers that each stand for all layers of `whole` with as many experts."""

    def __init__(self, placement: Placement, routing: Routing, system: System, whole: Model) -> None:
        super().__init__(placement, Routing(), system)
        self._placed = placement
        self._popularity = {layer: _popularity(routing, whole, layer) for layer in placement.model.distinct_layers}
        self._touched: dict[tuple[Layer, float, int], Floats] = {}

    def touched(self, layer: int, tokens: float) -> float:
        """How many of all of a layer's experts tokens use."""
        one = self._placed.model.layers[layer]
        return self._between(one, tokens, 0, one.num_experts).touched

    def of_group(self, layer: int, tokens: int, places: ExpertPlace, part: int | None = None) -> Use:
        """What a group's tokens use of a layer's experts in these places; a cache misses none but its least popular."""
        first, stop = self._placed.splits[layer].ranks(places)
        return self._between(self._placed.model.layers[layer], tokens, first, stop, part)

    def _between(self, layer: Layer, tokens: float, first: int, stop: int, part: int | None = None) -> Use:
        if stop <= first or tokens <= 0:
            return Use(0.0, 0.0, 0.0)
        top_k = layer.top_k if part is None else part
        popularity, key = self._popularity[layer] * (top_k / layer.top_k), (layer, tokens, top_k)
        if key not in self._touched:
            self._touched[key] = 1.0 - (1.0 - popularity) ** tokens
        touched, pairs = (of[:, first:stop].sum(axis=1).min() for of in (self._touched[key], popularity))
        return Use(float(touched), tokens * float(pairs), tokens * float(popularity[:, first].min()))


def _popularity(routing: Routing, whole: Model, layer: Layer) -> Floats:
    """[layer, rank] of all layers with as many experts; the most popular comes first."""
    layers: Sequence[tuple[int, Layer]] = [
        (at, one) for at, one in enumerate(whole.layers) if one.num_experts == layer.num_experts
    ]
    return np.array([routing.popularity(at, one) for at, one in layers]) if layer.num_experts else np.zeros((1, 0))


@dataclass(frozen=True)
class LeastSizes(Sizes):
    """Sizes of a few layers that stand for those of `whole`."""

    whole: Model = field(kw_only=True)

    @cached_property
    def expert_use(self) -> ExpertUse:
        """What tokens use of them at least, if layers differ."""
        if self.routing.histogram is None:
            return ExpertUse(self.placement, self.routing, self.schedule.system)
        return LeastUse(self.placement, self.routing, self.schedule.system, self.whole)
