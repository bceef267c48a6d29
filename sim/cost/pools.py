"""What lanes share, and what one task takes of it: its solo time and its demands on pools."""

from typing import NamedTuple

Demands = tuple[tuple[int, int], ...]
"""(pool, amount per second at full speed) of one task."""


class Cost(NamedTuple):
    """What one task takes: its solo time and what it asks of shared pools, with the physics behind it."""

    duration_ns: int
    demands: Demands = ()
    bytes: int = 0
    flops: int = 0
    bound: str = ""
