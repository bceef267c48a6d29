"""What tasks read and write where experts are computed apart from the rest of their layers, each in its place.

A micro-batch leaves Route with its hidden state and the experts of each token. Experts of a group of micro-batches are
computed together; what each place makes of them waits until the next PreAttn or Head, which adds it up. What the host
makes of deferred experts waits until that of the next layer with experts.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.schedule.buffers import Buffer, By, Holds, MemoryPart, Tier
from sim.schedule.shape import ExpertPlace, PipelineShape, System
from sim.schedule.slots import Access, Accesses, Column, SlotLayout
from sim.schedule.task import DEFERRED, NONE, Op, Task

ON_DEVICE = ExpertPlace.DEVICE | ExpertPlace.STREAMED | ExpertPlace.FETCHED
"""Places of the experts that DeviceExperts computes."""

ASKED_FOR = ExpertPlace.HOST | ExpertPlace.FETCHED
"""Places of experts of which the host must know whether they are used."""


class ExpertSlots(SlotLayout):
    """The usual slots, and those between a layer's experts and what stands around them."""

    def __init__(self, shape: PipelineShape, system: System) -> None:
        super().__init__(shape, system)
        places = ExpertPlace(int(np.bitwise_or.reduce(shape.experts))) if shape.experts else ExpertPlace(0)
        copied = Tier.PINNED if system.pins_activations else Tier.HOST
        exchange = MemoryPart.EXPERT_EXCHANGE
        on_device, made_there = (Tier.DEVICE if places & some else None for some in (ON_DEVICE | ASKED_FOR, ON_DEVICE))
        asked = copied if places & ASKED_FOR else None
        gives, comes_back = (copied, Tier.DEVICE) if places & ExpertPlace.HOST else (None, None)
        fetched = Tier.DEVICE if places & ExpertPlace.FETCHED else None
        turns = min(2, shape.num_groups)
        self.buffers |= {
            "routed": Buffer(Holds.ROUTED, By.MICRO_BATCH, 1, on_device, exchange),
            "routed on host": Buffer(Holds.ROUTED, By.MICRO_BATCH, 1, asked, exchange),
            "output": Buffer(Holds.DEVICE_OUTPUT, By.MICRO_BATCH, 1, made_there, exchange),
            "output on host": Buffer(Holds.EXPERT_OUTPUT, By.MICRO_BATCH, 1, gives, exchange),
            "output of host": Buffer(Holds.EXPERT_OUTPUT, By.MICRO_BATCH, 1, comes_back, exchange),
            "fetched": Buffer(Holds.FETCHED, By.GROUP, turns, fetched, MemoryPart.FETCHED_EXPERTS),
        }
        if shape.defers_experts:  # the next layer's tokens come while these experts are computed
            self.buffers["next routed on host"] = Buffer(Holds.NEXT_ROUTED, By.MICRO_BATCH, 1, asked, exchange)
            for name in ("output on host", "output of host"):
                self.buffers[f"deferred {name}"] = replace(self.buffers[name], holds=Holds.DEFERRED_OUTPUT)
        if shape.streams_non_experts and places:  # the end of a layer runs when the next one has begun
            self.buffers["weights"] = replace(self.buffers["weights"], turns=3)
        self._by_op |= {
            Op.ROUTE: self._route,
            Op.OFFLOAD_TOKENS: lambda task: Accesses((self._group("routed", task),), self._routed_on_host(task)),
            Op.HOST_EXPERTS: lambda task: Accesses(
                self._routed_on_host(task), self._soon_or_late("output on host", task)
            ),
            Op.LOAD_OUTPUT: lambda task: Accesses(
                self._soon_or_late("output on host", task), self._soon_or_late("output of host", task)
            ),
            Op.FETCH_EXPERTS: self._fetch,
            Op.DEVICE_EXPERTS: self._device_experts,
        }
        self._places = np.array(shape.experts or (0,) * shape.num_layers)
        before = (shape.deferred_to(1, layer) for layer in range(shape.num_layers))
        self._deferred_to = np.array([NONE if layer is None else layer for layer in before])

    @property
    def _group_sizes(self) -> NDArray[np.int64]:
        """Of each micro-batch, how many are in its group."""
        return np.bincount(self.group_of)[self.group_of]

    def _are_in(self, places: ExpertPlace, layer: Column) -> Any:
        """Whether layers have experts in any of these places."""
        return (self._places[layer] & int(places)) != 0

    def _group(self, name: str, task: Task) -> Access:
        """The slots of a group of which the task's micro-batch is the first."""
        one = self.access(name, task)
        length = self._group_sizes[task.micro_batch]
        return one._replace(length=int(length) if isinstance(task.micro_batch, int) else length)

    def _routed_on_host(self, task: Task) -> tuple[Access, ...]:
        """A group's tokens where they wait for experts on the host."""
        usual = self._group("routed on host", task)
        if not self.shape.defers_experts:
            return (usual,)
        side, other = self.shape.side(task.step, task.layer), self._group("next routed on host", task)
        return usual._replace(when=side == 0), other._replace(when=side == 1)

    def _soon_or_late(self, name: str, task: Task) -> tuple[Access, ...]:
        """A group's slots of a buffer, or of the one for what is deferred."""
        soon = self._group(name, task)
        if not self.shape.defers_experts:
            return (soon,)
        late = self._group(f"deferred {name}", task)
        return soon._replace(when=task.page != DEFERRED), late._replace(when=task.page == DEFERRED)

    def _outputs(self, task: Task, layer: Column, when: Column = True) -> tuple[Access, ...]:
        """What the places of a layer's experts made of the task's micro-batch."""
        if not self.shape.splits_experts(task.step):
            return ()
        content = (task.step, layer)
        outputs = (
            self.access("output", task, content, when & self._are_in(ON_DEVICE, layer)),
            self.access("output of host", task, content, when & self._are_in(ExpertPlace.HOST, layer)),
        )
        if not (self.shape.defers_experts and task.step > 0):
            return outputs
        before = self._deferred_to[layer]
        late = self.access("deferred output of host", task, (task.step, before), when & (before != NONE))
        return (*outputs, late)

    def _left(self, task: Task, layer: Column, when: Column = True) -> tuple[Access, ...]:
        """What the end of a layer needs, behind its experts, which the task goes through first."""
        outputs = self._outputs(task, layer, when)
        if not (outputs and self.shape.streams_non_experts):
            return outputs
        weights = self._weights_read(task._replace(layer=layer))
        here = when & self._are_in(ON_DEVICE | ASKED_FOR, layer)
        return (*outputs, weights._replace(when=weights.when & here))

    def _pre_attn(self, task: Task) -> Accesses:
        reads, writes = super()._pre_attn(task)
        return Accesses((*reads, *self._left(task, task.layer - 1, task.layer > 0)), writes)

    def _enter_host(self, task: Task) -> Accesses:
        reads, writes = super()._enter_host(task)
        return Accesses((*reads, *self._left(task, task.layer - 1, task.layer > 0)), writes)

    def _head(self, task: Task) -> Accesses:
        reads, writes = super()._head(task)
        return Accesses((*reads, *self._left(task, self.shape.num_layers - 1)), writes)

    def _route(self, task: Task) -> Accesses:
        reads, writes = self._post_attn(task)
        attention, hidden, weights = reads
        if not self.shape.streams_non_experts:
            weights = weights._replace(when=False)
        return Accesses((attention, hidden, weights), (*writes, self.access("routed", task)))

    def _fetch(self, task: Task) -> Accesses:
        return Accesses(self._routed_on_host(task), (self.access("fetched", task),))

    def _device_experts(self, task: Task) -> Accesses:
        fetched = self.access("fetched", task, when=self._are_in(ExpertPlace.FETCHED, task.layer))
        reads = (self._group("routed", task), self._weights_read(task), fetched)
        return Accesses(reads, (self._group("output", task),))
