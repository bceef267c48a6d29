"""The least time of policies that compute experts where they are: the work of each lane, and the chain of one group.

A group goes through its layers one after the other: attention, the router, then whichever of its experts take longest,
those of the host, with what goes there and comes back, or those of the device, behind what is fetched for them. One
group alone takes no less, and with one group that is all there is. All is linear in the numbers of experts, so that
numpy adds up what is asked once for each batch, for each number of tokens, and for each mix of places.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.planning.bounds.durations import DECODE_OPS, LEAST, MEAN, PREFILL_OPS, MicroBatchTimes, segments
from sim.planning.bounds.experts import ExpertTimes
from sim.planning.policies import PREFILLS, Floats, Frame, Ints, SplitCandidates
from sim.problem import LOCK_UNIT_BYTES
from sim.schedule import Barrier, Op, Place

CHUNK = 1 << 15
"""Rows that are bounded at once: what they take stays in the processor's cache."""


def least_seconds_of_split(space: SplitCandidates) -> tuple[Floats, Floats]:
    """Lower bounds of the whole generation and of its decode, in seconds. [row]."""
    bound = _Bound(space)
    parts = [bound.of(np.arange(at, min(at + CHUNK, len(space)))) for at in range(0, len(space), CHUNK)]
    prefill, decode = (np.concatenate(some) for some in zip(*parts, strict=True))
    return prefill + decode, decode


class _Batches:
    """What micro-batches take outside of experts, added up over layers. Tables are [batch, segment]."""

    def __init__(self, space: SplitCandidates) -> None:
        model = space.problem.model
        self.segments = segments(space.problem)
        steps = [step for step, _ in self.segments]
        self.weights = np.array([count for _, count in self.segments], dtype=float)
        self._counts = np.array(model.layer_counts, dtype=float)
        self._moe = np.array([layer.num_experts > 0 for layer in model.distinct_layers])
        one_each = replace(model, layers=model.distinct_layers)
        found: dict[tuple[object, ...], int] = {}
        self.of_frame = np.array([found.setdefault(_key(one), len(found)) for one in space.frames])
        setups = [space.frames[int(np.flatnonzero(self.of_frame == at)[0])].setup for at in range(len(found))]
        known: dict[tuple[object, ...], list[float]] = {}
        self.n = np.array([len(one.batch.micro_batches) for one in setups], dtype=float)
        self.on_cpu = np.array([one.shape.attention is Place.CPU for one in setups])
        tables = {"prefill": ((*PREFILL_OPS, Op.ROUTE), [0]), "decode": ((*DECODE_OPS, Op.ROUTE), steps)}
        kinds = len(self._counts)
        self._tables = {
            (phase, op): np.zeros((len(setups), 2, kinds, len(at))) for phase, (ops, at) in tables.items() for op in ops
        }
        for number, setup in enumerate(setups):
            asked = MicroBatchTimes(setup, one_each, known)
            for phase, (ops, at) in tables.items():
                for op in ops if at else ():
                    if asked.happens(op, in_prefill=phase == "prefill"):
                        self._tables[phase, op][number] = asked.durations(op, at)[:2]

    def of(self, phase: str, op: Op, which: int = MEAN) -> Floats:
        """One micro-batch through all layers; PostAttn of those without experts, Route of the others."""
        table = self._tables[phase, op][:, which]
        if op is Op.HEAD:
            return np.asarray(table[:, 0])
        counts = self._counts
        if op is Op.ROUTE or (op is Op.POST_ATTN and phase == "decode"):
            counts = counts * (self._moe if op is Op.ROUTE else ~self._moe)
        return np.asarray(np.einsum("bks,k->bs", table, counts))

    def dense(self, phase: str) -> Floats:
        """PostAttn of layers without experts."""
        table = self._tables[phase, Op.POST_ATTN][:, MEAN]
        return np.asarray(np.einsum("bks,k->bs", table, self._counts * ~self._moe))

    def first_layer(self, phase: str, *ops: Op) -> Floats:
        """Some tasks of one micro-batch in the most expensive layer."""
        return np.asarray(np.sum([self._tables[phase, op][:, MEAN] for op in ops], axis=0).max(axis=1))


def _key(one: Frame) -> tuple[object, ...]:
    policy, prefill = one.setup.policy, one.prefill
    return policy.attention, policy.kv_on_device, policy.batch_size, policy.micro_batch_size, prefill


