"""Streamed weights in host memory: the model's own parameters, of each layer in one piece, the first bytes page-locked.

There is one copy of the weights: a parameter is moved into its layer's block, and its old memory is free before the
next one moves. At the end the parameters stay where they are, in what is ordinary memory then. Experts that are packed
have nothing but their packed bytes here.
"""

import mmap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from engine.device import Device, Ledger, return_freed_memory
from engine.memory.copying import HostCopy
from engine.memory.layers import StreamedLayer
from engine.model import OwnedParameter
from sim.schedule import MemoryPart

NAME = MemoryPart.STREAMED_WEIGHTS


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
        """Takes nothing yet: `take` does."""
        self.streamed = layers
        self._device = device
        self._host = host
        self._locked_bytes = locked_bytes
        self._layers: dict[int, HostLayer] = {}
        self._packed: dict[int, torch.Tensor] = {}  # bytes of layers whose experts the model has no longer
        self.staging_bytes = max((one.num_bytes - locked_bytes(one.num_bytes) for one in layers if one), default=0)
        """What lies behind the page-locked bytes in the layer where that is most."""

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
                        if layer.is_packed:
                            self._packed[index] = content
                        _move(layer, content, copy)
                    taken.add(content.data_ptr())
                    self._layers[index] = self._locked(content)

    def packed(self, index: int) -> dict[str, torch.Tensor]:
        """The packed experts of a layer that stream, by the name of their parameter; none before they are taken."""
        layer, content = self.streamed[index], self._packed.get(index)
        if layer is None or content is None:
            return {}
        parts = zip(layer.parameters, layer.formats, layer.views(content), strict=True)
        return {parameter.name: view for parameter, form, view in parts if form is not None}

    def give_back(self, index: int) -> None:
        """Leaves a layer's bytes to whoever uses them, no longer page-locked and no longer counted."""
        self._packed.pop(index, None)
        if index in self._layers:
            content, locked_bytes = self._layers.pop(index)
            self._device.unlock(NAME, content[:locked_bytes])
            self._host.refund(NAME, content.numel() - locked_bytes)

    def close(self) -> None:
        """Leaves the parameters where they are."""
        for index in list(self._layers):
            self.give_back(index)

    def _locked(self, content: torch.Tensor) -> HostLayer:
        layer = HostLayer(content, self._locked_bytes(content.numel()))
        self._device.lock(NAME, content[: layer.locked_bytes])
        self._host.charge(NAME, layer.staged_bytes)
        return layer


def _in_one_piece(layer: StreamedLayer) -> torch.Tensor | None:
    """The bytes of a layer whose parameters lie as they should, since an earlier run; others may lie behind them."""
    storage = layer.parameters[0].tensor.untyped_storage()
    first = storage.data_ptr()
    if layer.is_packed or layer.first_expert or storage.nbytes() < layer.num_bytes or first % mmap.PAGESIZE:
        return None
    for parameter, start in zip(layer.parameters, layer.starts, strict=True):
        if parameter.tensor.data_ptr() != first + start or not parameter.tensor.is_contiguous():
            return None
    return torch.empty(0, dtype=torch.uint8).set_(storage)[: layer.num_bytes]


def _move(layer: StreamedLayer, content: torch.Tensor, copy: HostCopy) -> None:
    """Moves a layer's parameters into these bytes; of split ones, what streams. What is packed, the model lets go."""
    places = zip(layer.parameters, layer.formats, layer.views(content), strict=True)
    for parameter, form, place in places:
        source = parameter.tensor.detach()[layer.first_expert :]
        if form is None:
            copy(place, source)
            parameter.tensor.data = place
        else:
            form.pack(source, place)
            let_go(parameter)
        del source
    return_freed_memory()


def let_go(parameter: OwnedParameter) -> None:
    """Leaves a parameter without content."""
    parameter.tensor.data = torch.empty(0, dtype=parameter.tensor.dtype)
