"""Weights in host memory: the model's own parameters, of each layer in one piece, the first bytes page-locked.

There is one copy of the weights: a parameter is moved into its layer's block, and its old memory is free before the
next one moves. At the end whole parameters stay where they are, in what is ordinary memory then. Experts that are
packed have nothing but their packed bytes here.
"""

import contextlib
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from engine.device import Device, Ledger, return_freed_memory
from engine.memory.copying import HostCopy
from engine.memory.layers import HostPiece, StreamedLayer
from engine.model import OwnedParameter
from sim.schedule import ExpertPlace, MemoryPart

NAME = MemoryPart.STREAMED_WEIGHTS

KEPT = ExpertPlace.DEVICE
"""The place of experts that are on the device at the start, and of which the host keeps a copy."""


class HostLayer(NamedTuple):
    """A layer's streamed bytes on the host, of which the first are page-locked."""

    content: torch.Tensor
    locked_bytes: int

    @property
    def staged_bytes(self) -> int:
        """What lies behind the page-locked bytes."""
        return self.content.numel() - self.locked_bytes

    def cut(self, start: int, stop: int) -> int:
        """Where of [start, stop) the page-locked bytes end."""
        return min(max(start, self.locked_bytes), stop)


class HostWeights:
    """The blocks of all layers. `locked_bytes` says how many of a layer's bytes are page-locked."""

    def __init__(
        self,
        device: Device,
        host: Ledger,
        layers: Sequence[StreamedLayer | None],
        locked_bytes: Callable[[int], int],
    ) -> None:
        """Takes nothing yet: `take` does. `locked_bytes` is told how many bytes of a layer ever cross the link."""
        self.streamed = layers
        self._device = device
        self._host = host
        self._locked_bytes = locked_bytes
        self._layers: dict[int, HostLayer] = {}
        self._contents: dict[int, torch.Tensor] = {}  # also of a layer that could not be locked

    @contextlib.contextmanager
    def holding(self, layers: Iterable[Sequence[OwnedParameter]]) -> Iterator[None]:
        """While entered, counts layers that run on the host and stay as the model has them."""
        num_bytes = sum(one.tensor.nbytes for layer in layers for one in layer)
        self._host.charge(MemoryPart.NON_EXPERTS, num_bytes)
        try:
            yield
        finally:
            self._host.refund(MemoryPart.NON_EXPERTS, num_bytes)

    def staged_bytes(self, page: int, num_pages: int) -> Iterator[int]:
        """Of a page, in each layer, what of it is not page-locked when it streams in decode."""
        for layer in filter(None, self.streamed):
            start, stop = layer.page(1, page, num_pages)
            yield max(0, stop - max(start, self._locked_bytes(layer.moved_bytes)))

    def __getitem__(self, index: int) -> HostLayer:
        return self._layers[index]

    def take(self) -> None:
        """Moves the parameters into their blocks, layer by layer. Raises PinnedOutOfMemory."""
        taken = set[int]()  # layers that share their parameters have a block each
        with HostCopy(self._device.pin_threads) as copy:
            for index, layer in enumerate(self.streamed):
                if layer is not None:
                    content = _in_one_piece(layer)
                    if content is None or content.data_ptr() in taken:
                        content = self._device.host_block(layer.num_bytes)
                        _move(layer, content, copy)
                    taken.add(content.data_ptr())
                    self._contents[index] = content
                    self._layers[index] = self._locked(content, self._locked_bytes(layer.moved_bytes))

    def experts(self, index: int, place: ExpertPlace) -> tuple[Sequence[int], dict[str, torch.Tensor]]:
        """A layer's experts of one place on the host: their numbers, and rows for these by the name of a parameter."""
        mine = self._pieces(index, place)
        return self.numbers(index, place), {one.parameter.name: one.view(self._contents[index]) for one in mine}

    def numbers(self, index: int, place: ExpertPlace) -> Sequence[int]:
        """Which experts of a layer the host has for one place."""
        mine = self._pieces(index, place)
        return mine[0].experts or range(mine[0].shape[0]) if mine else ()

    def _pieces(self, index: int, place: ExpertPlace) -> list[HostPiece]:
        layer = self.streamed[index]
        return [piece for piece in layer.pieces if piece.place is place] if layer else []

    def put_together(self, index: int, resident: Mapping[str, torch.Tensor], first: Sequence[int]) -> None:
        """Makes the experts of a layer whole again on the host; `resident` are those of the numbers `first`."""
        layer, content = self.streamed[index], self._contents.get(index)
        if layer is None or content is None:
            return  # never moved
        pieces = [piece for piece in layer.pieces if piece.experts is not None]
        kept = any(piece.place is KEPT for piece in pieces)  # what is on the device may be others by now
        for name in dict.fromkeys(piece.parameter.name for piece in pieces):
            mine = [piece for piece in pieces if piece.parameter.name == name]
            parts: list[tuple[Sequence[int], torch.Tensor]] = [
                (piece.experts or (), piece.view(content)) for piece in mine
            ]
            parts += [(first, resident[name])] if name in resident and not kept else []
            count, tensor = sum(len(numbers) for numbers, _ in parts), mine[0].parameter.tensor
            shape = (count, *mine[0].shape[1:])
            whole = self._device.host_block(math.prod(shape) * tensor.itemsize).view(tensor.dtype).view(shape)
            for numbers, part in parts:
                for number, row in zip(numbers, part, strict=True):
                    whole[number].copy_(row)
            tensor.data = whole

    def experts_of_all_places(self, index: int) -> list[tuple[Sequence[int], dict[str, torch.Tensor]]]:
        """A layer's experts on the host, place by place; none before they are taken."""
        if index not in self._contents:
            return []
        return [self.experts(index, place) for place in ExpertPlace if self.numbers(index, place)]

    def give_back(self, index: int) -> None:
        """Leaves a layer's bytes to whoever uses them, no longer page-locked and no longer counted."""
        self._contents.pop(index, None)
        if index in self._layers:
            content, locked_bytes = self._layers.pop(index)
            self._device.unlock(NAME, content[:locked_bytes])
            self._host.refund(NAME, content.numel() - locked_bytes)

    def close(self) -> None:
        """Leaves the parameters where they are."""
        for index in list(self._contents):
            self.give_back(index)

    def _locked(self, content: torch.Tensor, locked_bytes: int) -> HostLayer:
        layer = HostLayer(content, locked_bytes)
        self._device.lock(NAME, content[: layer.locked_bytes])
        self._host.charge(NAME, layer.staged_bytes)
        return layer


