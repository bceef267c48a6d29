"""Puts a model on a device: what stays there is placed, what streams gets its slots. Undone on exit."""

from types import TracebackType
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.device import Device
from engine.memory.weights import StreamedLayer, WeightStream
from engine.model import Anatomy, OwnedParameter, SplitExperts, can_split
from sim.schedule import SlotLayout
from traces.errors import InputError


def streamed_layers(
    model: PreTrainedModel, anatomy: Anatomy, experts_on_device: float, streams_non_experts: bool
) -> list[StreamedLayer | None]:
    """What streams of each layer when int(E x experts_on_device) of its E routed experts stay on the device."""
    resident = int(anatomy.num_experts * experts_on_device + 1e-9)
    layers: list[StreamedLayer | None] = []
    for i, experts in enumerate(anatomy.experts):
        rest = anatomy.parameters(i) if streams_non_experts else ()
        rest = tuple(p for p in rest if not any(p.tensor is e.tensor for e in experts))
        stays = bool(experts) and resident == anatomy.num_experts
        if 0 < resident < anatomy.num_experts and experts and not can_split(experts, anatomy.num_experts):
            raise InputError(
                f"experts_on_device: {experts_on_device:g}: the experts of {type(model).__name__} cannot be split "
                f"between device and host; give 0 or 1"
            )
        parameters = rest if stays else (*experts, *rest)
        layers.append(StreamedLayer.of(parameters, 0 if rest else resident) if parameters else None)
    return layers


class Placement:
    """A model whose resident weights are on a device and whose streamed weights come through slots."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: Device,
        streamed: list[StreamedLayer | None],
        layout: SlotLayout,
    ) -> None:
        self._model = model
        self._device = device
        self._streamed = streamed
        self._layout = layout
        self._originals: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]] = []
        self._placed: dict[int, torch.Tensor] = {}
        self._splits: list[SplitExperts] = []

    @property
    def owners(self) -> list[nn.Module]:
        """The modules that own streamed weights."""
        return [parameter.owner for layer in self._streamed if layer for parameter in layer.parameters]

    def __enter__(self) -> Self:
        try:
            self.weights = WeightStream(self._device, self._streamed, self._layout)
            self._place_resident()
            self._split_experts()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for split in self._splits:
            split.close()
        self._splits.clear()
        if hasattr(self, "weights"):
            self.weights.close()
        for table, name, tensor in self._originals:
            table[name] = tensor
        self._originals.clear()
        for tensor in {t.untyped_storage().data_ptr(): t for t in self._placed.values()}.values():
            self._device.free(tensor)
        self._placed.clear()

    def _place_resident(self) -> None:
        streams = {id(parameter.tensor) for layer in self._streamed if layer for parameter in layer.parameters}
        for path, module in self._model.named_modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and id(tensor) not in streams:
                        self._place(table, name, tensor, f"{path}.{name}")

    def _place(self, table: dict[str, torch.Tensor | None], name: str, tensor: torch.Tensor, path: str) -> None:
        if tensor.numel() == 0:
            return
        if id(tensor) not in self._placed:  # tied parameters are one object
            self._placed[id(tensor)] = self._device.place(path, tensor.detach())
        placed = self._placed[id(tensor)]
        if placed.data_ptr() == tensor.data_ptr() and placed.device == tensor.device:
            return
        self._originals.append((table, name, tensor))
        table[name] = nn.Parameter(placed, requires_grad=False) if isinstance(tensor, nn.Parameter) else placed

    def _split_experts(self) -> None:
        for i, layer in enumerate(self._streamed):
            if layer is None or not layer.first_expert:
                continue
            resident = {p.name: self._resident_part(p, layer.first_expert, i) for p in layer.parameters}
            self._splits.append(SplitExperts(layer.parameters[0].owner, resident))

    def _resident_part(self, parameter: OwnedParameter, count: int, layer: int) -> nn.Parameter:
        host = parameter.tensor.detach()[:count]
        on_device = self._device.allocate(f"resident experts of layer {layer}", host.shape, host.dtype)
        on_device.copy_(host)
        self._placed[id(on_device)] = on_device
        return nn.Parameter(on_device, requires_grad=False)
