"""The widths that a plan gives the weights of a model."""

from dataclasses import replace
from functools import lru_cache

from sim.problem.model import Model
from sim.problem.widths import WeightBits, Widths, WidthsApart, gguf_widths


@lru_cache(maxsize=256)
def widths_of(model: Model, weight_bits: WeightBits | None) -> Widths:
    """The model's own where they are not set: of routed experts by a number, of kinds by name, or as a GGUF file's."""
    if weight_bits is None:
        return model.widths
    if isinstance(weight_bits, WidthsApart):
        return weight_bits.over(model.widths)
    if not isinstance(weight_bits, str):
        return replace(model.widths, experts=weight_bits)
    heads = max(layer.attention.group for layer in model.distinct_layers)
    counts = model.num_layers, model.num_experts, heads
    return gguf_widths(weight_bits, model.modules, *counts, tied=model.tie_embeddings)
