"""The least time of policies that compute experts where they are: the work of each lane, and the chain of one group.

A group goes through its layers one after the other: attention, the router, then whichever of its experts take longest,
those of the host, with what goes there and comes back, or those of the device, behind what is fetched for them. One
group alone takes no less, and with one group that is all there is. All is linear in the numbers of experts, so that
numpy adds up what is asked once for each batch, for each number of tokens, and for each mix of places.
"""

import numpy as np
from numpy.typing import NDArray

from sim.planning.bounds.durations import DECODE_OPS, LEAST, PREFILL_OPS
from sim.planning.bounds.split.rows import SplitRows
from sim.planning.bounds.split.tables import CopyCosts, Tables, TokenGroups
from sim.planning.policies import Floats, SplitCandidates
from sim.problem import Hardware
from sim.schedule import Op

CHUNK = 1 << 15
"""Rows that are bounded at once: what they take stays in the processor's cache."""


def least_seconds_of_split(space: SplitCandidates) -> tuple[Floats, Floats]:
    """Lower bounds of the whole generation and of its decode, in seconds. [row]."""
    tables = Tables(space, _copies_s(space.problem.hardware))
    chunks = (np.arange(at, min(at + CHUNK, len(space))) for at in range(0, len(space), CHUNK))
    parts = [(rows.prefill(), rows.decode()) for rows in (_LeastSeconds(tables, chunk) for chunk in chunks)]
    prefill, decode = (np.concatenate(some) for some in zip(*parts, strict=True))
    return prefill + decode, decode


def _copies_s(hardware: Hardware) -> CopyCosts:
    links, host = hardware.link, hardware.host
    per_byte = (1 / links.h2d_bytes_per_s, 1 / links.h2d_pageable_bytes_per_s)
    return CopyCosts(float(links.latency_s), *per_byte, float(host.launch_latency_s), 1 / hardware.staging_bytes_per_s)


