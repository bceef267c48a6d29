"""Policies of schedules that compute experts where they are: batches, groups of them, and mixes of places.

What such a policy takes of a memory is what its batch takes, and what its mix of places takes, and a little that both
decide: what goes between a group's tokens and their experts. The first two are asked of the memory plan itself, once
for each batch and once for each mix; numpy puts them together.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.cost import Setup, unpacked_bytes, working_bytes
from sim.planning.policies.grid import Floats, Ints, PolicyGrid, locks_weights
from sim.planning.policies.holding import setups_that_hold_a_request
from sim.planning.policies.locking import largest_share, rooms, staging_turns, that_fit
from sim.planning.policies.mixes import PREFILLS, Mixes, total_of
from sim.problem import LOCK_UNIT_BYTES, Placement, Policy, Problem
from sim.schedule import ExpertPlace, Holds, MemoryPart, Place, Schedule, Tier, layout_of

TIERS = tuple(Tier)
DEVICE, HOST, PINNED = map(TIERS.index, (Tier.DEVICE, Tier.HOST, Tier.PINNED))

OF_MIXES = {
    Tier.DEVICE: {MemoryPart.WEIGHT_SLOTS, MemoryPart.RESIDENT_EXPERTS, MemoryPart.FETCHED_EXPERTS},
    Tier.HOST: {MemoryPart.STREAMED_WEIGHTS, MemoryPart.HOST_EXPERTS, MemoryPart.STAGING},
    Tier.PINNED: {MemoryPart.STREAMED_WEIGHTS, MemoryPart.HOST_EXPERTS, MemoryPart.STAGING},
}
"""Parts that the mix decides; the exchange of tokens, the working set and unpacked experts are counted apart."""

MOST_SIZES = 12
"""Sizes and numbers of micro-batches that are looked at before the best is looked at more closely."""


@dataclass(frozen=True, slots=True)
class Frame:
    """All of a policy but where experts are: a batch, in how many groups, and where prefill computes the host's."""

    setup: Setup
    groups: int
    prefill: int
    """Which of `PREFILLS`."""
    tokens: tuple[tuple[int, int], ...]
    """Requests of a group, and how many groups have as many."""
    prompts: tuple[tuple[int, int], ...]
    """The same of prompt tokens."""

    @property
    def routed_tokens(self) -> int:
        """The most tokens that go to experts at once, apart from the rest of their layer."""
        return max(one for one, _ in (self.prompts if self.prefill else self.tokens))


@dataclass(frozen=True, slots=True)
class SplitCandidates:
    """All policies of a schedule that fit, one row each."""

    problem: Problem
    schedule: Schedule
    frames: list[Frame]
    mixes: Mixes
    frame: Ints
    """Which of the frames. [row]."""
    mix: Ints
    locked: Floats
    """Share of what moves that is page-locked."""
    bytes: Ints
    """Bytes of each tier. [row, tier]."""
    considered: int
    nearest: Setup | None = None
    """What comes nearest to fitting, if nothing fits."""

    def __len__(self) -> int:
        return len(self.frame)

    def policy(self, row: int) -> Policy:
        """The policy of one row."""
        return _policy(self.frames[int(self.frame[row])], self.mixes, int(self.mix[row]), float(self.locked[row]))

    def setup(self, row: int) -> Setup:
        """The setup of one row."""
        return Setup(self.problem, self.schedule, self.policy(row))

    @property
    def generated_tokens(self) -> Floats:
        """Of all requests. [row]."""
        tokens = np.array([one.setup.batch.generated_tokens for one in self.frames], dtype=float)
        return np.asarray(tokens[self.frame])


def split_candidates(problem: Problem, schedule: Schedule, grid: PolicyGrid) -> SplitCandidates:
    """Every policy on the grid that fits all memories. Empty, with the nearest lack, if none does."""
    frames = _frames(problem, schedule, grid)
    mixes = Mixes.of(problem, schedule, frames[0].setup.policy, grid)
    memory = _Memory(problem, schedule, frames, mixes)
    capacity = rooms(problem.hardware)
    frame, mix = _worth_a_look(memory, mixes, grid, capacity)
    need, locked = memory.bytes(frame, mix, capacity[PINNED])
    fits = that_fit(need, problem.hardware)
    nearest = None
    if not fits.any():
        at = int(np.maximum(need - capacity, 0).sum(axis=-1).argmin())
        policy = _policy(frames[int(frame[at])], mixes, int(mix[at]), float(locked[at]))
        nearest = Setup(problem, schedule, policy)
    kept = (frame[fits], mix[fits], locked[fits], need[fits])
    return SplitCandidates(problem, schedule, frames, mixes, *kept, len(fits), nearest)


def _policy(frame: Frame, mixes: Mixes, mix: int, locked: float) -> Policy:
    base = frame.setup.policy
    fields = mixes.every[mix].fields(
        frame.setup.schedule.system, total_of(frame.setup.problem.model, frame.setup.schedule)
    )
    groups = None if frame.groups == len(frame.setup.batch.micro_batches) else frame.groups
    return replace(base, groups=groups, pin_weights=locked, **fields)


