"""Policies that compute experts where they are, as sums of what batches, groups and mixes take."""

from collections.abc import Callable

import numpy as np

from sim.planning.bounds.durations import MEAN
from sim.planning.bounds.split.tables import Tables, TokenGroups
from sim.planning.policies import Floats, Ints
from sim.problem import LOCK_UNIT_BYTES
from sim.schedule import Op


class SplitRows:
    """Some rows of a space, and what their parts take: seconds, or what else the tables are of."""

    def __init__(self, tables: Tables, rows: Ints) -> None:
        self.tables, space = tables, tables.space
        self.frame, self.mix, self.share = space.frame[rows], space.mix[rows], space.locked[rows]
        self.batch = tables.batches.of_frame[self.frame]
        mixes, prefill = space.mixes, np.array([one.prefill for one in space.frames])[self.frame]
        self.layers = mixes.layers[self.mix].astype(float)
        self.moved = mixes.moved_bytes[self.mix, prefill]
        self.slots = mixes.slot_bytes[self.mix, prefill]
        pages = (self.moved * self.share[:, None]).astype(np.int64) // LOCK_UNIT_BYTES * LOCK_UNIT_BYTES
        self.locked = np.where(self.share[:, None] == 1, self.moved, pages)
        splits = tables.splits
        self.host, self.fetched = splits.host[self.mix], splits.fetched[self.mix]
        self.on_device = splits.total[self.mix] - self.host
        self.moe = splits.total[self.mix] > 0
        held = (splits.resident, splits.streamed, splits.fetched)
        self.device_places = sum((one[self.mix] > 0).astype(np.int64) for one in held)
        self.n = tables.batches.n[self.batch]

    def of(self, phase: str, op: Op, which: int = MEAN) -> Floats:
        """One op of a micro-batch through all layers. [row, segment]."""
        return np.asarray(self.tables.batches.of(phase, op, which)[self.batch])

    def over_groups(self, groups: TokenGroups, seconds: Callable[[Ints], Floats]) -> Floats:
        """Sum over groups and layers of what one takes. [row]."""
        total = np.zeros(len(self.mix))
        for place in range(groups.which.shape[1]):
            one = seconds(groups.which[self.frame, place][:, None])
            total += groups.times[self.frame, place] * (one * self.layers).sum(axis=1)
        return total

    def host_experts(self, which: Ints) -> Floats:
        """Of one group in each kind of layer. [row, kind]."""
        return self.tables.times.host.at(which, self.host)

    def device_experts(self, which: Ints) -> Floats:
        """The same there."""
        times = self.tables.times
        seconds = times.device.at(which, self.on_device)
        seconds = seconds + np.maximum(self.device_places - 1, 0) * times.another_place[which]
        return np.asarray(np.where(self.moe & (self.on_device == 0), times.shared[which], seconds))

    def fetch_experts(self, which: Ints) -> Floats:
        """What it fetches."""
        pageable = 1.0 - self.locked / np.maximum(self.moved, 1)
        locked, slow = (
            one.at(which, self.fetched) for one in (self.tables.times.fetch_locked, self.tables.times.fetch_pageable)
        )
        return np.asarray(locked + pageable * (slow - locked))

    def offload_tokens(self, which: Ints) -> Floats:
        """What goes to the host for them."""
        times = self.tables.times
        routes = np.where(self.fetched > 0, times.offload_routes[which], 0.0)
        return np.asarray(np.where(self.host > 0, times.offload[which], routes))

    def load_output(self, which: Ints) -> Floats:
        """What comes back."""
        return np.asarray(np.where(self.host > 0, self.tables.times.load_output[which], 0.0))

    def weights(self, size: Ints, pieces: Floats, *, staged: bool) -> Floats:
        """What each kind of layer takes to copy so many bytes that stream. [row, kind]."""
        size, copies = size.astype(float), self.tables.copies
        others = np.maximum(size - self.locked, 0.0)
        slow = copies.locked if staged else copies.pageable
        seconds = pieces[:, None] * copies.each + ((size - others) * copies.locked + others * slow) / self.tables.ranks
        return np.asarray(np.where(size > 0, seconds * (1 - 1e-9), 0.0))

    def pins(self) -> Floats:
        """What each kind of layer takes into staging in decode. [row, kind]."""
        copies, staged = self.tables.copies, np.maximum(self.streamed_bytes() - self.locked, 0)
        return np.where(staged > 0, copies.pin_each + staged * copies.pin, 0.0)

    def streamed_bytes(self) -> Ints:
        """Of each kind of layer. [row, kind]."""
        return np.asarray(self.tables.splits.streamed_bytes[self.mix])