def _in_one_piece(layer: StreamedLayer) -> torch.Tensor | None:
    """The bytes of a layer whose parameters lie as they should, since an earlier run; others may lie behind them."""
    storage = layer.pieces[0].parameter.tensor.untyped_storage()
    first = storage.data_ptr()
    if storage.nbytes() < layer.num_bytes or first % mmap.PAGESIZE:
        return None
    for piece in layer.pieces:
        tensor = piece.parameter.tensor
        if piece.form is not None or piece.experts is not None or tensor.data_ptr() != first + piece.start:
            return None
        if not tensor.is_contiguous():
            return None
    return torch.empty(0, dtype=torch.uint8).set_(storage)[: layer.num_bytes]


def _move(layer: StreamedLayer, content: torch.Tensor, copy: HostCopy) -> None:
    """Moves a layer's parameters into these bytes. Of one in pieces the model keeps the first, of a packed one none."""
    for parameter in layer.parameters.values():
        source = parameter.tensor.detach()
        mine = [(piece, piece.view(content)) for piece in layer.pieces if piece.parameter.tensor is parameter.tensor]
        for piece, place in mine:
            for row, start, stop in _runs(piece.experts, len(source)):
                target = place[row : row + stop - start]
                if piece.form is None:
                    copy(target, source[start:stop])
                else:
                    piece.form.pack(source[start:stop], target)
        first, place = mine[0]
        if first.form is None:
            parameter.tensor.data = place
        else:
            let_go(parameter)
        del source
    return_freed_memory()


def let_go(parameter: OwnedParameter) -> None:
    """Leaves a parameter without content."""
    parameter.tensor.data = torch.empty(0, dtype=parameter.tensor.dtype)


def _runs(experts: Sequence[int] | None, count: int) -> Iterator[tuple[int, int, int]]:
    """Rows that lie together in both places: where they begin here, and where they begin and end in the parameter."""
    numbers = list(range(count)) if experts is None else list(experts)
    first = 0
    for row in range(1, len(numbers) + 1):
        if row == len(numbers) or numbers[row] != numbers[row - 1] + 1:
            yield first, numbers[first], numbers[row - 1] + 1
            first = row
