"""What each task reads and writes: the physics that every schedule has in common.

A slot is a piece of memory that tasks reuse: a page of a weight buffer, a micro-batch's activations, its KV cache
in one layer. An access names the slots and the content that must be in them (reads) or that is put there (writes).
Dependencies follow from accesses, and a checker can prove from them that no write races a read. The memory plan and
the engine's buffers follow from the buffers that the slots belong to.

Many tasks of one op, lane and step may be asked about at once: layer, micro-batch and page of the `Task` are then
columns of numbers. A rule may decide by op, lane and step with `if`, by the others with `when`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.schedule.buffers import AS_WIDE_AS_HIDDEN, Buffer, By, Holds, MemoryPart, Tier
from sim.schedule.shape import PipelineShape, Place, System
from sim.schedule.task import WHOLE, LaneKind, Op, Task
from traces.errors import InputError

Column = Any
"""A whole number or a truth of one task, or an array of them, one a task."""

Slot = tuple[str, int]
"""A buffer and a number there; pages of one slot lie one behind the other."""

STAGES_ONE = System((Place.CPU, Place.GPU), pinned_layers=1)
"""A system of which nothing else is known."""


class Access(NamedTuple):
    """Slots of one buffer and what is in them."""

    buffer: str
    first: Column
    content: tuple[Column, ...]
    length: int = 1
    when: Column = True
    """Whether a task has this access at all."""


class Accesses(NamedTuple):
    """All slots that a task reads and writes."""

    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()


def slots_of(accesses: Iterable[Access]) -> list[Slot]:
    """Each slot that one task has access to."""
    return [(buffer, at) for buffer, at, _, length, when in accesses if when for at in range(at, at + length)]


Rule = Callable[[Task], Accesses]


class SlotLayout:
    """Assigns slots to the tasks of one pipeline.

    A schedule with other buffers changes `buffers` in the constructor of a class of its own, and where its tasks touch
    others than the usual ones, overrides `accesses`.
    """

    def __init__(self, shape: PipelineShape, system: System = STAGES_ONE) -> None:
        self.shape = shape
        self._kv_on_host = np.array([shape.kv_on_host(j) for j in range(shape.num_micro_batches)])
        on_cpu = shape.attention is Place.CPU
        exchanged = (Tier.DEVICE if on_cpu else None, MemoryPart.ATTENTION_EXCHANGE)
        copied = Tier.PINNED if system.pins_activations else Tier.HOST
        exchanged_on_host = (copied if on_cpu else None, MemoryPart.ATTENTION_EXCHANGE)
        staging = None if shape.weights_pinned else Tier.PINNED
        loaded = None if on_cpu or not shape.streams_kv else Tier.DEVICE
        stays = Tier.DEVICE if shape.attending_on_device and not shape.num_prompts else loaded
        new = Tier.DEVICE if self._kv_on_host.any() else None
        crossing = Tier.PINNED if system.pins_kv else Tier.HOST
        landing = crossing if on_cpu and new else None
        on_host = Tier.HOST if on_cpu else crossing
        cache = on_host if shape.streams_kv else Tier.DEVICE
        waits = shape.offloads_hidden
        hidden = MemoryPart.HIDDEN_STATES
        self.buffers: dict[str, Buffer] = {
            "weights": Buffer(Holds.WEIGHTS, By.RUN, 2, Tier.DEVICE, MemoryPart.WEIGHT_SLOTS),
            "pinned": Buffer(Holds.STAGED, By.RUN, system.pinned_layers, staging, MemoryPart.STAGING),
            "hidden": Buffer(Holds.HIDDEN if waits else Holds.PROMPT_HIDDEN, By.MICRO_BATCH, 1, Tier.DEVICE, hidden),
            "activation": Buffer(Holds.PROMPT_HIDDEN, By.TURN, 2, Tier.DEVICE if waits else None, hidden),
            "leaving": Buffer(Holds.PROMPT_HIDDEN, By.TURN, 1, Tier.DEVICE if waits else None, hidden),
            "hidden of host layers": Buffer(
                Holds.PROMPT_HIDDEN, By.MICRO_BATCH, 1, copied if shape.runs_on_host else None, hidden
            ),
            "hidden on host": Buffer(Holds.PROMPT_HIDDEN, By.MICRO_BATCH, 1, copied if waits else None, hidden),
            "qkv": Buffer(Holds.QKV, By.MICRO_BATCH, 1, *exchanged),
            "qkv on host": Buffer(Holds.QKV, By.MICRO_BATCH, 1, *exchanged_on_host),
            "attention": Buffer(Holds.ATTENTION, By.MICRO_BATCH, 1, *exchanged),
            "attention on host": Buffer(Holds.ATTENTION, By.MICRO_BATCH, 1, *exchanged_on_host),
            "kv": Buffer(Holds.CACHE, By.CACHE, 1, cache, MemoryPart.KV_CACHE),
            "resident kv": Buffer(Holds.RESIDENT_CACHE, By.CACHE, 1, stays, MemoryPart.KV_CACHE),
            "joined kv": Buffer(Holds.JOINED_CACHE, By.TURN, 1, loaded, MemoryPart.KV_BUFFERS),
            "kv on device": Buffer(Holds.CACHE, By.TURN, 2, loaded, MemoryPart.KV_BUFFERS),
            "new kv": Buffer(Holds.PROMPT_CACHE, By.TURN, 2, new, MemoryPart.KV_BUFFERS),
            "new kv on host": Buffer(Holds.PROMPT_CACHE, By.TURN, 2, landing, MemoryPart.KV_BUFFERS),
        }
        self._streamed = np.array([shape.streamed_in_prefill or shape.streamed, shape.streamed])
        self._by_op: dict[Op, Rule] = {
            Op.PIN_WEIGHTS: lambda task: Accesses(writes=(self.access("pinned", task),)),
            Op.LOAD_WEIGHTS: self._load_pinned,
            Op.LOAD_WEIGHTS_PAGEABLE: lambda task: Accesses(writes=(self.access("weights", task),)),
            Op.PRE_ATTN: self._pre_attn,
            Op.OFFLOAD_QKV: self._between("qkv", "qkv on host"),
            Op.ATTN: self._attn,
            Op.LOAD_HIDDEN: self._load_hidden,
            Op.POST_ATTN: self._post_attn,
            Op.HEAD: self._head,
            Op.LOAD_KV: lambda task: Accesses(
                (self._cache(task, task.step - 1),), (self.access("kv on device", task),)
            ),
            Op.STORE_KV: lambda task: Accesses((self.access("new kv", task),), (self._cache(task, task.step),)),
            Op.STORE_HIDDEN: self._store_hidden,
            Op.ENTER_HOST: self._enter_host,
            Op.HOST_LAYER: self._host_layer,
        }

    @cached_property
    def group_of(self) -> NDArray[np.int64]:
        """Of each micro-batch, its group."""
        groups = [len(self.shape.group(group)) for group in range(self.shape.num_groups)]
        return np.repeat(np.arange(len(groups)), groups)

    @property
    def reach_steps(self) -> int:
        """How many steps back a slot's last use can lie.

        Buffers that take turns are all used within as many layers if each layer streams, else within as many steps.
        """
        turns = max(buffer.turns for buffer in self.buffers.values())
        alike = all(self.shape.streamed) and not (self.shape.experts or self.shape.num_prompts)
        return -(-turns // self.shape.num_layers) if alike else turns

    @cached_property
    def parts(self) -> dict[tuple[Tier, str, bool], list[Buffer]]:
        """Buffers by tier, part of the memory plan, and whether every device holds all of it: hidden states, wherever.

        The KV cache is not among them: it takes what all layers need together, wherever each part of it is.
        """
        found = defaultdict[tuple[Tier, str, bool], list[Buffer]](list)
        for name, one in self.buffers.items():
            if one.tier and one.by is not By.CACHE:
                whole = one.holds in AS_WIDE_AS_HIDDEN
                found[one.tier, one.part or name, whole].append(one)
        return dict(found)

    def num_slots(self, name: str) -> int:
        """How many slots a buffer has, a slot for each page."""
        buffer, shape = self.buffers[name], self.shape
        own = {By.RUN: shape.num_pages, By.TURN: 1, By.GROUP: 1}.get(buffer.by, shape.num_micro_batches)
        return own * (shape.num_layers if buffer.by is By.CACHE else max(1, buffer.turns))

    def accesses(self, task: Task) -> Accesses:
        """The slots of one task, or of many that share op, lane and step."""
        return self._by_op[task.op](task)

    def refine(self, op: Op, refined: Callable[[Task, Accesses], Accesses]) -> None:
        """Change what tasks of an op have access to, given what they had before."""
        rule = self._by_op[op]
        self._by_op[op] = lambda task: refined(task, rule(task))

    def run_of_layer(self, task: Task) -> Column:
        """How many layers the device ran before this one since the start: names one use of a layer's weights.

        Layers on the host count for nothing, so that those before and behind them take turns.
        """
        first, stop = self.shape.layers_on_host
        on_host = stop - first
        run = task.step * (self.shape.num_layers - on_host) + task.layer
        return run - on_host * (task.layer >= stop) if on_host else run

    def slot_of(self, name: str, task: Task) -> Column:
        """Which slot of a buffer is the task's, all of its pages."""
        buffer, n = self.buffers[name], self.shape.num_micro_batches
        if not buffer.turns:
            raise InputError(
                f"{name}: the schedule uses this buffer, which has no slots: give its System pinned_layers"
            )
        if buffer.by is By.RUN:
            return self.run_of_layer(task) % buffer.turns
        if buffer.by is By.TURN:
            return (self.run_of_layer(task) * n + task.micro_batch) % buffer.turns
        if buffer.by is By.GROUP:
            return (self.run_of_layer(task) * self.shape.num_groups + self.group_of[task.micro_batch]) % buffer.turns
        return task.micro_batch if buffer.by is By.MICRO_BATCH else task.layer * n + task.micro_batch

    def access(self, name: str, task: Task, content: tuple[Column, ...] | None = None, when: Column = True) -> Access:
        """The task's slots of a buffer, by default filled anew in each layer."""
        by, slot = self.buffers[name].by, self.slot_of(name, task)
        if by is By.RUN:
            page, pages = task.page, self.shape.num_pages
            whole = isinstance(page, int) and page == WHOLE
            first, length = (slot * pages, pages) if whole else (slot * pages + page, 1)
            return Access(name, first, content or (self.run_of_layer(task),), length, when)
        here = (task.step, task.layer, task.micro_batch) if by is By.TURN else (task.step, task.layer)
        return Access(name, slot, content or here, 1, when)

    def _between(self, source: str, target: str) -> Rule:
        return lambda task: Accesses((self.access(source, task),), (self.access(target, task),))

    def _load_pinned(self, task: Task) -> Accesses:
        staged = () if self.shape.weights_pinned else (self.access("pinned", task),)
        return Accesses(staged, (self.access("weights", task),))

    def _weights_read(self, task: Task) -> Access:
        """All pages, of a task that has none."""
        return self.access("weights", task, when=self._streamed[int(task.step > 0)][task.layer])

    def _hidden(self, task: Task, layer: Column, when: Column = True) -> Access:
        """Hidden states that enter `layer`. In prefill two device buffers take turns if hidden states are offloaded."""
        if task.step == 0 and self.shape.offloads_hidden:
            return self.access("activation", task, (0, layer, task.micro_batch), when)
        return self.access("hidden", task, (task.step, layer), when)

    def _pre_attn(self, task: Task) -> Accesses:
        weights = (self._weights_read(task),) if self.shape.streams_non_experts else ()
        qkv = self.access("qkv", task)
        if task.step > 0:
            return Accesses((*weights, self._hidden(task, task.layer)), (qkv,))
        entering = self._hidden(task, task.layer, task.layer > 0)
        embedded = self._hidden(task, task.layer, task.layer == 0)
        return Accesses((*weights, entering), (embedded, qkv))

    def _post_attn(self, task: Task) -> Accesses:
        reads = (self.access("attention", task), self._hidden(task, task.layer), self._weights_read(task))
        return Accesses(reads, (self._hidden(task, task.layer + 1),))

    def _head(self, task: Task) -> Accesses:
        leaving = self._hidden(task._replace(layer=self.shape.num_layers - 1), self.shape.num_layers)
        return Accesses((leaving,), (self.access("hidden", task, (task.step + 1, 0)),))

    def _enter_host(self, task: Task) -> Accesses:
        """Hidden states that enter the first layer on the host: embedded in prefill, or what the layer before left."""
        hidden = self._hidden(task, task.layer)
        return Accesses((hidden._replace(when=(task.step > 0) | (task.layer > 0)),), (hidden,))

    def _host_layer(self, task: Task) -> Accesses:
        cached = (self._cache(task, task.step - 1),) if task.step > 0 else ()
        entering, leaving = (self._hidden_of_host(task, layer) for layer in (task.layer, task.layer + 1))
        return Accesses((entering, *cached), (leaving, self._cache(task, task.step)))

    def _hidden_of_host(self, task: Task, layer: Column, when: Column = True) -> Access:
        return self.access("hidden of host layers", task, (task.step, layer), when)

    def _load_hidden(self, task: Task) -> Accesses:
        if self.shape.runs_on_host:
            return self._load_hidden_beside_host_layers(task)
        if task.step > 0:
            return self._between("attention on host", "attention")(task)
        stored = self.access("hidden on host", task, (task.layer,))
        return Accesses((stored,), (self._hidden(task, task.layer),))

    def _load_hidden_beside_host_layers(self, task: Task) -> Accesses:
        """What leaves the last layer on the host; in decode, of layers on the device, what attention gave."""
        left = task.layer == self.shape.layers_on_host[1] - 1
        reads = (self._hidden_of_host(task, task.layer + 1, left),)
        writes = (self._hidden(task, task.layer + 1, left),)
        if task.step == 0:
            return Accesses(reads, writes)
        attended, on_device = self._between("attention on host", "attention")(task)
        return Accesses(
            (*reads, *(one._replace(when=~np.asarray(left)) for one in attended)),
            (*writes, *(one._replace(when=~np.asarray(left)) for one in on_device)),
        )

    def _store_hidden(self, task: Task) -> Accesses:
        if self.shape.runs_on_host:
            return Accesses((self._hidden(task, task.layer),), (self._hidden_of_host(task, task.layer),))
        stored = self.access("hidden on host", task, (task.layer + 1,))
        return Accesses((self._hidden(task, task.layer + 1),), (stored,))

    def _cache(self, task: Task, step: int, name: str = "kv") -> Access:
        """The KV cache of one micro-batch in one layer, up to and including the tokens of `step`."""
        return self.access(name, task, (step,))

    def _attn(self, task: Task) -> Accesses:
        cached = (self._cache(task, task.step - 1),) if task.step > 0 else ()
        if task.lane.kind is LaneKind.CPU:
            writes = (self._cache(task, task.step), self.access("attention on host", task))
            return Accesses((self.access("qkv on host", task), *cached), writes)
        qkv, out = self.access("qkv", task), self.access("attention", task)
        if not self.shape.streams_kv:
            return Accesses((qkv, *cached), (out, self._cache(task, task.step)))
        new, kept = self.access("new kv", task), self._cache(task, task.step, "resident kv")
        if self.shape.attention is Place.CPU:
            return self._attn_beside_others(task, new, kept)
        if not cached:
            return Accesses((qkv,), (out, new, kept))
        read = (self.access("kv on device", task), self._cache(task, task.step - 1, "resident kv"))
        return Accesses((qkv, *read), (out, new, kept, self.access("joined kv", task)))

    def _attn_beside_others(self, task: Task, new: Access, kept: Access) -> Accesses:
        """On the device where decode attends on the CPU: all of prefill, and micro-batches whose KV cache stays."""
        there = ~self._kv_on_host[task.micro_batch]
        before = self._cache(task, task.step - 1, "resident kv")._replace(when=there & (task.step > 0))
        writes = (self.access("attention", task), new._replace(when=~there), kept._replace(when=there))
        return Accesses((self.access("qkv", task), before), writes)