@dataclass(frozen=True, slots=True)
class _Groups:
    """Different numbers of tokens of the groups of each frame: which of all numbers, and how many groups have it."""

    which: Ints
    """[frame, different]."""
    times: Floats
    largest: Ints
    """Which number of tokens the group of most tokens has. [frame]."""

    @staticmethod
    def of(of_frames: Sequence[tuple[tuple[int, int], ...]], numbers: dict[int, int]) -> "_Groups":
        """Numbers that are new are given the next index."""
        width = max(map(len, of_frames))
        which, times = np.zeros((len(of_frames), width), dtype=np.int64), np.zeros((len(of_frames), width))
        for at, groups in enumerate(of_frames):
            for place, (tokens, count) in enumerate(sorted(groups, reverse=True)):
                which[at, place], times[at, place] = numbers.setdefault(tokens, len(numbers)), count
        return _Groups(which, times, which[:, 0].copy())


class _Splits:
    """How experts of a mix's kinds of layers are placed. All [mix, kind]; kinds that lack have no layers."""

    def __init__(self, space: SplitCandidates) -> None:
        placements = space.mixes.placements
        width = space.mixes.layers.shape[1]

        def table(number: object) -> Ints:
            found = np.zeros((len(placements), width), dtype=np.int64)
            for at, one in enumerate(placements):
                found[at, : len(one.distinct)] = [number(layer, split) for layer, split in one.distinct]  # type: ignore[operator]
            return found

        self.total = table(lambda layer, _: layer.num_experts)
        self.resident = table(lambda _, split: split.resident)
        self.streamed = table(lambda _, split: split.streamed)
        self.fetched = table(lambda _, split: split.fetched)
        self.host = table(lambda _, split: split.on_host)
        sizes = [[one.streamed_bytes(kind) for kind in range(len(one.distinct))] for one in placements]
        self.streamed_bytes = np.array([one + [0] * (width - len(one)) for one in sizes])


