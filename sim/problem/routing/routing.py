"""How popular each expert is: measured, or by a law."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from sim.problem.model import Layer, Model
from sim.problem.routing.choice import Floats
from sim.problem.routing.histogram import Histogram, LayerHistogram, TokenCounts
from traces.errors import InputError, nearest, shown
from traces.files import is_file

UNIFORM, ZIPF = "uniform", "zipf"
FORMS = f"{UNIFORM}, {ZIPF}:EXPONENT such as {ZIPF}:1.1, or the path of a routing histogram (.json)"
MOST_EXPONENT = 10.0

PROMPTS_COUNT_AS = 64
"""Generated tokens that all prompts together count as: what is placed serves decode, but its tokens may be few."""


@dataclass(frozen=True, slots=True)
class Routing:
    """How popular experts are: as in a histogram, or by Zipf's law, whose exponent 0 makes all alike.

    A rank is an expert's place among those of its layer, the most popular first.
    Raises InputError for an exponent that is not allowed.
    """

    exponent: float = 0.0
    histogram: Histogram | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= MOST_EXPONENT:
            raise InputError(f"routing: the exponent {self.exponent:g} is not allowed; give 0 to {MOST_EXPONENT:g}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `uniform`, `zipf:1.1`, or the histogram in a file. Raises InputError with what is allowed."""
        law, colon, exponent = text.partition(":")
        if text == UNIFORM:
            return cls()
        if law == ZIPF and colon:
            return cls(_number(text, exponent))
        if not text.endswith(".json") and not is_file(text):
            raise InputError(f"routing {shown(text)}: unknown{nearest(text, (UNIFORM, f'{ZIPF}:1'))}; give {FORMS}")
        return cls(histogram=Histogram.read(text))

    def __str__(self) -> str:
        if self.histogram is not None:
            return self.histogram.source
        return f"{ZIPF}:{self.exponent:g}" if self.exponent else UNIFORM

    def check_fits(self, model: Model) -> None:
        """Raise InputError if it is measured on a model of another form."""
        if self.histogram is not None:
            self.histogram.check_fits(model)

    def popularity(self, layer_index: int, layer: Layer) -> Floats:
        """[rank]: the probability that a token uses the expert of that rank. They add up to the layer's top k."""
        measured = self._measured(layer_index)
        return _by_law(self.exponent, layer.num_experts, layer.top_k) if measured is None else _ranked(measured)[0]

    def order(self, layer_index: int, num_experts: int) -> tuple[int, ...]:
        """[rank]: the index of the expert. A law does not know which expert is popular: by index."""
        measured = self._measured(layer_index)
        return tuple(range(num_experts)) if measured is None else _ranked(measured)[1]

    def _measured(self, layer_index: int) -> LayerHistogram | None:
        return None if self.histogram is None else self.histogram.layers[layer_index]


def _number(text: str, exponent: str) -> float:
    try:
        return float(exponent)
    except ValueError:
        raise InputError(f"routing {shown(text)}: {shown(exponent)} is not a number; give {FORMS}") from None


@lru_cache(maxsize=256)
def _by_law(exponent: float, num_experts: int, top_k: int) -> Floats:
    """Proportional to rank ** -exponent; what would be above 1 is 1, and the others share what is left."""
    weights = np.arange(1, num_experts + 1, dtype=float) ** -exponent
    popularity = np.ones(num_experts)
    for certain in range(num_experts):
        popularity[certain:] = weights[certain:] * ((top_k - certain) / weights[certain:].sum())
        if popularity[certain] <= 1:
            break
        popularity[certain] = 1.0
    popularity.setflags(write=False)
    return popularity


@lru_cache(maxsize=4096)
def _ranked(measured: LayerHistogram) -> tuple[Floats, tuple[int, ...]]:
    """Popularity by rank, and the experts in that order; of equally popular ones the first comes first.

    Few tokens say little: before any, all experts are taken to be alike, and each prior counts as some tokens
    (half a use of every expert; then PROMPTS_COUNT_AS tokens for what the prompts say of the generated ones).
    """
    alike = measured.top_k / measured.num_experts
    popularity = np.full(measured.num_experts, alike)
    popularity = _learned(popularity, 0.5 / alike, measured.prefill)
    popularity = _learned(popularity, PROMPTS_COUNT_AS, measured.decode)
    order = np.argsort(-popularity, kind="stable")
    popularity = popularity[order]
    popularity.setflags(write=False)
    return popularity, tuple(order.tolist())


def _learned(prior: Floats, counts_as_tokens: float, counts: TokenCounts) -> Floats:
    """What is known after counting, if before it was known as well as by so many tokens."""
    learned: Floats = (prior * counts_as_tokens + counts.used) / (counts_as_tokens + counts.tokens)
    return learned
