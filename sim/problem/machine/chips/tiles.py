"""Matrices in tiles: a systolic array computes whole ones, so that sizes between them cost as much as the next one up.

A product of `rows` tokens with a matrix of `inputs` x `outputs` takes what it takes with each of the three rounded up.
Experts share one kernel that starts each of them at a new tile. How many tokens come to which is chance, so that of the
last tile of each some half is empty on average; where an expert has less than a tile, it is a tile.
"""

import math
from dataclasses import dataclass

from sim.problem.machine.tables import Part
from traces.errors import check_count


@dataclass(frozen=True, slots=True)
class Tiles(Part):
    """Sizes of which a device computes whole multiples. 1 x 1 x 1 is a device that pads nothing."""

    rows: int
    """Tokens."""
    inputs: int
    """The dimension that is summed over."""
    outputs: int
    expert_rows: int | None = None
    """Tokens of one expert, where the experts of a layer are one kernel; without it as `rows`."""

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        for name in ("rows", "inputs", "outputs"):
            check_count(name, getattr(self, name))
        if self.expert_rows is not None:
            check_count("expert_rows", self.expert_rows)

    def padded_product(self, rows: float, inputs: float, outputs: float) -> float:
        """Multiply-accumulates of a product, computed in whole tiles."""
        return _up(rows, self.rows) * self.padded_matrix(inputs, outputs)

    def padded_matrix(self, inputs: float, outputs: float) -> float:
        """The same of one row."""
        return _up(inputs, self.inputs) * _up(outputs, self.outputs)

    @property
    def expert_tile(self) -> int:
        """Rows of an expert that are computed at once."""
        return self.expert_rows or self.rows

    def padded_capacity(self, rows: float) -> float:
        """Rows that an expert computes which always computes so many."""
        return _up(rows, self.expert_tile)


NO_TILES = Tiles(1, 1, 1)
"""A device whose products are as long as their numbers say."""


def _up(size: float, tile: int) -> float:
    return size if tile == 1 else math.ceil(size / tile) * tile
