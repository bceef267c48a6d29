"""The least time that each policy of a space can take: no order of work and no luck with contention beats it.

A task never takes less than its solo time, so these all bound a generation from below (MoE-Lightning's T = max over
resources, section 4.2, is the first; the others say what the schedule adds to it):

- the work of each lane in a phase; decode begins when the GPU has ended prefill;
- with barriers, the sum over the stretches between them of each one's longest path (`sim.planning.bounds.barriers`);
- with attention on the CPU, paths that lead from one step to the next: over one lane and back through a micro-batch's
  chain at the step's end, over a chain every so many micro-batches as PreAttn runs ahead, and, as in CGOPipe, around
  pages that block hidden states (`sim.planning.bounds.order` sees in the schedule's own order which of them hold).

A path's length is linear in the durations, so micro-batches may be averaged, and so may steps while no sliding window
fills up. Decode is cut into segments, each with its own longest path. Beside attention on the GPU, copies run ahead of
it by no more than the schedule's slots hold: with the usual ones one layer of weights, two KV caches.
The machine's hand-over from lane to lane is left out: it only adds time.
"""

import numpy as np
from numpy.typing import NDArray

from sim.planning.bounds.barriers import sum_of_stretches
from sim.planning.bounds.durations import DECODE_OPS, LEAST, MEAN, MOST, PREFILL_OPS, Measure, Times
from sim.planning.bounds.host_layers import least_seconds_of_host_layers
from sim.planning.bounds.order import DecodeOrder
from sim.planning.bounds.split import least_seconds_of_split
from sim.planning.policies import Candidates, Floats, HostLayerCandidates, Space, SplitCandidates
from sim.schedule import Op, Schedule, layout_of

LOOKAHEAD = 2
"""Micro-batches by which PreAttn runs ahead where the path around blocked hidden states is known."""


def least_seconds(space: Space) -> tuple[Floats, Floats]:
    """Lower bounds of the whole generation and of its decode, in seconds. [row]."""
    if not len(space):
        return np.zeros(0), np.zeros(0)
    if isinstance(space, SplitCandidates):
        return least_seconds_of_split(space)
    if isinstance(space, HostLayerCandidates):
        return least_seconds_of_host_layers(space)
    assert isinstance(space, Candidates), "there are no other spaces"
    times = Times(space)
    order = DecodeOrder.of(space.schedule)
    stretches = sum_of_stretches(times) if order.meets else None
    return stretches or _Paths(times, order).bound()


def active_joules_of_one(space: Candidates, measure: Measure) -> Floats:
    """Joules of all tasks of one of the devices' parts of the batch; `measure` says those of a task. [row]."""
    return _Paths(Times(space, measure), DecodeOrder.of(space.schedule)).all_tasks()


