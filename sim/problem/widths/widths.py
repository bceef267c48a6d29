"""The width of stored numbers, by kind of tensor.

Quantised checkpoints rarely store all tensors alike: routed experts narrow, attention wider, routers and norms as they
were trained. `bits` is what one number takes with its share of scales and zero points; bytes are rounded up.
"""

import math
from collections import Counter
from dataclasses import dataclass, fields
from typing import Self

from traces.errors import InputError


def packed_bytes(numbers: int, bits: float) -> int:
    """Bytes that so many numbers of `bits` bits take."""
    return math.ceil(numbers * bits / 8)


@dataclass(frozen=True, slots=True)
class Widths:
    """Bits of a stored number, scales included, of each kind of tensor. Raises InputError for less than one bit."""

    experts: float = 16.0
    """Routed experts."""
    attention: float = 16.0
    """Whatever mixes tokens: projections of queries, keys and values, and of the result."""
    shared: float = 16.0
    """Shared experts."""
    dense: float = 16.0
    """Networks that every token passes, in layers without experts or beside them."""
    router: float = 16.0
    """Routers and norms."""
    embedding: float = 16.0
    head: float = 16.0
    """The head, where it is not the embedding."""

    def __post_init__(self) -> None:
        for name in KINDS:
            if not getattr(self, name) >= 1:
                raise InputError(f"Widths.{name} must be at least 1 bit, got {getattr(self, name)}")

    def __str__(self) -> str:
        """Kinds that are apart, and the rest: "experts 4.25, rest 16 bits"."""
        bits = {kind: f"{getattr(self, kind):.4g}" for kind in KINDS}
        (usual, _), *_ = Counter(bits.values()).most_common(1)
        apart = [f"{kind} {width}" for kind, width in bits.items() if width != usual]
        return ", ".join([*apart, f"{'rest ' if apart else ''}{usual} bits"])

    @classmethod
    def alike(cls, bits: float) -> Self:
        """The same width for all."""
        return cls(*(bits for _ in KINDS))

    @classmethod
    def of(cls, *, experts: float, others: float, ends: float) -> Self:
        """Those of routed experts, of all else in layers, and of embedding and head."""
        return cls(experts, others, others, others, others, ends, ends)

    def bytes_of(
        self, attention: int = 0, shared: int = 0, dense: int = 0, router: int = 0, embedding: int = 0, head: int = 0
    ) -> int:
        """What so many numbers of each kind take that lie together."""
        bits = attention * self.attention + shared * self.shared + dense * self.dense + router * self.router
        return math.ceil((bits + embedding * self.embedding + head * self.head) / 8)


KINDS = tuple(field.name for field in fields(Widths))
"""The kinds of tensors that have a width of their own."""
