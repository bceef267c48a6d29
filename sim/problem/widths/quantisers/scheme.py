"""What a quantiser does to the modules of a model: a width for those it narrows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sim.problem.widths.modules import Module
from sim.problem.widths.quantisers.patterns import Matches

MATRICES = frozenset({"experts", "attention", "shared", "dense", "head"})
"""The kinds of tensors that quantisers look at unless they say otherwise; embeddings are no products of matrices."""


def none(_module: Module) -> bool:
    """Matches no module."""
    return False


@dataclass(frozen=True, slots=True)
class Scheme:
    """A width for the modules of some kinds, others for those that `groups` match, none for those that are left out."""

    bits: float | None
    """None: only what a group matches is quantised."""
    left_out: Matches = none
    groups: tuple[tuple[Matches, float | None], ...] = ()
    """The first that matches counts; None leaves a module as it was trained."""
    kinds: frozenset[str] = MATRICES
    by_kind: Mapping[str, float] = field(default_factory=dict)
    """Widths of kinds that a format stores in their own way."""

    def bits_of(self, module: Module) -> float | None:
        """The width of a module's weights; None where they stay as they were trained."""
        if not module.part or module.kind not in self.kinds or self.left_out(module):
            return None
        for matches, bits in self.groups:
            if matches(module):
                return bits
        return self.by_kind.get(module.kind, self.bits)