class _LeastSeconds(SplitRows):
    """The work of each lane, and the chain of one group."""

    def prefill(self) -> Floats:
        """Until the last head."""
        one, all_n = np.ones(len(self.mix)), self.n[:, None]
        pre, attn, post, head, load, store, kv = (self.of("prefill", op) for op in PREFILL_OPS)
        heads = (all_n * head)[:, 0]
        whole = self.weights(self.slots, one, staged=False)
        weights = (whole * self.layers).sum(axis=1)
        layers = self.layers.sum(axis=1)
        inner = (layers - 1) / layers
        out = (all_n * (kv + store))[:, 0] * inner
        gpu = (all_n * (pre + attn + post))[:, 0] + heads
        before = self.tables.batches.first_layer("prefill", Op.PRE_ATTN, Op.ATTN)[self.batch, 0]
        before = np.zeros_like(before) if self.tables.streams_all else before
        first = gpu + np.where(whole[:, 0] > 0, whole[:, 0] - before, 0.0)
        hidden = (all_n * load)[:, 0] * inner
        usual = np.maximum.reduce([gpu, first, weights + heads, weights + hidden, out])
        if self.tables.meets:
            usual = gpu + weights
        if not self.tables.on_host[self.frame].any():
            return np.asarray(usual)
        groups = self.tables.prompt_groups
        route, dense = self.of("prefill", Op.ROUTE), self.tables.batches.dense("prefill")[self.batch]
        attend = (all_n * (pre + attn + route + dense))[:, 0]
        gpu = attend + heads + self.over_groups(groups, self.device_experts)
        cpu = self.over_groups(groups, self.host_experts)
        link = weights + self.over_groups(groups, lambda which: self.load_output(which) + self.fetch_experts(which))
        most = self.tables.of_group[self.frame]
        least = [self.of("prefill", op) for op in (Op.PRE_ATTN, Op.ATTN, Op.ROUTE)]
        alone = np.where(self.tables.num_groups[self.frame] == 1, most, 1.0)
        chain = alone * np.sum(least, axis=0)[:, 0] * (1.0 - 1e-9) + self._chain(groups)
        chain = np.where(self.tables.num_groups[self.frame] == 1, chain + heads, self._chain(groups))
        there = np.maximum.reduce([gpu, cpu, link, out, chain])
        return np.asarray(np.where(self.tables.on_host[self.frame], there, usual))

    def decode(self) -> Floats:
        """From there to the last one."""
        batches = self.tables.batches
        if not batches.segments:
            return np.zeros(len(self.mix))
        n, steps = self.n[:, None], batches.weights[None]
        pre, off, attn, load, post, head, kv, store = (self.of("decode", op) for op in DECODE_OPS)
        route = self.of("decode", Op.ROUTE)
        on_cpu = batches.on_cpu[self.batch][:, None]
        on_gpu = np.where(on_cpu, 0.0, attn)
        groups = self.tables.groups
        streamed = self.weights(self.streamed_bytes(), self.n, staged=self.tables.stages)
        streams = (streamed * self.layers).sum(axis=1)
        ahead = 2 * streamed.max(axis=1)
        gpu = n * (pre + on_gpu + route + post + head) + self.over_groups(groups, self.device_experts)[:, None]
        cpu = n * np.where(on_cpu, attn, 0.0) + self.over_groups(groups, self.host_experts)[:, None]
        moved = self.over_groups(groups, lambda which: self.load_output(which) + self.fetch_experts(which))
        h2d = n * (load + kv) + (moved + streams)[:, None]
        d2h = n * (off + store) + self.over_groups(groups, self.offload_tokens)[:, None]
        chain = self._step_chain(on_cpu, streams)
        launch = n * batches.first_layer("decode", Op.PRE_ATTN, Op.ATTN)[self.batch]
        copies = batches.first_layer("decode", Op.LOAD_KV, Op.STORE_KV, Op.OFFLOAD_QKV)[self.batch]
        seam = np.where(self.tables.num_groups[self.frame] > 1, 1.0, 0.0)[:, None] * launch
        lanes = [
            steps * gpu - seam,
            steps * cpu - seam,
            steps * h2d - ahead[:, None] - 2 * copies,
            steps * d2h - 2 * copies,
            steps * chain,
        ]
        if self.tables.stages:
            pin = self.pins()
            lanes.append(steps * (pin * self.layers).sum(axis=1)[:, None] - 3 * pin.max(axis=1)[:, None])
        return np.asarray(np.maximum.reduce(lanes).sum(axis=1) - streamed.max(axis=1)).clip(min=0.0)

    def _chain(self, groups: TokenGroups) -> Floats:
        """The experts of one group in all layers: there and back. [row]."""
        which = groups.largest[self.frame][:, None]
        asked = self.offload_tokens(which)
        on_host = np.where(self.host > 0, asked + self.host_experts(which) + self.load_output(which), 0.0)
        fetch = np.where(self.fetched > 0, asked + self.fetch_experts(which), 0.0)
        longest = np.maximum(on_host, fetch + self.device_experts(which))
        return np.asarray((longest * self.layers).sum(axis=1))

    def _step_chain(self, on_cpu: NDArray[np.bool_], streams: Floats) -> Floats:
        """One step of one group, attention one micro-batch after the other.

        With attention on the CPU its hidden states come back with their part of the next layer's pages between them.
        """
        m = self.tables.of_group[self.frame][:, None]
        pre, off, attn, load, post, head, *_ = (self.of("decode", op, LEAST) for op in DECODE_OPS)
        route = self.of("decode", Op.ROUTE, LEAST) + post
        link = off + load
        between = (m - 1) * load + (m - 1) / self.n[:, None] * streams[:, None]
        alone = np.maximum.reduce([pre + m * attn, pre + attn + between])
        on_gpu = np.maximum(m * pre + route, pre + m * route)
        on_host = np.maximum(alone + route, on_gpu + attn) + link
        attend = np.where(on_cpu, on_host, m * (pre + attn + route))
        return np.asarray(attend + m * head + self._chain(self.tables.groups)[:, None])
