"""What tasks read and write in a stream of requests, where some micro-batches carry prompts while the others decode.

A prompt is computed as in prefill, but for what comes before it and after it: what earlier chunks left of the KV cache
comes over the link, and its requests decode in other micro-batches from the next step on. So the cache of prompts is
written in one step and read in the next, by all who decode; and its blocks may be those of requests that decoded in the
step before. Of two sets of slots, one is written while the other is read.
"""

from typing import Any

import numpy as np

from sim.schedule.buffers import Buffer, By, Holds, MemoryPart, Tier
from sim.schedule.shape import Place
from sim.schedule.slots import Access, Accesses, Column, SlotLayout
from sim.schedule.task import LaneKind, Op, Task

KV_OVER_LINK = "kv over the link"
"""The buffer of the KV cache of those who attend on the device beside others; part of the KV cache."""
ATTENDED = "kv that came over the link"
"""The buffer on the device where it comes, a layer of the next micro-batch while one is attended to."""

Truths = Any
"""A truth of one task, or an array of them, one a task."""


def let_prompts_in(layout: SlotLayout) -> None:
    """Change a fresh layout so that the shape's first micro-batches carry prompts in every step after the first."""
    for turn in range(2):
        layout.buffers |= {
            _cache_of(turn): Buffer(Holds.CACHE, By.CACHE),
            _begun_in(turn): Buffer(Holds.HIDDEN, By.MICRO_BATCH),
        }
    loaded = Tier.DEVICE if layout.shape.streams_kv else None
    if layout.shape.over_link:  # what of the cache comes over the link is locked as what lands there is
        layout.buffers[KV_OVER_LINK] = Buffer(Holds.CACHE, By.CACHE, 1, layout.buffers["new kv on host"].tier)
        layout.buffers[ATTENDED] = Buffer(Holds.ATTENDED_CACHE, By.TURN, 2, Tier.DEVICE, MemoryPart.KV_BUFFERS)
    layout.buffers["kv on device"] = Buffer(Holds.LOADED_CACHE, By.TURN, 2, loaded, MemoryPart.KV_BUFFERS)
    rules = _Rules(layout)
    for op, refined in {
        Op.PRE_ATTN: rules.pre_attn,
        Op.ATTN: rules.attn,
        Op.LOAD_KV: rules.load_kv,
        Op.STORE_KV: rules.writes_cache,
        Op.HEAD: rules.head,
    }.items():
        layout.refine(op, refined)


def _cache_of(step: int) -> str:
    """The buffer of what prompts leave of their KV cache in a step; part of the KV cache, so it takes no memory."""
    return f"kv of prompts, {step % 2}"


def _begun_in(step: int) -> str:
    """The buffer of the first tokens of requests that decode from a step on."""
    return f"first tokens, {step % 2}"


class _Rules:
    """What is other than where all micro-batches decode."""

    def __init__(self, layout: SlotLayout) -> None:
        self._layout, self._num_prompts, self._over_link = layout, layout.shape.num_prompts, layout.shape.over_link
        self._place = np.searchsorted(self._over_link, range(layout.shape.num_micro_batches))

    def pre_attn(self, task: Task, usual: Accesses) -> Accesses:
        """A prompt is embedded; who decodes was embedded by the head, some of them by that of a prompt."""
        if task.step == 0:
            return usual
        prompts, first = self._prompts(task), np.equal(task.layer, 0)
        embeds = self._layout.access("hidden", task, (task.step, 0), prompts & first)
        begun = self._of_all(_begun_in(task.step), task, (task.step, 0), ~prompts & first)
        reads = _without(usual.reads, "hidden", prompts & first)
        return Accesses((*reads, begun), (*usual.writes, embeds))

    def attn(self, task: Task, usual: Accesses) -> Accesses:
        """On the GPU a prompt attends to what was loaded; where the cache is there, it is read and written in place."""
        if task.step == 0:
            return usual
        shape, on_gpu = self._layout.shape, task.lane.kind is LaneKind.GPU
        if on_gpu and not shape.streams_kv:
            return self.writes_cache(task, self.reads_cache(task, usual))
        if not on_gpu:
            return self.reads_cache(task, usual)
        if shape.attention is Place.GPU:
            return usual
        prompts = self._prompts(task)
        loaded = self._layout.access("kv on device", task, when=prompts), *self._attended(task, ~prompts)
        return Accesses((*usual.reads, *loaded), usual.writes)

    def load_kv(self, task: Task, usual: Accesses) -> Accesses:
        """What comes for those who attend beside others has slots of its own, filled ahead."""
        reads, writes = self.reads_cache(task, usual)
        if not self._over_link:
            return Accesses(reads, writes)
        others = ~self._prompts(task)
        return Accesses(reads, (*_without(writes, "kv on device", others), *self._attended(task, others)))

    def _attended(self, task: Task, when: Truths) -> tuple[Access, ...]:
        """The slot of a micro-batch that attends beside others: those of all layers take turns."""
        if not self._over_link:
            return ()
        turn = self._layout.run_of_layer(task) * len(self._over_link) + self._place[task.micro_batch]
        content = (task.step, task.layer, task.micro_batch)
        return (Access(ATTENDED, turn % self._layout.buffers[ATTENDED].turns, content, 1, when),)

    def reads_cache(self, task: Task, usual: Accesses) -> Accesses:
        """A prompt reads what its earlier chunks left; who decodes, also what the prompts of the step before left."""
        if task.step == 0:
            return usual
        prompts, name, before = self._prompts(task), _cache_of(task.step - 1), (task.step - 1,)
        mine = self._layout.access(name, task, before, prompts)
        all_ = self._of_all(name, task, before, ~prompts)
        return Accesses((*_without(usual.reads, "kv", prompts), mine, all_), usual.writes)

    def writes_cache(self, task: Task, usual: Accesses) -> Accesses:
        """A prompt leaves its part of the cache to the step that follows."""
        if task.step == 0:
            return usual
        prompts = self._prompts(task)
        mine = self._layout.access(_cache_of(task.step), task, (task.step,), prompts)
        return Accesses(usual.reads, (*_without(usual.writes, "kv", prompts), mine))

    def head(self, task: Task, usual: Accesses) -> Accesses:
        """A prompt's first token goes to where its request will decode."""
        if task.step == 0:
            return usual
        prompts, after = self._prompts(task), task.step + 1
        begun = self._layout.access(_begun_in(after), task, (after, 0), prompts)
        return Accesses(usual.reads, (*_without(usual.writes, "hidden", prompts), begun))

    def _prompts(self, task: Task) -> Truths:
        return np.less(task.micro_batch, self._num_prompts)

    def _of_all(self, name: str, task: Task, content: tuple[Column, ...], when: Truths) -> Access:
        """A buffer's slots of all prompts, of the task's layer if it has a slot for each."""
        first = task.layer * self._layout.shape.num_micro_batches if self._layout.buffers[name].by is By.CACHE else 0
        return Access(name, first, content, self._num_prompts, when)


def _without(accesses: tuple[Access, ...], name: str, when: Truths) -> tuple[Access, ...]:
    """The same accesses but for those to a buffer by tasks of which this is true."""
    return tuple(one._replace(when=one.when & ~when) if one.buffer == name else one for one in accesses)
