"""Weights that stream: host memory → (pinned staging →) a layer-sized slot on the device, page by page.

A layer's streamed parameters lie in a slot one behind the other; each parameter of the model is a view of the slot that
holds its layer's current run (`bind`). Copies read the model's own host tensors: nothing is flattened or kept twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from engine.device import Device, LaneContext, aligned_bytes
from engine.model import OwnedParameter
from sim.schedule import WHOLE, SlotLayout, Task

WEIGHTS = "weights"
"""The part of page-locked memory that weights are staged in."""


class Segment(NamedTuple):
    """Bytes of one host tensor and where they go in a slot."""

    start: int
    source: torch.Tensor  # flat bytes

    @property
    def stop(self) -> int:
        return self.start + self.source.numel()


@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """The streamed parameters of one layer and their places in a slot.

    `first_expert` of each fused parameter is the first expert that streams: those before it stay on the device.
    """

    parameters: tuple[OwnedParameter, ...]
    first_expert: int
    segments: tuple[Segment, ...]
    num_bytes: int

    @staticmethod
    def of(parameters: Iterable[OwnedParameter], first_expert: int = 0) -> "StreamedLayer":
        parameters = tuple(parameters)
        segments: list[Segment] = []
        end = 0
        for parameter in parameters:
            source = parameter.tensor.detach()[first_expert:] if first_expert else parameter.tensor.detach()
            segments.append(Segment(end, source.contiguous().view(-1).view(torch.uint8)))
            end = aligned_bytes(segments[-1].stop)
        return StreamedLayer(parameters, first_expert, tuple(segments), end)

    def views(self, slot: torch.Tensor) -> list[nn.Parameter]:
        """The parameters as views of a slot."""
        return [
            nn.Parameter(
                slot[segment.start : segment.stop]
                .view(parameter.tensor.dtype)
                .view(parameter.tensor.shape[0] - self.first_expert, *parameter.tensor.shape[1:]),
                requires_grad=False,
            )
            for parameter, segment in zip(self.parameters, self.segments, strict=True)
        ]

    def page(self, page: int, num_pages: int) -> tuple[int, int]:
        """The bytes [start, stop) of a slot that a page fills."""
        if page == WHOLE:
            return 0, self.num_bytes
        cut = [min(aligned_bytes(self.num_bytes * p // num_pages), self.num_bytes) for p in (page, page + 1)]
        return cut[0], cut[1]

    def fill(self, target: torch.Tensor, start: int, stop: int) -> None:
        """Copies [start, stop) of the slot from the model's host memory."""
        for piece in self.pieces(start, stop):
            target[piece.start : piece.stop].copy_(piece.source)

    def pieces(self, start: int, stop: int) -> Iterator[Segment]:
        """The host bytes that belong into [start, stop)."""
        for segment in self.segments:
            first, last = max(start, segment.start), min(stop, segment.stop)
            if first < last:
                yield Segment(first, segment.source[first - segment.start : last - segment.start])


