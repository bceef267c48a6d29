"""What one task takes: its solo time and its demands on pools, added up from seconds per roof and bytes per pool."""

from typing import NamedTuple

from traces.errors import InputError

MOST_TASK_S = 1e6
"""Eleven days: a generation of thousands of such tasks still is a number of nanoseconds in 63 bits."""

Demands = tuple[tuple[int, int], ...]
"""(pool, amount per second at full speed) of one task."""


class Effort(NamedTuple):
    """What a task asks of all that draws power for it, however long it waits: its joules follow from it.

    Seconds are those that the arithmetic of its processor, and its reads and writes of that one's memory, take alone.
    """

    compute_s: float = 0.0
    memory_s: float = 0.0
    copied_bytes: float = 0.0
    """What cores of the host read and write to copy within it."""
    dram_bytes: float = 0.0
    link_bytes: float = 0.0
    network_bytes: float = 0.0


class Cost(NamedTuple):
    """What one task takes: its solo time and what it asks of shared pools, with the physics behind it."""

    duration_ns: int
    demands: Demands = ()
    bytes: int = 0
    flops: int = 0
    bound: str = ""
    effort: Effort = Effort()


class Work(NamedTuple):
    """What a task does: seconds by the roof that takes them, and the bytes that each pool carries meanwhile."""

    roofs: dict[str, float]
    traffic: dict[int, float]
    moved: float
    flops: float = 0.0
    held: Demands = ()
    """Demands beside those of the traffic."""
    compute_s: float = 0.0
    memory_s: float = 0.0
    copied: float = 0.0
    """These three as `Effort` has them."""

    def cost(self) -> Cost:
        """Add up the roofs; the demand on each pool is its traffic spread over them."""
        seconds = sum(self.roofs.values())
        if not seconds <= MOST_TASK_S:
            raise InputError(f"a single task would take {seconds:.3g} s: give shorter prompts or a faster machine")
        demands = tuple((pool, round(amount / seconds)) for pool, amount in self.traffic.items() if amount > 0)
        return Cost(
            max(1, round(seconds * 1e9)),
            (*demands, *self.held),
            round(self.moved),
            round(self.flops),
            max(self.roofs, key=lambda roof: self.roofs[roof]),
        )
