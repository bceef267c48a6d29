"""Routed experts that a run stores in 4 or 8 bits: packed at its start, unpacked on the device, whole again at its end.

While a layer's experts are packed both kinds of them are there, of that layer only.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.device import Device, return_freed_memory
from engine.memory.host_weights import HostWeights, let_go
from engine.memory.weights import WeightStream
from engine.model import (
    GROUP,
    NUMBER_BITS,
    Anatomy,
    OwnedParameter,
    PackedExperts,
    PackedFormat,
    UnpackedRoom,
    can_split,
)
from sim.problem import Split, unpacked_at_once, unpacked_experts
from sim.schedule import MemoryPart
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """The routed experts of a layer and how they are packed. The first `num_resident` stay on the device."""

    index: int
    parameters: tuple[OwnedParameter, ...]
    formats: tuple[PackedFormat, ...]
    num_resident: int
    num_experts: int

    @property
    def formats_by_name(self) -> dict[str, PackedFormat]:
        return {parameter.name: form for parameter, form in zip(self.parameters, self.formats, strict=True)}

    @property
    def unpacked_bytes(self) -> int:
        """One expert, as wide as it is computed."""
        return sum(form.unpacked_bytes for form in self.formats)

    @property
    def owner(self) -> nn.Module:
        return self.parameters[0].owner


def _check_width(weight_bits: float | None, model: PreTrainedModel) -> None:
    own = 8 * model.dtype.itemsize
    if weight_bits is not None and weight_bits not in (*NUMBER_BITS, own):
        packed = ", ".join(f"{bits:g}" for bits in NUMBER_BITS)
        raise InputError(
            f"weight_bits: {weight_bits:g}: the engine runs {packed} or the model's own {own}: give one of these"
        )


def check_packing(model: PreTrainedModel, weight_bits: float | None) -> None:
    """Raises InputError for a width that the engine does not run, and for experts that it cannot pack."""
    anatomy = Anatomy.of(model)
    packed_layers(model, anatomy, weight_bits, [Split()] * len(anatomy.layers))


def packed_layers(
    model: PreTrainedModel, anatomy: Anatomy, weight_bits: float | None, splits: Sequence[Split]
) -> list[PackedLayer | None]:
    """Per layer, what is packed. Raises InputError for experts that cannot be."""
    _check_width(weight_bits, model)
    bits = NUMBER_BITS.get(weight_bits or 0.0)
    if bits is None:
        return [None] * len(anatomy.layers)
    found = list[PackedLayer | None]()
    for i, (experts, split) in enumerate(zip(anatomy.experts, splits, strict=True)):
        if experts and not can_split(experts, anatomy.num_experts):
            kind = type(model).__name__
            raise InputError(f"weight_bits: {weight_bits:g}: the experts of {kind} cannot be packed: leave it out")
        formats = tuple(_format(one, bits) for one in experts)
        found.append(PackedLayer(i, experts, formats, split.resident, anatomy.num_experts) if experts else None)
    tensors = [one.tensor for layer in found if layer for one in layer.parameters]
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        kind = type(model).__name__
        raise InputError(f"weight_bits: {weight_bits:g}: layers of {kind} share their experts: leave it out")
    return found


def _format(parameter: OwnedParameter, bits: int) -> PackedFormat:
    input_first = bool(parameter.owner.is_transposed)
    form = PackedFormat(bits, tuple(parameter.tensor.shape[1:]), parameter.tensor.dtype, input_first)
    if form.input_size % GROUP:
        raise InputError(
            f"weight_bits: {parameter.name} of {type(parameter.owner).__name__} has an input of {form.input_size}, "
            f"which is no multiple of {GROUP}, the weights that share a scale: leave weight_bits out"
        )
    return form


def room_bytes(layers: Sequence[PackedLayer | None], num_micro_batches: int) -> int:
    """What unpacked experts take of the device: of the layer that needs most."""
    return max(
        (
            unpacked_experts(one.num_experts, num_micro_batches, one.unpacked_bytes) * one.unpacked_bytes
            for one in layers
            if one
        ),
        default=0,
    )


@contextlib.contextmanager
def packed_on_device(
    layers: Sequence[PackedLayer | None],
    device: Device,
    host: HostWeights,
    weights: WeightStream,
    num_micro_batches: int,
    keep_model: bool,
) -> Iterator[None]:
    """While entered, packed experts are where they belong, and are unpacked where they are computed.

    Those that stay on the device are packed at once, the others when `host` takes them. At the end `keep_model` gives
    the model what the packed experts say, layer by layer as their packed bytes go.
    """
    with contextlib.ExitStack() as at_end:
        memory = device.allocate(MemoryPart.UNPACKED_EXPERTS, (room_bytes(layers, num_micro_batches),), torch.uint8)
        at_end.callback(device.free, memory)
        room = UnpackedRoom(memory)
        for layer in filter(None, layers):
            resident = _room_of_resident(layer, device, at_end) if layer.num_resident else {}
            if keep_model:
                at_end.callback(_unpack_whole, layer, resident, host, device)
            _pack_resident(layer, resident)
            experts = PackedExperts(
                layer=layer.index,
                module=layer.owner,
                formats=layer.formats_by_name,
                num_experts=layer.num_experts,
                resident=resident,
                streamed=functools.partial(weights.packed, layer.index),
                room=room,
                in_room=unpacked_experts(layer.num_experts, num_micro_batches, layer.unpacked_bytes),
                at_once=unpacked_at_once(layer.num_experts, layer.unpacked_bytes),
            )
            at_end.enter_context(experts.computing())
        yield


def _room_of_resident(layer: PackedLayer, device: Device, at_end: contextlib.ExitStack) -> dict[str, torch.Tensor]:
    room = {}
    for name, form in layer.formats_by_name.items():
        part = f"{MemoryPart.RESIDENT_EXPERTS} of layer {layer.index}"
        room[name] = device.allocate(part, (layer.num_resident, form.num_bytes), torch.uint8)
        at_end.callback(device.free, room[name])
    return room


def _pack_resident(layer: PackedLayer, resident: dict[str, torch.Tensor]) -> None:
    """Packs what stays on the device, where all of a layer does in place of the model's own."""
    for parameter in layer.parameters if resident else ():
        on_device = resident[parameter.name]
        packed = torch.empty_like(on_device, device="cpu")
        layer.formats_by_name[parameter.name].pack(parameter.tensor.detach()[: len(on_device)], packed)
        on_device.copy_(packed)
        if layer.num_resident == layer.num_experts:
            let_go(parameter)
    return_freed_memory()


def _unpack_whole(layer: PackedLayer, resident: dict[str, torch.Tensor], host: HostWeights, device: Device) -> None:
    """Gives a layer's parameters, which were let go, their content again."""
    streamed = host.packed(layer.index)
    for parameter, form in zip(layer.parameters, layer.formats, strict=True):
        if parameter.tensor.numel():
            continue
        content = device.host_block(layer.num_experts * form.unpacked_bytes)
        whole = content.view(form.dtype).view(layer.num_experts, *form.shape)
        parts = [one[parameter.name].to("cpu") for one in (resident, streamed) if parameter.name in one]
        for part, place in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
            form.unpack(part, place)
        parameter.tensor.data = whole
    host.give_back(layer.index)
