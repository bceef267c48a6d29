"""The grid of policies of one schedule as arrays: which of them fit every memory, and how fast each can be at best.

The axes are μ, the number of micro-batches, where attention runs, the KV cache's share on the device, whole experts on
the device, pages, and page-locked weights. What a policy takes of a memory is a sum of a part that its batch decides
and a part that its weights decide; both are asked of `plan_memory` itself, and numpy adds them up for the whole grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.cost import Setup
from sim.planning.policies.grid import Floats, Ints, PolicyGrid, locks_weights
from sim.planning.policies.holding import setups_that_hold_a_request
from sim.planning.policies.locking import (
    largest_share,
    locked_bytes,
    rooms,
    staging_turns,
    streamed_bytes,
    that_fit,
)
from sim.problem import Policy, Problem
from sim.schedule import MemoryPart, Schedule, Tier
from traces.errors import InputError

TIERS = tuple(Tier)

HOPELESS = 1.1
"""A number of micro-batches ends the axis if it needs so many times what the device holds with all experts elsewhere,
or what all memories hold together: more need more."""

SHRINKING = frozenset({MemoryPart.WEIGHT_SLOTS, MemoryPart.STAGING, MemoryPart.ACTIVATIONS})
"""What may take less with more experts on the device; it is left out of what a batch needs at least."""


@dataclass(frozen=True, slots=True)
class Residency:
    """What the weights decide: whole experts on the device, and what is page-locked of those that stream."""

    experts: Ints
    """Numbers of resident experts that the schedule can work with. [expert value]."""
    held: Ints
    """Whether those are none, some or all: an index. [expert value]."""
    extra_bytes: Ints
    """Bytes of each tier beyond those of the fewest that are held so, pageable. [none or all, expert value, tier]."""
    layer_bytes: Ints
    """What streams of a layer. [expert value, kind of layer]."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """All policies of a schedule that fit, one row each, in the order of the axes."""

    problem: Problem
    schedule: Schedule
    batch_setups: list[Setup]
    """One per (placement, μ, number of micro-batches): all experts on the host, a page a micro-batch, pageable."""
    batch: Ints
    """Which of these. [row]."""
    experts: Ints
    pages: Ints
    locked: Floats
    """Share of the streamed weights that is page-locked."""
    bytes: Ints
    """Bytes of each tier of `TIERS`. [row, tier]."""
    considered: int
    """Points of the grid whose memory was looked at, those that do not fit with them."""
    nearest: Setup | None = None
    """What comes nearest to fitting, if nothing fits."""

    def __len__(self) -> int:
        return len(self.batch)

    def policy(self, row: int) -> Policy:
        """The policy of one row."""
        base, pages = self.batch_setups[int(self.batch[row])].policy, int(self.pages[row])
        share = int(self.experts[row]) / self.problem.model.num_experts
        other = pages if self.schedule.system.paged and pages != base.num_micro_batches else None
        return replace(base, experts_on_device=share, pages=other, pin_weights=float(self.locked[row]))

    def setup(self, row: int) -> Setup:
        """The setup of one row."""
        return Setup(self.problem, self.schedule, self.policy(row))

    @property
    def generated_tokens(self) -> Floats:
        """Of all requests. [row]."""
        return self.of_batches([setup.batch.generated_tokens for setup in self.batch_setups])

    def of_batches(self, values: Sequence[float] | Floats) -> Floats:
        """One value per batch, spread over the rows."""
        return np.asarray(np.asarray(values)[self.batch], dtype=float)


def candidates_as_one(problem: Problem, schedule: Schedule, grid: PolicyGrid) -> Candidates:
    """Every policy on the grid that fits all memories. Empty, with the nearest lack, if none does."""
    setups, given_up = _setups(problem, schedule, grid)
    total, residency = problem.model.num_experts, _residency(setups[0])
    capacity = rooms(problem.hardware)
    taken = _bytes(setups, residency, capacity)
    need = taken[:, None, residency.held] + residency.extra_bytes[None]  # [batch, none or most, expert value, tier]
    locked = _lock_what_fits(setups[0], residency, need, capacity)
    if problem.hardware.link.locked_only:
        need, locked = need[:, 1:], np.ones_like(locked[:, 1:])
    fits = that_fit(need, problem.hardware) & _copies_as_it_may(setups)
    wanted = _wanted(fits, residency.experts, total, grid)
    batch, pin, value = np.nonzero(fits & wanted)
    pages = [_pages(schedule, grid, setup.shape.num_micro_batches) for setup in setups]
    counts = np.array([len(one) for one in pages], dtype=np.int64)
    considered = int((wanted.sum(axis=(1, 2)) * counts).sum()) + given_up
    rows = np.repeat(np.arange(len(batch)), counts[batch])
    all_pages = np.array([page for at in batch for page in pages[at]], dtype=np.int64)
    streams = (residency.experts[value] < total)[rows]
    kept = streams | (np.diff(rows, prepend=-1) > 0) | setups[0].shape.streams_non_experts
    rows, all_pages = rows[kept], all_pages[kept]
    nearest = None if len(rows) else _nearest(setups, need - capacity, residency, locked)
    batch, pin, value = batch[rows], pin[rows], value[rows]
    experts, shares, bytes_ = residency.experts[value], locked[batch, pin, value], need[batch, pin, value]
    return Candidates(problem, schedule, setups, batch, experts, all_pages, shares, bytes_, considered, nearest)


def _lock_what_fits(setup: Setup, residency: Residency, need: Ints, capacity: Ints) -> Floats:
    """Page-locked shares: none, and all or the largest that fits, of which `need` is told. [as need, without tiers]."""
    locked = np.broadcast_to(np.arange(need.shape[1], dtype=float)[:, None], need.shape[:-1]).copy()
    if need.shape[1] > 1 and not setup.problem.hardware.link.locked_only:
        host, pinned, turns = TIERS.index(Tier.HOST), TIERS.index(Tier.PINNED), staging_turns(setup)
        layers, counts = residency.layer_bytes, np.array(setup.problem.model.layer_counts)
        staging = turns * layers.max(axis=-1)
        without = need[:, 0] - _of_tiers(staging, host, pinned)
        share = largest_share(capacity[pinned] - without[..., pinned], layers, counts, turns)
        some = locked_bytes(layers, share[..., None])
        staged = turns * (layers - some).max(axis=-1)
        lesser = without + _of_tiers(staged, host, pinned) + _of_tiers((some * counts).sum(axis=-1), pinned)
        chosen = (need[:, 1, :, pinned] > capacity[pinned]) & (share > 0)
        need[:, 1] = np.where(chosen[..., None], lesser, need[:, 1])
        locked[:, 1] = np.where(chosen, share, 1.0)
    return locked


def _copies_as_it_may(setups: list[Setup]) -> NDArray[np.bool_]:
    """Where the machine has no pageable copies, which batches do without. [batch, 1, 1]."""
    locked = (replace(one, policy=replace(one.policy, pin_weights=1.0)) for one in setups)
    if not setups[0].problem.hardware.link.locked_only:
        return np.ones((len(setups), 1, 1), dtype=bool)
    return np.array([not one.pageable for one in locked])[:, None, None]


def _of_tiers(size: Ints, *tiers: int) -> Ints:
    """Bytes that are in each of these tiers. [..., tier]."""
    return size[..., None] * np.isin(np.arange(len(TIERS)), tiers)


def _setups(problem: Problem, schedule: Schedule, grid: PolicyGrid) -> tuple[list[Setup], int]:
    """All (placement, batch, micro-batch) that hold a request, but those beyond hopeless ones: how many those are."""
    setups, given_up = list[Setup](), 0
    for growing in grid.policies(schedule):
        for at, setup in enumerate(setups_that_hold_a_request(problem, schedule, growing), 1):
            setups.append(setup)
            if _hopeless(setup):
                given_up += len(growing) - at
                break
    return setups or [Setup(problem, schedule, growing[-1])], given_up  # not even the largest: it says so


def _bytes(setups: list[Setup], residency: Residency, capacity: Ints) -> Ints:
    """Bytes of each tier. [batch, held, tier].

    What is held changes the working set of a micro-batch. It is asked for where the policy would fit without any.
    """
    none = np.array([_peaks(setup) for setup in setups], dtype=np.int64)
    found = np.repeat(none[:, None], 3, axis=1)
    device = TIERS.index(Tier.DEVICE)
    activations = [setup.memory.device.get(MemoryPart.ACTIVATIONS, 0) for setup in setups]
    for held in set(residency.held.tolist()) - {0}:
        fewest = int(residency.experts[residency.held == held][0])
        more = np.array(_peaks(_with_weights(setups[0], fewest, 0.0))) - none[0]
        least = none[:, device] - activations + min(more[device], more[device] + activations[0])
        known: dict[object, Ints] = {}
        for at, setup in enumerate(setups):
            if least[at] > capacity[device]:
                found[at, held] += np.maximum(more, 0) + capacity  # fits nowhere
                continue
            key = (id(setup.batch), setup.policy.attention)  # what is held shares no part with the KV cache
            if key not in known:
                known[key] = np.array(_peaks(_with_weights(setup, fewest, 0.0))) - none[at]
            found[at, held] += known[key]
    return found


def _hopeless(setup: Setup) -> bool:
    hardware, memory = setup.problem.hardware, setup.memory
    own, ranks = hardware.device_memory.capacity_bytes, hardware.num_devices
    all_of_them = hardware.host_memory.capacity_bytes + ranks * own
    device, host = (
        sum(size for name, size in part.items() if name not in SHRINKING) for part in (memory.device, memory.host)
    )
    return device > HOPELESS * own or host + ranks * device > HOPELESS * all_of_them


def _residency(setup: Setup) -> Residency:
    """Ask the memory plan of one batch for every number of experts. A schedule may refuse some of them."""
    model, found, needs, layers = setup.problem.model, [], [], []
    locks = locks_weights(setup.schedule) or setup.problem.hardware.link.locked_only
    total, shares = model.num_experts, (0.0, 1.0) if locks else (0.0,)
    for count in range(total + 1):
        try:
            several = [_with_weights(setup, count, share) for share in shares]
        except InputError:
            continue
        found.append(count)
        needs.append([_peaks(one) for one in several])
        layers.append(streamed_bytes(several[0]))
    experts = np.array(found, dtype=np.int64)
    held = (experts > 0).astype(np.int64) + (experts == total)
    needed = np.array(needs, dtype=np.int64).transpose(1, 0, 2)  # [none or all, expert value, tier]
    base = needed[0, np.searchsorted(held, np.arange(3)).clip(max=len(found) - 1)]
    return Residency(experts, held, needed - base[held], np.array(layers, dtype=np.int64))


def _with_weights(setup: Setup, experts: int, locked: float) -> Setup:
    share = experts / setup.problem.model.num_experts
    return replace(setup, policy=replace(setup.policy, experts_on_device=share, pin_weights=locked))


def _peaks(setup: Setup) -> list[int]:
    """Bytes of each tier of `TIERS`."""
    return [*setup.memory.peak_bytes().values()]


def _wanted(fits: NDArray[np.bool_], experts: Ints, total: int, grid: PolicyGrid) -> NDArray[np.bool_]:
    """The expert values of the grid, and for each batch the most that fit. [batch, none or most, expert value]."""
    spread = {round(total * at / max(1, grid.expert_values - 1)) for at in range(grid.expert_values)}
    wanted = np.zeros(fits.shape, dtype=bool) | np.isin(experts, list(spread))
    most = fits.shape[-1] - 1 - np.argmax(fits[..., ::-1], axis=-1)
    np.put_along_axis(wanted, most[..., None], True, axis=-1)
    return wanted


def _pages(schedule: Schedule, grid: PolicyGrid, num_micro_batches: int) -> list[int]:
    if not schedule.system.paged:
        return [1]
    counts = {max(1, round(num_micro_batches * multiple)) for multiple in grid.pages}
    return sorted(counts, key=lambda count: (count != num_micro_batches, count))


def _nearest(setups: list[Setup], lack: Ints, residency: Residency, locked: Floats) -> Setup:
    """The one of the smallest lack, all tiers together. lack [batch, none or most locked, expert value, tier]."""
    total = np.maximum(lack, 0).sum(axis=-1)
    batch, pin, value = np.unravel_index(int(total.argmin()), total.shape)
    return _with_weights(setups[batch], int(residency.experts[value]), float(locked[batch, pin, value]))