def _frames(problem: Problem, schedule: Schedule, grid: PolicyGrid) -> list[Frame]:
    """Every batch of the grid, its groups and its places of prefill, but those that no memory could hold."""
    system, grid = schedule.system, grid if schedule.system.one_batch else grid.thinned(MOST_SIZES)
    room = float(problem.hardware.host_memory.capacity_bytes)
    room += problem.hardware.num_devices * problem.hardware.device_memory.capacity_bytes
    found = list[Frame]()
    for growing in grid.policies(schedule):
        for policy in growing:
            places = system.prefill_experts if grid.prefill_experts is None else (grid.prefill_experts,)
            policies = [replace(policy, prefill_experts=place) for place in places]
            setups = list(setups_that_hold_a_request(problem, schedule, policies))
            for setup in setups:
                n = len(setup.batch.micro_batches)
                for groups in sorted({min(n, one or n) for one in grid.groups}, reverse=True):
                    found.append(_frame(setup, groups, PREFILLS.index(setup.policy.prefills_on(system))))
            if setups and _cache_bytes(setups[0]) > room:
                break
    if not found:
        Setup(problem, schedule, growing[-1])  # not even the largest holds a request: it says so
    return found


def _cache_bytes(setup: Setup) -> int:
    return sum(part.get(MemoryPart.KV_CACHE, 0) for part in (setup.memory.host, setup.memory.device))


def _frame(setup: Setup, groups: int, prefill: int) -> Frame:
    shape = replace(setup.shape, num_groups=groups)
    mine = [setup.batch.micro_batches[one.start : one.stop] for one in map(shape.group, range(groups))]
    tokens = Counter(sum(one.num_requests for one in some) for some in mine)
    prompts = Counter(sum(one.prompt_tokens for one in some) for some in mine)
    return Frame(setup, groups, prefill, tuple(tokens.items()), tuple(prompts.items()))


def _worth_a_look(memory: "_Memory", mixes: Mixes, grid: PolicyGrid, capacity: Ints) -> tuple[Ints, Ints]:
    """(frame, mix): for each division of the others, the most residents that the device holds, and parts of them."""
    frames, parts, levels = len(memory.frames), mixes.at.shape[1], len(mixes.levels)
    frame, part = (one.ravel() for one in np.indices((frames, parts)))
    low, high = np.zeros(len(frame), dtype=np.int64), np.full(len(frame), levels - 1)

    def fits(level: Ints) -> NDArray[np.bool_]:
        return np.asarray(memory.device(frame, mixes.at[level, part]) <= capacity[DEVICE])

    all_fit = fits(high)
    high = np.where(all_fit, high, np.maximum(high - 1, 0))  # all resident takes another working set than most
    while (low < high).any():
        middle = (low + high + 1) // 2
        held = fits(middle)
        low, high = np.where(held, middle, low), np.where(held, high, middle - 1)
    rows = [np.stack((frame, mixes.at[np.rint(share * low).astype(np.int64), part])) for share in grid.resident_parts]
    found = np.unique(np.concatenate(rows, axis=1), axis=1)
    return found[0], found[1]


