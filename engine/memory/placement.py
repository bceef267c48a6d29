"""Puts a model on a device: what stays there is placed, what streams gets its slots. Undone on exit."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.device import Device
from engine.memory.weights import StreamedLayer, WeightStream
from engine.model import Anatomy, OwnedParameter, can_split, split_experts
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


@contextlib.contextmanager
def placed(
    model: PreTrainedModel, device: Device, streamed: list[StreamedLayer | None], layout: SlotLayout
) -> Iterator[WeightStream]:
    """While entered, resident weights are on the device and streamed ones come through the slots of what it yields."""
    held: dict[int, torch.Tensor] = {}

    def free() -> None:
        for tensor in {one.untyped_storage().data_ptr(): one for one in held.values()}.values():
            device.free(tensor)

    def place(path: str, table: dict[str, torch.Tensor | None], name: str, tensor: torch.Tensor) -> None:
        if id(tensor) not in held:  # tied parameters are one object
            held[id(tensor)] = device.place(f"{path}.{name}", tensor.detach())
        there = held[id(tensor)]
        if there.data_ptr() != tensor.data_ptr() or there.device != tensor.device:
            at_end.callback(table.update, {name: tensor})
            table[name] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there

    def resident_part(parameter: OwnedParameter, count: int, layer: int) -> nn.Parameter:
        host = parameter.tensor.detach()[:count]
        on_device = device.allocate(f"resident experts of layer {layer}", host.shape, host.dtype)
        held[id(on_device)] = on_device.copy_(host)
        return nn.Parameter(on_device, requires_grad=False)

    with contextlib.ExitStack() as at_end:
        at_end.callback(free)
        weights = at_end.enter_context(contextlib.closing(WeightStream(device, streamed, layout)))
        streams = {id(parameter.tensor) for layer in streamed if layer for parameter in layer.parameters}
        for path, module in model.named_modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and tensor.numel() and id(tensor) not in streams:
                        place(path, table, name, tensor)
        for i, layer in enumerate(streamed):
            if layer and layer.first_expert:
                resident = {p.name: resident_part(p, layer.first_expert, i) for p in layer.parameters}
                at_end.enter_context(split_experts(layer.parameters[0].owner, resident))
        yield weights