class WeightStream:
    """Slots, staging, and the table of which run of which layer each page holds.

    A run is one use of a layer: step x number of layers + layer. `streamed` has an entry per layer, None where all
    of a layer is on the device.
    """

    def __init__(self, device: Device, streamed: Sequence[StreamedLayer | None], layout: SlotLayout) -> None:
        """Takes slots on `device`, and of its pinned memory staging, or room for all layers."""
        self._device = device
        self._layout = layout
        self._layers = streamed
        self._bound: dict[int, int] = {}
        self._slots: list[torch.Tensor] = []
        self._staging: list[torch.Tensor] = []
        self._views: dict[tuple[int, int], list[nn.Parameter]] = {}
        self._in_slot: list[list[int | None]] = []
        self._in_staging: list[list[int | None]] = []
        largest = max((layer.num_bytes for layer in streamed if layer), default=0)
        if largest:
            for slot in range(layout.buffers["weights"].turns):
                self._slots.append(device.allocate(f"weight slot {slot}", (largest,), torch.uint8))
            for turn in range(_staging_slots(layout)):
                self._staging.append(device.pinned_empty(f"weight staging {turn}", (largest,), torch.uint8, WEIGHTS))
        stay = layout.shape.weights_pinned
        self._pinned = [self._pin_layer(layer, i) if stay and layer else None for i, layer in enumerate(streamed)]

    @staticmethod
    def pinned_bytes(streamed: Sequence[StreamedLayer | None], layout: SlotLayout) -> int:
        """Page-locked memory that a stream takes."""
        sizes = [aligned_bytes(layer.num_bytes) for layer in streamed if layer]
        return sum(sizes) if layout.shape.weights_pinned else _staging_slots(layout) * max(sizes, default=0)

    def begin_batch(self, layout: SlotLayout) -> None:
        """Forgets what the slots hold. Slots are now given, and layers cut into pages, as this layout says."""
        self._layout = layout
        self._in_slot = [[None] * layout.shape.num_pages for _ in self._slots]
        self._in_staging = [[None] * layout.shape.num_pages for _ in self._staging]

    def pin(self, task: Task) -> int:
        """Copies a page from the model's host memory into staging. Returns its bytes."""
        at = self._layout.slot_of("pinned", task)
        start, stop = self._bounds(task)
        self._layer(task).fill(self._staging[at], start, stop)
        self._note(self._in_staging[at], task)
        return stop - start

    def load(self, lane: LaneContext, task: Task) -> int:
        """Copies a page from page-locked memory (staging, or all weights) into the layer's slot. Returns its bytes."""
        at = self._layout.slot_of("weights", task)
        pinned = self._pinned[task.layer]
        if pinned is None:
            staged = self._layout.slot_of("pinned", task)
            pinned = self._staging[staged]
            self._check(self._in_staging[staged], task, "staging")
        start, stop = self._bounds(task)
        if start < stop:
            lane.copy_h2d(self._slots[at][start:stop], pinned[start:stop], pinned=True)
        self._note(self._in_slot[at], task)
        return stop - start

    def load_pageable(self, lane: LaneContext, task: Task) -> int:
        """Copies a page from the model's host memory straight into the layer's slot. Returns its bytes."""
        at = self._layout.slot_of("weights", task)
        start, stop = self._bounds(task)
        for piece in self._layer(task).pieces(start, stop):
            lane.copy_h2d(self._slots[at][piece.start : piece.stop], piece.source, pinned=False)
        self._note(self._in_slot[at], task)
        return stop - start

    def bind(self, task: Task) -> None:
        """Makes the model's parameters of the task's layer views of the slot that holds it, all pages of it."""
        index, slot = task.layer, self._layout.slot_of("weights", task)
        self._check(self._in_slot[slot], task._replace(page=WHOLE), "the device")
        if self._bound.get(index) == slot:
            return
        layer = self._layer(task)
        if (index, slot) not in self._views:
            self._views[index, slot] = layer.views(self._slots[slot])
        for parameter, view in zip(layer.parameters, self._views[index, slot], strict=True):
            parameter.owner._parameters[parameter.name] = view
        self._bound[index] = slot

    def close(self) -> None:
        """Gives the model its own parameters back, and the slots to the device."""
        for layer in filter(None, self._layers):
            for parameter in layer.parameters:
                parameter.owner._parameters[parameter.name] = parameter.tensor  # type: ignore[assignment]
        self._bound.clear()
        self._views.clear()
        for slot in self._slots:
            self._device.free(slot)
        self._slots.clear()
        self._staging.clear()
        self._pinned.clear()

    def _pin_layer(self, layer: StreamedLayer, index: int) -> torch.Tensor:
        pinned = self._device.pinned_empty(f"weights of layer {index}", (layer.num_bytes,), torch.uint8, WEIGHTS)
        layer.fill(pinned, 0, layer.num_bytes)
        return pinned

    def _layer(self, task: Task) -> StreamedLayer:
        layer = self._layers[task.layer]
        assert layer is not None, "a schedule moves only layers that stream"
        return layer

    def _bounds(self, task: Task) -> tuple[int, int]:
        return self._layer(task).page(task.page, self._layout.shape.num_pages)

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


def _staging_slots(layout: SlotLayout) -> int:
    return 0 if layout.shape.weights_pinned else layout.buffers["pinned"].turns
