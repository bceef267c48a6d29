"""How much of the streamed weights can be page-locked beside all else: the largest share that fits, of many policies.

What is page-locked in place needs no staging, so that each byte of a layer costs its own room and gives back the
staging that it would have passed through.
"""

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.cost import Setup, usable_bytes
from sim.planning.policies.grid import Floats, Ints
from sim.problem import LOCK_UNIT_BYTES, Hardware, Placement
from sim.schedule import Holds, MemoryPart, PipelineShape, Schedule, Tier, layout_of

STEPS = 1000
"""Shares between none and all are whole thousandths."""


def rooms(hardware: Hardware) -> Ints:
    """What of each memory a plan may use. [tier]."""
    return np.array([*usable_bytes(hardware).values()], dtype=np.int64)


def that_fit(need: Ints, hardware: Hardware) -> NDArray[np.bool_]:
    """Which of many needs fit all memories; device and host together where they are one. [as need, without tiers]."""
    room = rooms(hardware)
    fits = np.all(need <= room, axis=-1)
    if hardware.unified:
        device, host = map(tuple(Tier).index, (Tier.DEVICE, Tier.HOST))
        fits &= need[..., device] + need[..., host] <= room[host]
    return np.asarray(fits)


def locked_bytes(layer_bytes: Ints, share: Floats) -> Ints:
    """As `Policy.locked_bytes`, of many."""
    whole_pages = (layer_bytes * share).astype(np.int64) // LOCK_UNIT_BYTES * LOCK_UNIT_BYTES
    return np.asarray(np.where(share == 1, layer_bytes, whole_pages))


class HasPipeline(Protocol):
    """A schedule and the pipeline that it orders."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def shape(self) -> PipelineShape: ...


def staging_turns(setup: HasPipeline) -> int:
    """How many layers of what is not page-locked staging holds."""
    buffers = layout_of(setup.schedule, setup.shape).buffers.values()
    return sum(one.turns for one in buffers if one.holds is Holds.STAGED)


def largest_share(usable_bytes: Ints, layer_bytes: Ints, counts: Ints, turns: int) -> Floats:
    """The largest share below 1 of which so many bytes hold what is locked and `turns` of what is to be staged.

    `layer_bytes` [..., kind of layer] stream, of `counts` [kind] layers each. Below 0 where not even staging fits.
    """
    staging = turns * layer_bytes.max(axis=-1)
    gained = np.maximum((layer_bytes * counts).sum(axis=-1) - staging, 1)
    room = usable_bytes - staging - turns * LOCK_UNIT_BYTES
    return np.asarray(np.clip(np.floor(STEPS * room / gained), -1, STEPS - 1) / STEPS)


def streamed_bytes(setup: Setup) -> list[int]:
    """Of each kind of layer, the bytes that stream."""
    placement = Placement.of(setup.policy, setup.schedule, setup.problem.model)
    return [placement.streamed_bytes(kind) for kind in range(len(placement.distinct))]


def usually_locked(setup: Setup) -> Setup:
    """The setup with as much page-locked as its system, or a machine without pageable copies, usually has."""
    asked = setup.schedule.system.pins_weights or setup.problem.hardware.link.locked_only
    return most_locked(setup) if asked else setup


def most_locked(setup: Setup) -> Setup:
    """The setup with all its weights page-locked, else with the largest share that fits, else as it is."""
    policy, placement = setup.policy, setup.placement
    if setup.problem.hardware.link.locked_only:
        return replace(setup, policy=replace(policy, pin_weights=1.0))
    layers = [placement.moved_bytes(kind) for kind in range(len(placement.distinct))]
    bare = replace(setup, policy=replace(policy, pin_weights=0.0))
    staged = bare.memory.pinned.get(MemoryPart.STAGING, 0)
    room = usable_bytes(setup.problem.hardware)[Tier.PINNED] - bare.memory.peak_bytes()[Tier.PINNED] + staged
    share = largest_share(np.array(room), np.array(layers), np.array(placement.counts), staging_turns(bare))
    tried = (replace(setup, policy=replace(policy, pin_weights=one)) for one in (1.0, max(0.0, float(share))))
    return next((one for one in tried if not one.shortages), setup)
