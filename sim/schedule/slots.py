"""What each task reads and writes: the physics that every schedule has in common.

A slot is a piece of memory that tasks reuse: a page of a weight buffer, a micro-batch's activations, its KV cache
in one layer. An access names the slot and the content that must be in it (reads) or that is put there (writes).
Dependencies follow from accesses, and a checker can prove from them that no write races a read.
"""

from typing import NamedTuple

from sim.schedule.shape import PipelineShape
from sim.schedule.task import WHOLE, LaneKind, Op, Task

WEIGHT_SLOTS = 2
"""Layer-sized weight buffers on the device: one is computed from while the other fills (paper section 4.1)."""

KV_SLOTS = 2
"""Device buffers for the KV cache, or the new KV entries, of one micro-batch in one layer."""

Slot = tuple[str, int] | tuple[str, int, int]


class Access(NamedTuple):
    """One slot and what is in it."""

    slot: Slot
    content: tuple[int, ...]


class Accesses(NamedTuple):
    """All slots that a task reads and writes."""

    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()


class SlotLayout:
    """Assigns slots to the tasks of one pipeline; a schedule with other buffers overrides what differs."""

    def __init__(self, shape: PipelineShape, pinned_layers: int = 1) -> None:
        self.shape = shape
        self.pinned_layers = pinned_layers
        self._by_op = {
            Op.PIN_WEIGHTS: self._pin,
            Op.LOAD_WEIGHTS: self._load_pinned,
            Op.LOAD_WEIGHTS_PAGEABLE: self._load_pageable,
            Op.PRE_ATTN: self._pre_attn,
            Op.OFFLOAD_QKV: self._offload_qkv,
            Op.ATTN: self._attn,
            Op.LOAD_HIDDEN: self._load_hidden,
            Op.POST_ATTN: self._post_attn,
            Op.HEAD: self._head,
            Op.LOAD_KV: self._load_kv,
            Op.STORE_KV: self._store_kv,
            Op.STORE_HIDDEN: self._store_hidden,
        }

    @property
    def reach_steps(self) -> int:
        """How many steps back a slot's last use can lie.

        Buffers that take turns are all used within two layers if each layer streams, else within two steps.
        """
        return 1 if self.shape.num_layers > 1 and all(self.shape.streamed) else 2

    def accesses(self, task: Task) -> Accesses:
        """The slots of one task."""
        return self._by_op[task.op](task)

    # weights -------------------------------------------------------------------------------------------------

    def run_of_layer(self, task: Task) -> int:
        """How many layers were run before this one since the start: names one use of a layer's weights."""
        return task.step * self.shape.num_layers + task.layer

    def _pages(self, task: Task) -> range:
        return range(self.shape.num_pages) if task.page == WHOLE else range(task.page, task.page + 1)

    def _weights(self, task: Task) -> tuple[Access, ...]:
        run = self.run_of_layer(task)
        return tuple(Access(("weights", run % WEIGHT_SLOTS, page), (run, page)) for page in self._pages(task))

    def _pinned(self, task: Task) -> tuple[Access, ...]:
        run = self.run_of_layer(task)
        return tuple(Access(("pinned", run % self.pinned_layers, page), (run, page)) for page in self._pages(task))

    def _weights_read(self, task: Task) -> tuple[Access, ...]:
        return self._weights(task._replace(page=WHOLE)) if self.shape.streamed[task.layer] else ()

    def _pin(self, task: Task) -> Accesses:
        return Accesses(writes=self._pinned(task))

    def _load_pinned(self, task: Task) -> Accesses:
        return Accesses(() if self.shape.weights_pinned else self._pinned(task), self._weights(task))

    def _load_pageable(self, task: Task) -> Accesses:
        return Accesses(writes=self._weights(task))

    # activations ---------------------------------------------------------------------------------------------

    def _turn(self, task: Task) -> int:
        return (self.run_of_layer(task) * self.shape.num_micro_batches + task.micro_batch) % KV_SLOTS

    def _activation(self, task: Task, layer: int) -> Access:
        """Hidden states that enter `layer`. In prefill two device buffers take turns if hidden states are offloaded."""
        if task.step == 0 and self.shape.offloads_hidden:
            return Access(("activation", self._turn(task)), (0, layer, task.micro_batch))
        return Access(("hidden", task.micro_batch), (task.step, layer))

    def _own(self, name: str, task: Task) -> Access:
        """A micro-batch's own buffer, filled anew in each layer."""
        return Access((name, task.micro_batch), (task.step, task.layer))

    def _pre_attn(self, task: Task) -> Accesses:
        reads = (self._weights_read(task)) if self.shape.streams_non_experts else ()
        entering = self._activation(task, task.layer)
        if task.step == 0 and task.layer == 0:  # embeds the prompt
            return Accesses(reads, (entering, self._own("qkv", task)))
        return Accesses((*reads, entering), (self._own("qkv", task),))

    def _post_attn(self, task: Task) -> Accesses:
        reads = (self._own("attention", task), self._activation(task, task.layer), *self._weights_read(task))
        return Accesses(reads, (self._activation(task, task.layer + 1),))

    def _head(self, task: Task) -> Accesses:
        last = task._replace(layer=self.shape.num_layers - 1)
        return Accesses(
            (self._activation(last, self.shape.num_layers),),
            (Access(("hidden", task.micro_batch), (task.step + 1, 0)),),
        )

    def _load_hidden(self, task: Task) -> Accesses:
        if task.step == 0:
            stored = Access(("hidden on host", task.micro_batch), (task.layer,))
            return Accesses((stored,), (self._activation(task, task.layer),))
        return Accesses((self._own("attention on host", task),), (self._own("attention", task),))

    def _store_hidden(self, task: Task) -> Accesses:
        leaving = self._activation(task, task.layer + 1)
        return Accesses((leaving,), (Access(("hidden on host", task.micro_batch), (task.layer + 1,)),))

    # attention and its cache ---------------------------------------------------------------------------------

    def _cache(self, task: Task, step: int) -> Access:
        """The KV cache of one micro-batch in one layer, up to and including the tokens of `step`."""
        return Access(("kv", task.layer, task.micro_batch), (step,))

    def _kv_buffer(self, name: str, task: Task) -> Access:
        return Access((name, self._turn(task)), (task.step, task.layer, task.micro_batch))

    def _offload_qkv(self, task: Task) -> Accesses:
        return Accesses((self._own("qkv", task),), (self._own("qkv on host", task),))

    def _load_kv(self, task: Task) -> Accesses:
        return Accesses((self._cache(task, task.step - 1),), (self._kv_buffer("kv on device", task),))

    def _store_kv(self, task: Task) -> Accesses:
        return Accesses((self._kv_buffer("new kv", task),), (self._cache(task, task.step),))

    def _attn(self, task: Task) -> Accesses:
        cached = (self._cache(task, task.step - 1),) if task.step > 0 else ()
        if task.lane.kind is LaneKind.CPU:
            writes = (self._cache(task, task.step), self._own("attention on host", task))
            return Accesses((self._own("qkv on host", task), *cached), writes)
        qkv, out = self._own("qkv", task), self._own("attention", task)
        if not self.shape.streams_kv:
            return Accesses((qkv, *cached), (out, self._cache(task, task.step)))
        loaded = (self._kv_buffer("kv on device", task),) if cached else ()
        return Accesses((qkv, *loaded), (out, self._kv_buffer("new kv", task)))