class _Bound:
    """All tables, and the bound of some rows."""

    def __init__(self, space: SplitCandidates) -> None:
        self.space, self.batches, self.splits = space, _Batches(space), _Splits(space)
        numbers: dict[int, int] = {}
        frames = space.frames
        self.groups = _Groups.of([one.tokens for one in frames], numbers)
        prompts = [one.prompts if one.prefill else one.tokens for one in frames]
        self.prompt_groups = _Groups.of(prompts, numbers)
        self.of_group = np.array([-(-len(one.setup.batch.micro_batches) // one.groups) for one in frames], dtype=float)
        self.num_groups = np.array([one.groups for one in frames], dtype=float)
        self.on_host = np.array([one.prefill == PREFILLS.index(Place.CPU) for one in frames])
        layer = next(layer for layer in space.problem.model.distinct_layers if layer.num_experts)
        self.times = ExpertTimes(frames[0].setup, layer, list(numbers))
        self._pieces()

    def _pieces(self) -> None:
        """(seconds a piece, seconds a byte) of weights: page-locked ones, pageable ones, and into staging."""
        links, hardware = self.space.problem.hardware.link, self.space.problem.hardware
        self.copy_latency = float(links.latency_s)
        self.locked_s, self.pageable_s = 1 / links.h2d_bytes_per_s, 1 / links.h2d_pageable_bytes_per_s
        self.pin_latency, self.pin_s = float(hardware.host.launch_latency_s), 1 / hardware.staging_bytes_per_s
        system = self.space.schedule.system
        self.stages = system.pinned_layers > 0
        setup = self.space.frames[0].setup
        self.streams_all = setup.shape.streams_non_experts
        self.meets = any(isinstance(one, Barrier) for one in setup.schedule.prefill(setup.shape, False))

    @cached_property
    def _ranks(self) -> float:
        return float(self.space.frames[0].setup.num_ranks)

    def of(self, rows: Ints) -> tuple[Floats, Floats]:
        """Seconds of prefill and of decode. [row]."""
        part = _Rows(self, rows)
        return part.prefill(), part.decode()


class _Rows:
    """The bound of some rows."""

    def __init__(self, bound: _Bound, rows: Ints) -> None:
        self.b, space = bound, bound.space
        self.frame, self.mix, self.share = space.frame[rows], space.mix[rows], space.locked[rows]
        self.batch = bound.batches.of_frame[self.frame]
        mixes, prefill = space.mixes, np.array([one.prefill for one in space.frames])[self.frame]
        self.layers = mixes.layers[self.mix].astype(float)
        self.moved = mixes.moved_bytes[self.mix, prefill]
        self.slots = mixes.slot_bytes[self.mix, prefill]
        pages = (self.moved * self.share[:, None]).astype(np.int64) // LOCK_UNIT_BYTES * LOCK_UNIT_BYTES
        self.locked = np.where(self.share[:, None] == 1, self.moved, pages)
        splits = bound.splits
        self.host, self.fetched = splits.host[self.mix], splits.fetched[self.mix]
        self.on_device = splits.total[self.mix] - self.host
        self.moe = splits.total[self.mix] > 0
        held = (splits.resident, splits.streamed, splits.fetched)
        self.device_places = sum((one[self.mix] > 0).astype(np.int64) for one in held)
        self.n = bound.batches.n[self.batch]

    def _of(self, phase: str, op: Op, which: int = MEAN) -> Floats:
        return np.asarray(self.b.batches.of(phase, op, which)[self.batch])

    def _over_groups(self, groups: _Groups, seconds: object) -> Floats:
        """Sum over groups and layers of what one takes. [row]."""
        total = np.zeros(len(self.mix))
        for place in range(groups.which.shape[1]):
            one = seconds(groups.which[self.frame, place][:, None])  # type: ignore[operator]
            total += groups.times[self.frame, place] * (one * self.layers).sum(axis=1)
        return total

    def _host(self, which: Ints) -> Floats:
        return self.b.times.host.at(which, self.host)

    def _device(self, which: Ints) -> Floats:
        times = self.b.times
        seconds = times.device.at(which, self.on_device)
        seconds = seconds + np.maximum(self.device_places - 1, 0) * times.another_place[which]
        return np.asarray(np.where(self.moe & (self.on_device == 0), times.shared[which], seconds))

    def _fetch(self, which: Ints) -> Floats:
        pageable = 1.0 - self.locked / np.maximum(self.moved, 1)
        locked, slow = (one.at(which, self.fetched) for one in (self.b.times.fetch_locked, self.b.times.fetch_pageable))
        return np.asarray(locked + pageable * (slow - locked))

    def _offload(self, which: Ints) -> Floats:
        times = self.b.times
        routes = np.where(self.fetched > 0, times.offload_routes[which], 0.0)
        return np.asarray(np.where(self.host > 0, times.offload[which], routes))

    def _load(self, which: Ints) -> Floats:
        return np.asarray(np.where(self.host > 0, self.b.times.load_output[which], 0.0))

    def _chain(self, groups: _Groups) -> Floats:
        """The experts of one group in all layers: there and back. [row]."""
        which = groups.largest[self.frame][:, None]
        asked = self._offload(which)
        on_host = np.where(self.host > 0, asked + self._host(which) + self._load(which), 0.0)
        fetch = np.where(self.fetched > 0, asked + self._fetch(which), 0.0)
        longest = np.maximum(on_host, fetch + self._device(which))
        return np.asarray((longest * self.layers).sum(axis=1))

    def _weights(self, size: Ints, pieces: Floats, *, staged: bool) -> Floats:
        """Seconds of each kind of layer to copy so many bytes that stream. [row, kind]."""
        size, ranks = size.astype(float), self.b._ranks
        others = np.maximum(size - self.locked, 0.0)
        slow = self.b.locked_s if staged else self.b.pageable_s
        seconds = pieces[:, None] * self.b.copy_latency + ((size - others) * self.b.locked_s + others * slow) / ranks
        return np.asarray(np.where(size > 0, seconds * (1 - 1e-9), 0.0))

    def prefill(self) -> Floats:
        """Until the last head."""
        one, all_n = np.ones(len(self.mix)), self.n[:, None]
        pre, attn, post, head, load, store, kv = (self._of("prefill", op) for op in PREFILL_OPS)
        heads = (all_n * head)[:, 0]
        whole = self._weights(self.slots, one, staged=False)
        weights = (whole * self.layers).sum(axis=1)
        layers = self.layers.sum(axis=1)
        inner = (layers - 1) / layers
        out = (all_n * (kv + store))[:, 0] * inner
        gpu = (all_n * (pre + attn + post))[:, 0] + heads
        before = self.b.batches.first_layer("prefill", Op.PRE_ATTN, Op.ATTN)[self.batch, 0]
        before = np.zeros_like(before) if self.b.streams_all else before
        first = gpu + np.where(whole[:, 0] > 0, whole[:, 0] - before, 0.0)
        hidden = (all_n * load)[:, 0] * inner
        usual = np.maximum.reduce([gpu, first, weights + heads, weights + hidden, out])
        if self.b.meets:
            usual = gpu + weights
        if not self.b.on_host[self.frame].any():
            return np.asarray(usual)
        groups = self.b.prompt_groups
        route, dense = self._of("prefill", Op.ROUTE), self.b.batches.dense("prefill")[self.batch]
        attend = (all_n * (pre + attn + route + dense))[:, 0]
        gpu = attend + heads + self._over_groups(groups, self._device)
        cpu = self._over_groups(groups, self._host)
        link = weights + self._over_groups(groups, lambda which: self._load(which) + self._fetch(which))
        most = self.b.of_group[self.frame]
        least = [self._of("prefill", op) for op in (Op.PRE_ATTN, Op.ATTN, Op.ROUTE)]
        alone = np.where(self.b.num_groups[self.frame] == 1, most, 1.0)
        chain = alone * np.sum(least, axis=0)[:, 0] * (1.0 - 1e-9) + self._chain(groups)
        chain = np.where(self.b.num_groups[self.frame] == 1, chain + heads, self._chain(groups))
        there = np.maximum.reduce([gpu, cpu, link, out, chain])
        return np.asarray(np.where(self.b.on_host[self.frame], there, usual))

    def decode(self) -> Floats:
        """From there to the last one."""
        batches = self.b.batches
        if not batches.segments:
            return np.zeros(len(self.mix))
        n, steps = self.n[:, None], batches.weights[None]
        pre, off, attn, load, post, head, kv, store = (self._of("decode", op) for op in DECODE_OPS)
        route = self._of("decode", Op.ROUTE)
        on_cpu = batches.on_cpu[self.batch][:, None]
        on_gpu = np.where(on_cpu, 0.0, attn)
        groups = self.b.groups
        streamed = self._weights(self._streamed_bytes(), self.n, staged=self.b.stages)
        streams = (streamed * self.layers).sum(axis=1)
        ahead = 2 * streamed.max(axis=1)
        gpu = n * (pre + on_gpu + route + post + head) + self._over_groups(groups, self._device)[:, None]
        cpu = n * np.where(on_cpu, attn, 0.0) + self._over_groups(groups, self._host)[:, None]
        moved = self._over_groups(groups, lambda which: self._load(which) + self._fetch(which))
        h2d = n * (load + kv) + (moved + streams)[:, None]
        d2h = n * (off + store) + self._over_groups(groups, self._offload)[:, None]
        chain = self._step_chain(on_cpu, streams)
        launch = n * batches.first_layer("decode", Op.PRE_ATTN, Op.ATTN)[self.batch]
        copies = batches.first_layer("decode", Op.LOAD_KV, Op.STORE_KV, Op.OFFLOAD_QKV)[self.batch]
        seam = np.where(self.b.num_groups[self.frame] > 1, 1.0, 0.0)[:, None] * launch
        lanes = [
            steps * gpu - seam,
            steps * cpu - seam,
            steps * h2d - ahead[:, None] - 2 * copies,
            steps * d2h - 2 * copies,
            steps * chain,
        ]
        if self.b.stages:
            staged = np.maximum(self._streamed_bytes() - self.locked, 0)
            pin = np.where(staged > 0, self.b.pin_latency + staged * self.b.pin_s, 0.0)
            lanes.append(steps * (pin * self.layers).sum(axis=1)[:, None] - 3 * pin.max(axis=1)[:, None])
        return np.asarray(np.maximum.reduce(lanes).sum(axis=1) - streamed.max(axis=1)).clip(min=0.0)

    def _streamed_bytes(self) -> Ints:
        return np.asarray(self.b.splits.streamed_bytes[self.mix])

    def _step_chain(self, on_cpu: NDArray[np.bool_], streams: Floats) -> Floats:
        """One step of one group, attention one micro-batch after the other.

        With attention on the CPU its hidden states come back with their part of the next layer's pages between them.
        """
        m = self.b.of_group[self.frame][:, None]
        pre, off, attn, load, post, head, *_ = (self._of("decode", op, LEAST) for op in DECODE_OPS)
        route = self._of("decode", Op.ROUTE, LEAST) + post
        link = off + load
        between = (m - 1) * load + (m - 1) / self.n[:, None] * streams[:, None]
        alone = np.maximum.reduce([pre + m * attn, pre + attn + between])
        on_gpu = np.maximum(m * pre + route, pre + m * route)
        on_host = np.maximum(alone + route, on_gpu + attn) + link
        attend = np.where(on_cpu, on_host, m * (pre + attn + route))
        return np.asarray(attend + m * head + self._chain(self.b.groups)[:, None])
