"""What a policy copies from or to memory that is not page-locked, for machines that have no such copies."""

from collections.abc import Iterator
from dataclasses import dataclass

from sim.cost.memory.plan import MemoryPlan, Shortage
from sim.problem import Placement, Policy
from sim.schedule import MemoryPart, PipelineShape, Place, Schedule, Tier, layout_of

CROSSING = (
    "qkv on host",
    "attention on host",
    "hidden on host",
    "hidden of host layers",
    "routed on host",
    "output on host",
)
"""Buffers of activations between which and the device copies go."""


@dataclass(frozen=True, slots=True)
class Pageable(Shortage):
    """Bytes that would have to be page-locked."""

    what: str = ""
    mended: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        size = f"{self.short_bytes / 1e9:.2f} GB of {self.what}" if self.short_bytes >= 1e7 else self.what
        return f"{size} would be copied from or to pageable memory, which link.locked_only rules out: {self.mended}"


def pageable_copies(
    schedule: Schedule, shape: PipelineShape, policy: Policy, placement: Placement, memory: MemoryPlan
) -> Iterator[Pageable]:
    """Each kind of content that a policy leaves unlocked and a copy needs."""
    moved = [placement.moved_bytes(kind) for kind in range(len(placement.counts))]
    both = list(zip(moved, placement.counts, strict=True))
    needed, locked = (sum(size(one) * count for one, count in both) for size in (int, policy.locked_bytes))
    if needed > locked:
        yield Pageable(Tier.PINNED, needed, locked, what="weights", mended="set pin_weights to 1")
    others = [*_unlocked(schedule, shape, memory)]
    if others:
        size, what = sum(size for size, _ in others), " and ".join(name for _, name in others)
        advice = "take a schedule that page-locks them, such as cgopipe"
        yield Pageable(Tier.PINNED, max(1, size), 0, what=what, mended=advice)


def _unlocked(schedule: Schedule, shape: PipelineShape, memory: MemoryPlan) -> Iterator[tuple[int, str]]:
    """Bytes of activations and of caches that cross the link unlocked, and their names."""
    buffers, host = layout_of(schedule, shape).buffers, memory.host
    if any(name in buffers and buffers[name].tier is Tier.HOST for name in CROSSING):
        parts = (MemoryPart.HIDDEN_STATES, MemoryPart.ATTENTION_EXCHANGE, MemoryPart.EXPERT_EXCHANGE)
        yield sum(host.get(part, 0) for part in parts), "activations"
    crosses = shape.attention is not Place.CPU and buffers["kv"].tier is Tier.HOST
    if crosses or buffers["new kv on host"].tier is Tier.HOST:
        yield host.get(MemoryPart.KV_CACHE, 0), "KV cache"
