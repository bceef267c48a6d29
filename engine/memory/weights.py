"""Weights that stream: host memory → (page-locked staging →) a layer-sized slot on the device, page by page.

A layer's streamed parameters lie in a slot one behind the other, as they do in host memory; each parameter of the model
is a view of the slot that holds its layer's current run (`bind`). Only what is not page-locked passes through staging.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor, nn, uint8

from engine.device import Device, LaneContext, aligned_bytes
from engine.memory.caches import LastUsedExperts
from engine.memory.copying import HostCopy
from engine.memory.host_weights import KEPT, HostLayer, HostWeights
from engine.memory.layers import StreamedLayer
from engine.model import ExpertPart, OwnedParameter, PlacedExperts, expert_rows
from sim.schedule import WHOLE, ExpertPlace, MemoryPart, SlotLayout, Task


class _Views(NamedTuple):
    """Of a layer in a slot."""

    whole: list[tuple[OwnedParameter, nn.Parameter]]
    parts: tuple[ExpertPart, ...]


STAGING = MemoryPart.STAGING
"""The part of page-locked memory that staging is cut from."""


class WeightStream:
    """Slots, staging, and the table of which run of which layer each page holds.

    A run is one use of a layer: step x number of layers + layer.
    """

    def __init__(self, device: Device, host: HostWeights, layout: SlotLayout) -> None:
        """Takes slots on `device`, and staging of its page-locked part of that name."""
        self._device = device
        self._layout = layout
        self._host = host
        self.experts: dict[int, PlacedExperts] = {}
        """By layer, experts in several parts, packed ones, or such as are computed apart from their layer."""
        self.caches: dict[int, LastUsedExperts] = {}
        """By layer, experts on the device that change places with those that are fetched."""
        self._bound: dict[int, tuple[int, int]] = {}
        self._slots: list[Tensor] = []
        self._staging: list[Tensor] = []
        self._views: dict[tuple[int, int, int], _Views] = {}
        self._in_slot: list[list[int | None]] = []
        self._in_staging: list[list[int | None]] = []
        self._staged_at = [0]
        self._copy = HostCopy(device.pin_threads)
        largest = max((layer.prefill_bytes for layer in host.streamed if layer), default=0)
        try:
            for slot in range(layout.buffers["weights"].turns if largest else 0):
                self._slots.append(device.allocate(f"weight slot {slot}", (largest,), uint8))
            staged = (_staging_bytes(host, layout),)
            for turn in range(_staging_slots(layout) if largest else 0):
                self._staging.append(device.pinned_empty(f"{STAGING} {turn}", staged, uint8, STAGING))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def planned_staging_bytes(host: HostWeights, layout: SlotLayout) -> int:
        """Page-locked memory that staging will take."""
        return _staging_slots(layout) * aligned_bytes(_staging_bytes(host, layout))

    @property
    def staging_bytes(self) -> int:
        """Page-locked memory that staging takes."""
        return sum(slot.numel() for slot in self._staging)

    def begin_batch(self, layout: SlotLayout) -> None:
        """Forgets what the slots hold. Slots are now given, and layers cut into pages, as this layout says."""
        self._layout = layout
        for index, cache in self.caches.items():
            cache.restore(self._host.experts(index, KEPT)[1])
        self._in_slot = [[None] * layout.shape.num_pages for _ in self._slots]
        self._in_staging = [[None] * layout.shape.num_pages for _ in self._staging]
        self._staged_at = _staged_at(self._host, layout.shape.num_pages)

    def pin(self, task: Task) -> int:
        """Copies what of a page is not page-locked into staging. Returns its bytes."""
        at = self._layout.slot_of("pinned", task)
        layer, *_ = self._page(task)
        moved = 0
        for staged, first, last in self._staged(task, at):
            self._copy(staged, layer.content[first:last])
            moved += last - first
        self._note(self._in_staging[at], task)
        return moved

    def load(self, lane: LaneContext, task: Task) -> int:
        """Copies a page from page-locked memory, in place or in staging, into the layer's slot. Returns its bytes."""
        at = self._layout.slot_of("weights", task)
        layer, start, stop = self._page(task)
        cut = layer.cut(start, stop)
        if start < cut:
            lane.copy_h2d(self._slots[at][start:cut], layer.content[start:cut], pinned=True)
        if not self._layout.shape.weights_pinned:
            turn = self._layout.slot_of("pinned", task)
            self._check(self._in_staging[turn], task, "staging")
            for staged, first, last in self._staged(task, turn):
                lane.copy_h2d(self._slots[at][first:last], staged, pinned=True)
        self._note(self._in_slot[at], task)
        return stop - start

    def load_pageable(self, lane: LaneContext, task: Task) -> int:
        """Copies a page straight from the model's host memory into the layer's slot. Returns its bytes."""
        at = self._layout.slot_of("weights", task)
        layer, start, stop = self._page(task)
        cut = layer.cut(start, stop)
        for first, last, pinned in ((start, cut, True), (cut, stop, False)):
            if first < last:
                lane.copy_h2d(self._slots[at][first:last], layer.content[first:last], pinned=pinned)
        self._note(self._in_slot[at], task)
        return stop - start

    def bind(self, task: Task) -> None:
        """Makes the model's parameters of the task's layer views of the slot that holds it, all pages of it."""
        index, slot = task.layer, self._layout.slot_of("weights", task)
        self._check(self._in_slot[slot], task._replace(page=WHOLE), "the device")
        layer = self._host.streamed[index]
        assert layer is not None, "a schedule moves only layers that stream"
        bound = slot, layer.streams_bytes(task.step)
        if self._bound.get(index) == bound:
            return
        if (index, *bound) not in self._views:
            self._views[index, *bound] = self._views_of(layer, index, *bound)
        views = self._views[index, *bound]
        for parameter, view in views.whole:
            parameter.owner._parameters[parameter.name] = view
        if index in self.experts:
            self.experts[index].came = views.parts
        self._bound[index] = bound

    def on_host(self, index: int, place: ExpertPlace) -> tuple[Sequence[int], dict[str, Tensor]]:
        """A layer's experts of one place on the host: their numbers, and rows for these by the name of a parameter."""
        return self._host.experts(index, place)

    def to_fetch(self, index: int) -> list[tuple[Sequence[int], dict[str, Tensor]]]:
        """A layer's experts that may be fetched, those that are on the device at the start in the end."""
        return [self._host.experts(index, place) for place in (ExpertPlace.FETCHED, KEPT)]

    def is_locked(self, index: int, part: Tensor) -> bool:
        """Whether these bytes of a layer on the host are page-locked."""
        layer = self._host[index]
        return part.data_ptr() + part.nbytes <= layer.content.data_ptr() + layer.locked_bytes

    def let_go(self, index: int) -> None:
        """The experts of a layer that came through a slot are of no more use: it runs without them."""
        if index in self.experts:
            self.experts[index].came = ()
        self._bound.pop(index, None)

    def _views_of(self, layer: StreamedLayer, index: int, slot: int, num_bytes: int) -> _Views:
        whole: list[tuple[OwnedParameter, nn.Parameter]] = []
        places: dict[ExpertPlace, tuple[Sequence[int] | None, dict[str, Tensor]]] = {}
        for piece in layer.within(num_bytes):
            view = piece.view(self._slots[slot])
            if piece.experts is None and piece.form is None:
                whole.append((piece.parameter, nn.Parameter(view, requires_grad=False)))
            if piece.place is not None:
                places.setdefault(piece.place, (piece.experts, {}))[1][piece.parameter.name] = view
        came = []
        for experts, tensors in places.values() if index in self.experts else ():
            count = self.experts[index].num_experts
            numbers = range(count) if experts is None else experts
            rows = expert_rows(numbers, count).to(self._device.torch_device)
            came.append(ExpertPart.of(tensors, rows, numbers))
        return _Views(whole, tuple(came))

    def close(self) -> None:
        """Gives the model its own parameters back, and the slots to the device."""
        for layer in filter(None, self._host.streamed):
            for parameter in layer.parameters.values():
                parameter.owner._parameters[parameter.name] = parameter.tensor  # type: ignore[assignment]
        self.experts.clear()
        self.caches.clear()
        self._bound.clear()
        self._views.clear()
        for slot in self._slots:
            self._device.free(slot)
        self._slots.clear()
        self._staging.clear()
        self._copy.close()

    def _page(self, task: Task) -> tuple[HostLayer, int, int]:
        """The task's layer on the host, and the bytes [start, stop) of its page."""
        layer = self._host.streamed[task.layer]
        assert layer is not None, "a schedule moves only layers that stream"
        return self._host[task.layer], *layer.page(task.step, task.page, self._layout.shape.num_pages)

    def _staged(self, task: Task, turn: int) -> Iterator[tuple[Tensor, int, int]]:
        """Of each page of a task what passes through staging: where it lies there, and its bytes [first, last)."""
        for page in _pages(self._in_staging[turn], task):
            layer, start, stop = self._page(task._replace(page=page))
            first = layer.cut(start, stop)
            if first < stop:
                at = self._staged_at[page]
                yield self._staging[turn][at : at + stop - first], first, stop

    def _note(self, table: list[int | None], task: Task) -> None:
        for page in _pages(table, task):
            table[page] = self._layout.run_of_layer(task)

    def _check(self, table: list[int | None], task: Task, where: str) -> None:
        run = self._layout.run_of_layer(task)
        for page in _pages(table, task):
            if table[page] != run:
                raise RuntimeError(
                    f"page {page} of layer {task.layer} is not in {where} when it is used (it holds run "
                    f"{table[page]}, needed is run {run}): the schedule lacks a dependency"
                )


def _pages(table: list[int | None], task: Task) -> range:
    return range(len(table)) if task.page == WHOLE else range(task.page, task.page + 1)


def _staged_at(host: HostWeights, num_pages: int) -> list[int]:
    """Where each page begins in staging, and where the last one ends.

    Layers cut into as many pages have them in different places: those of one number share a room, and no others.
    """
    widths = [max(host.staged_bytes(page, num_pages), default=0) for page in range(num_pages)]
    return list(accumulate(widths, initial=0))


def _staging_bytes(host: HostWeights, layout: SlotLayout) -> int:
    """What staging of a layer takes, for batches of as many micro-batches or fewer."""
    return max(_staged_at(host, pages)[-1] for pages in range(1, layout.shape.num_pages + 1))


def _staging_slots(layout: SlotLayout) -> int:
    return 0 if layout.shape.weights_pinned else layout.buffers["pinned"].turns
