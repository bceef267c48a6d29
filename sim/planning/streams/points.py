"""A policy for a stream in the terms of its search: shares of what there is room for, from which sizes follow."""

from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any, NamedTuple

import numpy as np

from sim.admission import BLOCK_TOKENS
from sim.cost import usable_bytes
from sim.planning.policies import Mix, largest_share, locks_weights, staging_turns, total_of
from sim.planning.streams.flow import Flow
from sim.problem import Placement, Policy, Problem, WeightBits
from sim.schedule import MemoryPart, Place, Schedule, Tier
from sim.simulation import StreamRoomError, StreamSetup
from traces.errors import InputError

ROUNDS = 6
"""How often at most room and residents are found from each other: more experts on the device leave the host room for
more requests, whose prompts leave the device less room.
"""

PARTS = 512
"""Of all experts: in so many steps, or one by one, it is found how many find room on the device."""

CLOSE = 1.02
"""Numbers of requests that are this close count as one."""


@dataclass(frozen=True, slots=True)
class StreamPoint:
    """Numbers of micro-batches, and shares of what is possible with them."""

    num_micro_batches: int
    """That decode."""
    attention: Place
    num_prompts: int = 1
    room: float = 1.0
    """Share of the KV cache's room that requests take."""
    resident: float = 1.0
    """Share of the experts that find room on the device."""
    on_host: float = 0.0
    """Experts of each layer that the host computes, on average."""
    groups: int = 0
    """In how many groups of micro-batches experts are computed; 0: each micro-batch alone."""
    pace: float = 1.0
    """Prompt tokens a step, in multiples of what keeps as many requests beginning as end."""
    over_link: float = 0.0
    """Share of those who decode that attend on the device while others attend on the host, to whole micro-batches."""
    block_tokens: int = BLOCK_TOKENS


class _NoRoom(NamedTuple):
    """Why there is no setup, and the memory that is short, if one is."""

    reason: str
    tier: str