class _Memory:
    """Bytes of frames and mixes."""

    def __init__(self, problem: Problem, schedule: Schedule, frames: list[Frame], mixes: Mixes) -> None:
        self.frames, self._mixes, self._model = frames, mixes, problem.model
        self._devices, self._schedule = problem.hardware.num_devices, schedule
        self._locked_only = problem.hardware.link.locked_only
        self._ranks = frames[0].setup.num_ranks
        self._bits = frames[0].setup.policy.widths(problem.model).experts
        self._of_frames = self._base()
        self._turns = staging_turns(frames[0].setup)
        self._exchange = self._exchanged()
        self._tokens = np.array([self._routed(one) for one in frames])
        held = [self._representatives(prefill) for prefill in range(len(PREFILLS))]
        self._working = np.array(
            [[_working_set(one, some, self._ranks) for some in held[one.prefill]] for one in frames]
        )
        buffers = layout_of(schedule, frames[0].setup.shape).buffers.values()
        self._slots = sum(one.turns for one in buffers if one.holds is Holds.WEIGHTS)
        self._prefill = np.array([one.prefill for one in frames])
        self._groups = np.array([min(2, one.groups) for one in frames])
        self._asked = np.array([one.routed_tokens for one in frames])
        self._top_k = max((layer.top_k for layer in problem.model.layers), default=0)
        self._expert = max(layer.expert_bytes(self._bits) for layer in problem.model.layers)

    def _representatives(self, prefill: int) -> list[Placement]:
        """One placement of each of the kinds that need another working set."""
        kinds, placements = self._mixes.working[:, prefill].tolist(), self._mixes.placements
        first = [placements[kinds.index(kind) if kind in kinds else 0] for kind in range(3)]
        return [replace(one, prefill_on_host=PREFILLS[prefill] is Place.CPU) for one in first]

    def _base(self) -> Ints:
        """What no mix changes. [frame, tier]."""
        known: dict[int, list[int]] = {}
        for one in self.frames:
            if id(one.setup) not in known:
                known[id(one.setup)] = [_without(one.setup, tier) for tier in TIERS]
        return np.array([known[id(one.setup)] for one in self.frames], dtype=np.int64)

    def _routed(self, one: Frame) -> int:
        batch = one.setup.batch
        return (batch.prompt_tokens if one.prefill else batch.num_requests) // batch.copies

    def _exchanged(self) -> Ints:
        """Bytes of each tier that a token takes between attention and experts. [kind of mix, prefill, tier]."""
        found = np.zeros((8, len(PREFILLS), len(TIERS)), dtype=np.int64)
        total = total_of(self.frames[0].setup.problem.model, self._schedule)
        for prefill in {one.prefill for one in self.frames}:
            frame = next(one for one in self.frames if one.prefill == prefill)
            for kind in set(self._mixes.exchanges.tolist()):
                mix = self._mixes.every[int(np.flatnonzero(self._mixes.exchanges == kind)[0])]
                fields = mix.fields(self._schedule.system, total)
                setup = replace(frame.setup, policy=replace(frame.setup.policy, **fields))
                parts = setup.memory.tiers().values()
                sizes = [one.get(MemoryPart.EXPERT_EXCHANGE, 0) for one in parts]
                sizes[DEVICE] *= self._ranks
                found[kind, prefill] = [round(size / self._routed(frame)) for size in sizes]
        return found

    def device(self, frame: Ints, mix: Ints) -> Ints:
        """Bytes of one device."""
        mixes, prefill = self._mixes, self._prefill[frame]
        slots = self._slots * mixes.slot_bytes[mix, prefill].max(axis=-1)
        fetched = np.minimum(mixes.most_fetched[mix], self._asked[frame] * self._top_k) * self._expert
        exchange = self._exchange[mixes.exchanges[mix], prefill, DEVICE] * self._tokens[frame]
        shared = (slots, self._groups[frame] * fetched, exchange)
        own = -(-mixes.resident_bytes[mix] // self._devices) + sum(-(-one // self._ranks) for one in shared)
        return np.asarray(self._of_frames[frame, DEVICE] + self._working[frame, mixes.working[mix, prefill]] + own)

    def bytes(self, frame: Ints, mix: Ints, pinned: int) -> tuple[Ints, Floats]:
        """Bytes of each tier with as much page-locked as may be, and that share of what moves. [row, tier], [row]."""
        mixes, prefill = self._mixes, self._prefill[frame]
        exchange = self._exchange[mixes.exchanges[mix], prefill] * self._tokens[frame, None]
        others = self._of_frames[frame] + np.where(np.arange(len(TIERS)) == DEVICE, 0, exchange)
        slots, moved, layers = mixes.slot_bytes[mix, prefill], mixes.moved_bytes[mix, prefill], mixes.layers[mix]
        share = np.zeros(len(mix))
        if self._locked_only:
            share = (moved.max(axis=-1) > 0).astype(float)
        elif locks_weights(self._schedule):
            some = largest_share(pinned - others[:, PINNED], moved, layers, self._turns)
            all_fit = others[:, PINNED] + (moved * layers).sum(axis=-1) <= pinned
            share = np.where(all_fit, 1.0, np.maximum(some, 0.0)) * (moved.max(axis=-1) > 0)
        whole_pages = (moved * share[:, None]).astype(np.int64) // LOCK_UNIT_BYTES * LOCK_UNIT_BYTES
        locked = np.where(share[:, None] == 1, moved, whole_pages)
        staged = self._turns * np.where(share == 1, 0, np.maximum(slots - locked, 0).max(axis=-1))
        need = others.copy()
        need[:, DEVICE] = self.device(frame, mix)
        need[:, HOST] += mixes.streamed_bytes[mix] + mixes.host_bytes[mix] + staged
        need[:, PINNED] += (locked * layers).sum(axis=-1) + staged
        return need, share


def _without(setup: Setup, tier: Tier) -> int:
    """What of a tier is neither the mix's nor counted apart; of what streams, the part that is no expert stays."""
    others = OF_MIXES[tier] | {MemoryPart.EXPERT_EXCHANGE, MemoryPart.ACTIVATIONS, MemoryPart.UNPACKED_EXPERTS}
    parts = setup.memory.tiers()[tier]
    found = sum(size for part, size in parts.items() if part not in others)
    if tier is Tier.HOST and setup.shape.streams_non_experts:
        placement = setup.placement
        found += parts.get(MemoryPart.STREAMED_WEIGHTS, 0)
        found -= placement.experts_bytes(ExpertPlace.STREAMED | ExpertPlace.FETCHED)
    return found


def _working_set(frame: Frame, placement: Placement, num_ranks: int) -> int:
    """What a device computes with, the experts that are unpacked there among it."""
    shape, batch = replace(frame.setup.shape, num_groups=frame.groups), frame.setup.batch
    unpacked = unpacked_bytes(frame.setup.policy, placement, len(batch.micro_batches))
    return working_bytes(shape, placement, batch, num_ranks) - (-unpacked // frame.setup.problem.hardware.num_devices)
