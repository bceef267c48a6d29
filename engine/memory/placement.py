"""Puts a model on a device: what stays there is moved, what streams gets its blocks and slots. Undone on exit."""

import contextlib
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.device import Device
from engine.memory.host_weights import HostWeights
from engine.memory.layers import StreamedLayer
from engine.memory.packed import PackedLayer, packed_on_device
from engine.memory.weights import WeightStream
from engine.model import Anatomy, OwnedParameter, can_split, split_experts
from sim.schedule import MemoryPart, SlotLayout
from traces.errors import InputError


def streamed_layers(
    model: PreTrainedModel,
    anatomy: Anatomy,
    experts_on_device: float,
    streams_non_experts: bool,
    packed: Sequence[PackedLayer | None],
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
        layer = packed[i]
        formats = layer.formats if layer and not stays else ()
        layers.append(StreamedLayer.of(parameters, 0 if rest else resident, formats) if parameters else None)
    return layers


@contextlib.contextmanager
def placed(
    model: PreTrainedModel,
    device: Device,
    host: HostWeights,
    layout: SlotLayout,
    packed: Sequence[PackedLayer | None] = (),
) -> Iterator[WeightStream]:
    """While entered, resident weights are on the device and streamed ones come through the slots of what it yields.

    A weight is in one place at a time: a device with a memory of its own takes it over from the host.
    """
    with contextlib.ExitStack() as at_end:
        weights = at_end.enter_context(contextlib.closing(WeightStream(device, host, layout)))
        parameters = [layer.parameters for layer in (*host.streamed, *packed) if layer]
        _place_resident(model, device, {id(one.tensor) for of_layer in parameters for one in of_layer}, at_end)
        split = [_resident_experts(layer, i, device, at_end) for layer, i in _split(host.streamed)]
        at_end.callback(host.close)
        if any(packed):
            num_micro_batches = layout.shape.num_micro_batches
            at_end.enter_context(packed_on_device(packed, device, host, weights, num_micro_batches))
        host.take()
        for owner, resident in split:
            at_end.enter_context(split_experts(owner, resident))
        yield weights


def _place_resident(
    model: PreTrainedModel, device: Device, moved: Collection[int], at_end: contextlib.ExitStack
) -> None:
    """Has the device take over what does not go there otherwise, as the parameters with these identities do."""
    held: dict[int, torch.Tensor] = {}  # tied parameters are one object

    def free() -> None:
        for tensor in {one.data_ptr(): one for one in held.values()}.values():
            device.free(tensor)

    def place(path: str, table: dict[str, torch.Tensor | None], name: str, tensor: torch.Tensor) -> None:
        first = id(tensor) not in held
        if first:
            held[id(tensor)] = device.place(f"{path}.{name}", tensor.detach())
        there = held[id(tensor)]
        if there.data_ptr() == tensor.data_ptr() and there.device == tensor.device:
            return
        at_end.callback(table.update, {name: tensor})
        if not isinstance(tensor, nn.Parameter):
            table[name] = there
            return
        table[name] = nn.Parameter(there, requires_grad=False)
        if first:
            at_end.callback(_bring_back, device, tensor, there)
            tensor.data = torch.empty(0, dtype=tensor.dtype)

    at_end.callback(free)
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) not in moved and (tensor.numel() or id(tensor) in held):
                    place(path, table, name, tensor)


def _bring_back(device: Device, parameter: torch.Tensor, on_device: torch.Tensor) -> None:
    """Gives a parameter its content on the host again, in pages that several threads fault in: one takes long."""
    content = device.host_block(on_device.nbytes).view(on_device.dtype).view(on_device.shape)
    parameter.data = content.copy_(on_device)


def _split(streamed: Sequence[StreamedLayer | None]) -> Iterator[tuple[StreamedLayer, int]]:
    """The layers of which some experts stay on the device as the model has them."""
    layers = ((layer, i) for i, layer in enumerate(streamed) if layer)
    return ((layer, i) for layer, i in layers if layer.first_expert and not layer.is_packed)


def _resident_experts(
    layer: StreamedLayer, index: int, device: Device, at_end: contextlib.ExitStack
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The module of a layer's experts, and its parameters cut down to those that stay on the device."""
    resident = {}
    for parameter in layer.parameters:
        host = parameter.tensor.detach()[: layer.first_expert]
        on_device = device.allocate(f"{MemoryPart.RESIDENT_EXPERTS} of layer {index}", host.shape, host.dtype)
        at_end.callback(device.free, on_device)
        at_end.callback(_make_whole, parameter, parameter.tensor.shape, on_device)
        resident[parameter.name] = nn.Parameter(on_device.copy_(host), requires_grad=False)
    return layer.parameters[0].owner, resident


def _make_whole(parameter: OwnedParameter, shape: torch.Size, resident: torch.Tensor) -> None:
    """Puts the experts of both places together again."""
    streamed = parameter.tensor.detach()
    if streamed.shape != shape:
        parameter.tensor.data = torch.cat([resident.to("cpu"), streamed])
