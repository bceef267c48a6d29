"""A layer's parameters as a program of XLA sees them: some are arrays of their own, the others lie across pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


class ParameterPiece(NamedTuple):
    """A parameter that streams, or those rows of it that are some experts; `start` counts numbers, not bytes."""

    name: str
    experts: tuple[int, ...] | None
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """Where the parameters of a layer are: the same for all layers that share a program.

    `cuts` are the numbers [start, stop) of each page; `resident_experts` are those whose rows stay on the device.
    """

    pieces: tuple[ParameterPiece, ...]
    cuts: tuple[tuple[int, int], ...]
    resident_experts: tuple[int, ...]


class LayerParameters:
    """The parameters by name, inside a program: shapes and places are known when it is compiled."""

    def __init__(self, layout: LayerLayout, resident: Mapping[str, jax.Array], pages: Sequence[jax.Array]) -> None:
        self._layout, self._resident, self._pages = layout, resident, pages
        self._streamed = {piece.name: piece for piece in layout.pieces}

    def __contains__(self, name: str) -> bool:
        return name in self._resident or name in self._streamed

    def __getitem__(self, name: str) -> jax.Array:
        """A whole parameter."""
        if name in self._resident:
            return self._resident[name]
        piece = self._streamed[name]
        return self._numbers(piece.start, math.prod(piece.shape)).reshape(piece.shape)

    def of_expert(self, name: str, expert: int) -> jax.Array:
        """The rows of one expert: one after the other is cut from the pages, so that no whole layer is put together."""
        rows = self._layout.resident_experts
        if expert in rows:
            return self._resident[name][rows.index(expert)]
        piece = self._streamed[name]
        row = expert if piece.experts is None else piece.experts.index(expert)
        count = math.prod(piece.shape[1:])
        return self._numbers(piece.start + row * count, count).reshape(piece.shape[1:])

    def _numbers(self, start: int, count: int) -> jax.Array:
        stop = start + count
        parts = [
            page[max(start, first) - first : min(stop, last) - first]
            for page, (first, last) in zip(self._pages, self._layout.cuts, strict=True)
            if first < stop and start < last
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
