"""What all tasks of policies draw above idle that compute experts where they are: no order of work changes it."""

import numpy as np

from sim.planning.bounds.durations import DECODE_OPS, PREFILL_OPS, Measure
from sim.planning.bounds.split.rows import SplitRows
from sim.planning.bounds.split.tables import CopyCosts, Tables, TokenGroups
from sim.planning.policies import Floats, Ints, SplitCandidates
from sim.schedule import Op

CHUNK = 1 << 15
"""Rows that are asked about at once: what they take stays in the processor's cache."""


def active_joules_of_split(space: SplitCandidates, measure: Measure, copies: CopyCosts) -> Floats:
    """Joules of one of the devices' parts of the batch. `measure` and `copies` say those of a task. [row]."""
    tables = Tables(space, copies, measure)
    chunks = (np.arange(at, min(at + CHUNK, len(space))) for at in range(0, len(space), CHUNK))
    return np.concatenate([_Sum(tables, chunk).total() for chunk in chunks])


class _Sum(SplitRows):
    """All tasks added up."""

    def total(self) -> Floats:
        """Joules of prefill and decode. [row]."""
        steps = self.tables.batches.weights
        return self._prefill() + (self._decode() * steps).sum(axis=1) if len(steps) else self._prefill()

    def _prefill(self) -> Floats:
        tables, n = self.tables, self.n[:, None]
        pre, attn, post, head, load, store, kv = (self.of("prefill", op) for op in PREFILL_OPS)
        layers = self.layers.sum(axis=1, keepdims=True)
        hidden = (load + store) * (layers - 1) / layers  # none comes to the first layer, or leaves the last
        shared = n * (pre + attn + head + hidden + kv)
        loads = self.weights(self.slots, np.ones(len(self.mix)), staged=False)
        shared = shared[:, 0] + (loads * self.layers).sum(axis=1)
        usual = shared + (n * post)[:, 0]
        apart = n * (self.of("prefill", Op.ROUTE) + tables.batches.dense("prefill")[self.batch])
        there = shared + apart[:, 0] + self._experts(tables.prompt_groups)
        return np.asarray(np.where(tables.on_host[self.frame], there, usual))

    def _decode(self) -> Floats:
        """Of one step. [row, segment]."""
        attended = np.sum([self.of("decode", op) for op in (*DECODE_OPS, Op.ROUTE)], axis=0)
        loads = self.weights(self.streamed_bytes(), self.n, staged=self.tables.stages)
        loads = loads + self.pins() if self.tables.stages else loads
        once = (loads * self.layers).sum(axis=1) + self._experts(self.tables.groups)
        return np.asarray(self.n[:, None] * attended + once[:, None])

    def _experts(self, groups: TokenGroups) -> Floats:
        """Of all groups, wherever their experts are. [row]."""

        def of_group(which: Ints) -> Floats:
            moved = self.offload_tokens(which) + self.load_output(which) + self.fetch_experts(which)
            return np.asarray(self.host_experts(which) + self.device_experts(which) + moved)

        return self.over_groups(groups, of_group)
