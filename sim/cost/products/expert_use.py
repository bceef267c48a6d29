"""What the tokens of a group use of a layer's experts, by the place that these are in.

With experts on the host beside others the slower place of *each* layer counts, so that layers differ in what their
tokens ask for. Elsewhere every layer counts with the mean.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from sim.problem import Placement, Routing, Use, drawn_uses, expected_padding, expected_use, lru_hit_rate
from sim.schedule import ASKED_FOR, ExpertPlace, System

MOST_DRAWS = 8
"""Different draws for the layers of one kind; more take longer, and change a mean by less than a percent."""


ALIKE = Routing()


class ExpertUse:
    """Of each layer and place, how many experts so many tokens use, and how often."""

    def __init__(self, placement: Placement, routing: Routing, system: System, defers: Sequence[bool] = ()) -> None:
        """`defers` says of which layers the host computes a part late."""
        self._placement, self._routing, self._system = placement, routing, system
        self._defers = defers or (False,) * len(placement.kinds)
        self._known: dict[tuple[int, int, ExpertPlace, int | None], Use] = {}

    @cached_property
    def layer_kinds(self) -> tuple[int, ...]:
        """Per layer a number that it shares with those of the same kind whose tokens use the same."""
        found: dict[tuple[tuple[int, bytes], int, bool], int] = {}
        layers = zip(self._alike, self._draws, self._defers, strict=True)
        return tuple(found.setdefault(one, len(found)) for one in layers)

    @cached_property
    def _alike(self) -> list[tuple[int, bytes]]:
        """Per layer, its kind of placement and the popularity of its experts."""
        layers = enumerate(zip(self._placement.kinds, self._placement.model.layers, strict=True))
        if self._routing.histogram is None:
            return [(kind, b"") for _, (kind, _) in layers]
        return [(kind, self._routing.popularity(at, layer).tobytes()) for at, (kind, layer) in layers]

    @cached_property
    def _draws(self) -> list[int]:
        """Per layer, which of the draws of layers like it is its own."""
        before: Counter[tuple[int, bytes]] = Counter()
        found = []
        for kind in self._alike:
            split = self._placement.distinct[kind[0]][1]
            several = bool(split.places_apart & ASKED_FOR) and not self._system.whole_layers
            found.append(before[kind] % MOST_DRAWS if several else 0)
            before[kind] += 1
        return found

    @cached_property
    def _num_draws(self) -> Counter[tuple[int, bytes]]:
        """Of each kind, how many draws its layers have."""
        most: Counter[tuple[int, bytes]] = Counter()
        for kind, draw in zip(self._alike, self._draws, strict=True):
            most[kind] = max(most[kind], draw + 1)
        return most

    @cached_property
    def _num_layers(self) -> Counter[tuple[int, bytes]]:
        """Of each kind, how many layers take turns with its draws."""
        return Counter(self._alike)

    def touched(self, layer: int, tokens: float) -> float:
        """How many of all of a layer's experts tokens are expected to use."""
        one = self._placement.model.layers[layer]
        if self._routing == ALIKE:
            return one.experts_touched(tokens)
        return expected_use(self._routing.popularity(layer, one), one.top_k, tokens, 0, one.num_experts).touched

    def padding(self, layer: int, tokens: float, tile: int, places: ExpertPlace | None = None) -> float:
        """Rows that kernels compute over those that they have to, for the experts in these places, or all of them."""
        one, split = self._placement.distinct[self._placement.kinds[layer]]
        if tile == 1 or not one.num_experts:
            return 1.0
        first, stop = (0, one.num_experts) if places is None else split.ranks(places)
        return expected_padding(self._routing.popularity(layer, one), tokens, first, stop, tile)

    def of_group(self, layer: int, tokens: int, places: ExpertPlace, part: int | None = None) -> Use:
        """What a group's tokens use of a layer's experts in these places, which lie side by side.

        `part`: only so many of each token's top k count. Which ones is taken to be chance, for want of counted weights.
        """
        key = (layer, tokens, places, part)
        if key not in self._known:
            self._known[key] = self._of_group(*key)
        return self._known[key]

    def _of_group(self, layer: int, tokens: int, places: ExpertPlace, part: int | None) -> Use:
        one, split = self._placement.distinct[self._placement.kinds[layer]]
        popularity = self._routing.popularity(layer, one)
        top_k = one.top_k if part is None else part
        if top_k < one.top_k:
            popularity = popularity * (top_k / one.top_k)
        if self._system.caches_experts and places & ExpertPlace.FETCHED and not places & ExpertPlace.DEVICE:
            every = expected_use(popularity, one.top_k, tokens, 0, one.num_experts)
            missed = 1.0 - lru_hit_rate(popularity, tokens, split.resident)
            return Use(*(missed * number for number in every))
        first, stop = split.ranks(places)
        kind = self._alike[layer]
        draws = self._num_draws[kind]
        if draws == 1:
            return expected_use(popularity, top_k, tokens, first, stop)
        cuts = sorted({0, first, stop, split.ranks(ASKED_FOR)[0], one.num_experts})
        layers = self._num_layers[kind]
        drawn = drawn_uses(popularity, top_k, tokens, cuts, draws, layers)[self._draws[layer]]
        mine = [use for use, (begin, end) in zip(drawn, pairwise(cuts), strict=True) if first <= begin and end <= stop]
        return Use(*(sum(numbers) for numbers in zip(*mine, strict=True)))