class _Paths:
    """Paths from one step to the next in schedules without barriers, and the sum of all tasks of any schedule."""

    def __init__(self, times: Times, order: DecodeOrder) -> None:
        self.t, self.space, self.order = times, times.space, order
        self.n = times.n[:, None]  # [row, 1]
        self.pages = self.space.pages.astype(float)[:, None]
        self.all_locked = self.space.locked[:, None, None] == 1
        locked, pageable = Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE
        self.whole = np.where(self.all_locked, times.whole_weights(locked), times.whole_weights(pageable))
        in_pages = times.paged_weights(locked), times.paged_weights(pageable)
        self.loads = np.where(self.all_locked | order.stages, *in_pages)
        self.pins = np.where(self.all_locked, 0.0, times.paged_weights(Op.PIN_WEIGHTS))
        setup = self.space.batch_setups[0]
        buffers = layout_of(setup.schedule, setup.shape).buffers
        self.turns = {name: buffer.turns for name, buffer in buffers.items()}

    def bound(self) -> tuple[Floats, Floats]:
        """Seconds of the generation and of its decode, at least. [row]."""
        prefill = self._prefill()
        if not self.t.segments:
            return prefill, np.zeros(len(self.space))
        decode = np.maximum.reduce(list(self._stretches())).sum(axis=1)
        decode = decode - self.t.of_layer(np.maximum(self.whole, self.loads), 0)[:, 0]  # the last step fetches nothing
        return prefill + decode, decode

    def all_tasks(self) -> Floats:
        """What all of them take one after the other, in prefill and in decode. [row]."""
        t, n, pages = self.t, self.n, self.loads + self.pins if self.order.stages else self.loads
        pre, attn, post, head, load, store, kv = (t.of("prefill", op) for op in PREFILL_OPS)
        others = pre + attn + post + load + store + kv
        ends = t.of_layer(load, 0) + t.of_layer(store, len(t.model.layers) - 1)
        found = n * (t.over_layers(others) - ends + t.of_layer(head, 0))
        found = found + t.over_layers(np.minimum(self.whole, pages))
        if not t.segments:
            return np.asarray(found[:, 0])
        head = t.of("decode", Op.HEAD)
        others = np.sum([t.of("decode", op) for op in DECODE_OPS if op is not Op.HEAD], axis=0)
        step = n * (t.over_layers(others) + t.of_layer(head, 0)) + t.over_layers(pages)
        return np.asarray(found[:, 0] + (step * t.weights).sum(axis=1))

    def _prefill(self) -> Floats:
        """Until the GPU has ended prefill: its work, behind the first weights, or all weights before the last layer."""
        t, n = self.t, self.n
        pre, attn, post, head, load, store, kv = (t.of("prefill", op) for op in PREFILL_OPS)
        last = len(t.model.layers) - 1
        heads = n * t.of_layer(head, 0)
        gpu = n * t.over_layers(pre + attn + post) + heads
        if type(self.space.schedule).prefill is not Schedule.prefill:
            return np.asarray(np.maximum(gpu, t.over_layers(np.minimum(self.whole, self.loads))))[:, 0]
        streams = self.space.batch_setups[0].shape.streams_non_experts
        before = np.zeros_like(pre) if streams else pre + attn
        first = gpu + t.of_layer(self.whole, 0) - t.of_layer(before, 0)
        first = np.where(t.of_layer(self.whole, 0) > 0, first, gpu)
        weights = t.over_layers(self.whole) + n * t.of_layer(post, last) + heads
        hidden = n * (t.over_layers(load) - t.of_layer(load, 0))
        link = t.over_layers(self.whole) + hidden
        out = n * (t.over_layers(kv + store) - t.of_layer(kv + store, last))  # the last layer's may end later
        return np.asarray(np.maximum.reduce([gpu, first, weights, link, out]))[:, 0]

    def _stretches(self) -> list[Floats]:
        """Each path over each segment. [row, segment]."""
        steps = self.t.weights
        on_cpu = self.t.on_cpu[:, None]
        found = [steps * np.where(on_cpu, path, 0.0) for path in self._over_the_cpu()]
        for path, seam in self._lanes():
            found.append(steps * path - np.where(on_cpu & (seam >= 0), 0.0, np.abs(seam)))
        return found

    def _lanes(self) -> list[tuple[Floats, Floats]]:
        """Work of each lane in a step, and what of it may happen outside of the segment.

        With attention on the CPU the GPU and the link are in step; staging that is filled ahead is not: below 0.
        """
        t, n = self.t, self.n
        pre, off, attn, load, post, head, kv, store = (t.of("decode", op) for op in DECODE_OPS)
        on_gpu = np.where(t.on_cpu[:, None, None], 0.0, attn)
        gpu = n * (t.over_layers(pre + on_gpu + post) + t.of_layer(head, 0))
        h2d = n * t.over_layers(load + kv) + t.over_layers(self.loads)
        h2d = h2d - np.where(t.on_cpu[:, None], self._outside(), 0.0)
        layers = self.turns["weights"] - 1
        seam = layers * self.loads.max(axis=1) + self.turns["kv on device"] * kv.max(axis=1)
        out = n * t.over_layers(off + store)
        stored = self.turns["new kv"] * store.max(axis=1)
        lanes = [(gpu, 0.0 * gpu), (h2d, seam + 0.0 * h2d), (out, stored + 0.0 * out)]
        if self.order.stages:
            ahead = (layers + self.turns["pinned"]) * (self.pins + self.loads).max(axis=1)
            turns = (t.last_page_staged() + self.loads / self.pages[..., None]) / self.turns["pinned"]
            turns = np.where(self.all_locked | ~self._all_stream()[:, None, None], 0.0, turns)
            lanes += [(t.over_layers(self.pins), -ahead - 1e-12), (t.over_layers(turns), -ahead - 1e-12)]
        return lanes

    def _over_the_cpu(self) -> list[Floats]:
        """With CPU attention each step begins with PreAttn of the first micro-batch, when all heads have ended."""
        t, n = self.t, self.n
        pre, off, attn, load, post, head, _, _ = (t.of("decode", op) for op in DECODE_OPS)
        chain, last = pre + off + attn + load + post, len(t.model.layers) - 1
        least = {op: t.of("decode", op, LEAST) for op in DECODE_OPS}
        one_head = t.of_layer(least[Op.HEAD], 0)
        begin = t.of_layer(least[Op.PRE_ATTN] + least[Op.OFFLOAD_QKV], 0)
        end = t.of_layer(least[Op.POST_ATTN], last) + one_head
        ahead = self.order.lookahead or n
        before = np.expand_dims(np.asarray(ahead - 1), -1) * t.of("decode", Op.PRE_ATTN, MOST)
        around = least[Op.OFFLOAD_QKV] + least[Op.ATTN] + least[Op.LOAD_HIDDEN] - before
        gpu = n * (t.over_layers(pre + post) + t.of_layer(head, 0))
        gpu = gpu + np.where(n > 1, np.maximum(0.0, t.of_layer(around, 0)), 0.0)
        cpu = n * t.over_layers(attn) + begin + t.of_layer(least[Op.LOAD_HIDDEN], last) + end
        h2d = n * t.over_layers(load) + t.over_layers(self.loads) - self._outside()
        h2d = h2d + begin + t.of_layer(least[Op.ATTN], 0) + end
        turns = np.maximum(1.0, n / ahead) * t.over_layers(chain) + one_head
        found = [gpu, cpu, h2d, turns]
        if self.order.beside_hidden and self.order.lookahead == LOOKAHEAD:
            found.append(self._blocked())
        return found

    def _outside(self) -> Floats:
        """Weights that a step moves before its first hidden states or behind its last. [row, segment]."""
        if not self.order.beside_hidden:
            return np.asarray(self.order.outside * self.loads.max(axis=1))
        paged = self.space.schedule.system.paged
        share = np.ceil(self.pages / self.n) / self.pages if paged else (self.n == 1).astype(float)
        return np.asarray(share * self.t.of_layer(self.loads, 0))

    def _blocked(self) -> Floats:
        """Hidden states behind a page wait for it, and with them, two micro-batches on, PreAttn and attention."""
        n, pages = self.n[..., None], self.pages[..., None]
        pre, off, attn, load, post, _, _, _ = (self.t.of("decode", op, LEAST) for op in DECODE_OPS)
        block = self.loads / pages + 2 * load + pre + off + attn + post
        layer = pages * block + np.maximum(self._others(Op.ATTN), self._others(Op.PRE_ATTN, Op.POST_ATTN))
        seam = (pages * block).max(axis=1) / self.t.weights  # the last step fetches nothing
        step = self.t.over_layers(layer) - seam
        if self.space.schedule.system.paged:
            step = step - block.max(axis=1)
        applies = (n // pages >= 3)[..., 0] & self._all_stream()[:, None]
        return np.where(applies, step, 0.0)

    def _others(self, *ops: Op) -> Floats:
        """Work of a lane on all micro-batches of a layer but three a page."""
        mean, most = (sum(self.t.of("decode", op, which) for op in ops) for which in (MEAN, MOST))
        return np.asarray(np.maximum(0.0, self.n[..., None] * mean - 3 * self.pages[..., None] * most))

    def _all_stream(self) -> NDArray[np.bool_]:
        return np.asarray(np.all(self.t.streams() > 0, axis=(1, 2)))