class StreamSetups:
    """Setups of points on one problem under one schedule."""

    def __init__(
        self,
        problem: Problem,
        schedule: Schedule,
        flow: Flow,
        *,
        prefill_chunk: int | None = None,
        weight_bits: WeightBits | None = None,
        kv_bits: float | None = None,
    ) -> None:
        """Every point has chunks of `prefill_chunk` tokens, if that is given, instead of what suits it."""
        self._problem, self._schedule, self._flow, self._chunk = problem, schedule, flow, prefill_chunk
        self._total = total_of(problem.model, schedule)
        self._layers = sum(layer.num_experts > 0 for layer in problem.model.layers)
        self._bits: dict[str, Any] = {"weight_bits": weight_bits, "kv_bits": kv_bits}
        self._unit = max(1, self._total // PARTS)
        self._near: dict[int, int] = {}
        self._known: dict[tuple[Any, ...], StreamSetup | _NoRoom] = {}
        self._short_of = ""
        self.reason = ""
        """Why the last point that was asked for has no setup."""

    def at(self, point: StreamPoint) -> StreamSetup | None:
        """As many requests at a time as have room, and as many experts on the device; None if not even one fits."""
        running, wanted, round_ = 0.0, float(point.num_micro_batches), 0
        for round_ in range(ROUNDS):
            if max(running, wanted) <= CLOSE * min(running, wanted):
                break
            running = self._that_fit(point, running, sqrt(running * wanted) if round_ > 1 else wanted)
            resident = self._most_resident(point, running, round_)
            setup = None if resident is None else self._locked(point, running, resident)
            if setup is None:
                return None
            wanted = self._running(point, setup)
        running = self._that_fit(point, running, wanted)
        resident = self._most_resident(point, running, round_)
        return None if resident is None else self._locked(point, running, int(resident * point.resident))

    def _that_fit(self, point: StreamPoint, fits: float, wanted: float) -> float:
        """As many requests as are wanted, or as have room on the device without any experts there."""
        if wanted <= fits or fits < 1 or self._has_room(point, wanted):
            return wanted
        while wanted > CLOSE * fits:
            middle = sqrt(fits * wanted)
            fits, wanted = (middle, wanted) if self._has_room(point, middle) else (fits, middle)
        return fits

    def _has_room(self, point: StreamPoint, running: float) -> bool:
        """Whether the device has, without any experts there."""
        return self._made(point, running, 0) is not None or self._short_of != Tier.DEVICE

    def _locked(self, point: StreamPoint, running: float, resident: int) -> StreamSetup | None:
        """With as much of the weights page-locked as may be, and no more places than there is room for."""
        made = self._made(point, running, resident)
        if made is None:
            return None
        blocks = ceil(running * self._flow.blocks(made.kv_layers, made.block_tokens))
        locked = self._with(made, pin_weights=_lockable(made, blocks)) or made
        room = self._running(point, locked)
        fewer = self._made(point, room, resident) if room < running else None
        return locked if fewer is None else self._with(fewer, pin_weights=locked.policy.pin_weights) or fewer

    def _running(self, point: StreamPoint, setup: StreamSetup) -> float:
        """Requests that are in at a time, as many as have room; a page-locked KV cache comes before locked weights."""
        if setup.locked_blocks:
            setup = self._with(setup, pin_weights=0.0) or setup
        there = point.room * setup.num_blocks / self._flow.blocks(setup.kv_layers, setup.block_tokens)
        return max(1.0, min(there, float(self._flow.num_requests)))

    def _most_resident(self, point: StreamPoint, running: float, round_: int) -> int | None:
        """The most experts on the device with which all else fits; None if it fits with no number of them.

        Too many are more than the device has room for, too few leave more than the host has.
        """
        low, high, step, found = 0, self._total // self._unit, 1, None
        near = min(self._near.get(round_, high // 4), high)
        while low <= high:  # from what the last point had in this round outwards, then by halves
            tried = near if low <= near <= high else (low + high + 1) // 2
            fits = self._made(point, running, tried * self._unit) is not None
            found = tried if fits else found
            if fits or self._short_of != Tier.DEVICE:
                low, near = tried + 1, tried + step
            else:
                high, near = tried - 1, tried - step
            step *= 2
        if found is None:
            return None
        self._near[round_] = found
        return found * self._unit

    def _made(self, point: StreamPoint, running: float, resident: int) -> StreamSetup | None:
        system, flow = self._schedule.system, self._flow
        size = max(1, ceil(running / point.num_micro_batches))
        on_host = round(point.on_host * self._layers)
        mix = Mix(min(resident, self._total - on_host), on_host, 0)
        places = mix.fields(system, self._total)
        if point.groups and system.splits_experts:
            places["groups"] = point.groups
        places["attention_on_device"] = round(point.over_link * point.num_micro_batches) / point.num_micro_batches
        batch = size * point.num_micro_batches
        policy = Policy(batch, size, point.attention, **self._bits, **places)
        chunk = point.pace * flow.prompt_tokens_beside(running - point.num_prompts) / point.num_prompts
        most = flow.prompt_tokens * flow.num_requests / point.num_prompts
        chunk_tokens = self._chunk or max(1, ceil(min(chunk, most)))
        return self._setup(policy, chunk_tokens, point.num_prompts, point.block_tokens)

    def _with(self, setup: StreamSetup, **fields: Any) -> StreamSetup | None:
        """The same with other fields of its policy, if that has room."""
        policy = replace(setup.policy, **fields)
        return self._setup(policy, setup.prefill_chunk, setup.num_prompts, setup.block_tokens)

    def _setup(self, policy: Policy, *sizes: *tuple[int, int, int]) -> StreamSetup | None:
        """One of these sizes, made once: rounds and points ask for the same ones again and again."""
        key = (policy, *sizes)
        if key not in self._known:
            self._known[key] = self._made_anew(policy, sizes)
        known = self._known[key]
        if isinstance(known, _NoRoom):
            self.reason, self._short_of = known
            return None
        return known

    def _made_anew(self, policy: Policy, sizes: tuple[int, int, int]) -> "StreamSetup | _NoRoom":
        try:
            return StreamSetup(self._problem, self._schedule, policy, *sizes, self._flow.longest_tokens)
        except InputError as error:
            return _NoRoom(str(error), error.tier if isinstance(error, StreamRoomError) else Tier.DEVICE)


def _lockable(setup: StreamSetup, num_blocks: int) -> float:
    """The largest share of its streamed weights for which there is page-locked room.

    Where the KV cache is page-locked, too, so many blocks of it come first.
    """
    if not locks_weights(setup.schedule) or setup.problem.hardware.link.locked_only:
        return setup.policy.pin_weights
    placement = Placement.of(setup.policy, setup.schedule, setup.problem.model)
    layers = np.array([placement.moved_bytes(kind) for kind in range(len(placement.distinct))])
    pinned = setup.memory.pinned
    others = sum(size for part, size in pinned.items() if part not in (MemoryPart.STAGING, MemoryPart.KV_CACHE))
    others += ceil(setup.locked_blocks * min(num_blocks, setup.num_blocks) * setup.block_bytes)
    room = np.array(usable_bytes(setup.problem.hardware)[Tier.PINNED] - others)
    share = largest_share(room, layers, np.array(placement.counts), staging_turns(setup))
    all_bytes = int((layers * np.array(placement.counts)).sum())
    return 1.0 if all_bytes <= room else max(0.0, float(share))
