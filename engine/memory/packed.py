"""Routed experts that a run stores in 4 or 8 bits: packed at its start, unpacked on the device, whole again at its end.

While a layer's experts are packed both kinds of them are there, of that layer only.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.device import Device, return_freed_memory
from engine.memory.host_weights import KEPT, HostWeights, let_go
from engine.model import (
    GROUP,
    NUMBER_BITS,
    Anatomy,
    ExpertPart,
    OwnedParameter,
    PackedExperts,
    PackedFormat,
    UnpackedRoom,
    can_split,
    expert_rows,
)
from sim.problem import Split, WeightBits, WidthsApart, are_unpacked, unpacked_at_once, unpacked_experts
from sim.schedule import MemoryPart
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """The routed experts of a layer and how they are packed."""

    index: int
    parameters: tuple[OwnedParameter, ...]
    formats: tuple[PackedFormat, ...]
    num_experts: int
    are_unpacked: bool
    """Whether the device ever computes any of them."""

    @property
    def formats_by_name(self) -> dict[str, PackedFormat]:
        return {parameter.name: form for parameter, form in zip(self.parameters, self.formats, strict=True)}

    @property
    def unpacked_bytes(self) -> int:
        """One expert, as wide as it is computed."""
        return sum(form.unpacked_bytes for form in self.formats)

    def in_room(self, num_micro_batches: int) -> int:
        """How many are there unpacked at a time."""
        count = unpacked_experts(self.num_experts, num_micro_batches, self.unpacked_bytes)
        return count if self.are_unpacked else 0

    @property
    def owner(self) -> nn.Module:
        return self.parameters[0].owner


def _expert_width(weight_bits: WeightBits | None, model: PreTrainedModel) -> float | None:
    """The width of routed experts. Raises InputError for one that the engine does not run, and for others set apart."""
    own = 8 * model.dtype.itemsize
    packed = ", ".join(f"{bits:g}" for bits in NUMBER_BITS)
    runs, given = f"the engine runs {packed} or the model's own {own}", weight_bits
    if isinstance(given, WidthsApart):
        apart = given.to_dict()
        experts = apart.pop("experts", None)
        given = experts if {own}.issuperset(apart.values()) else str(given)
    if isinstance(given, str):
        raise InputError(
            f"weight_bits: {weight_bits}: {runs} of routed experts, and all else as the model has it: give one of these"
        )
    if given is not None and given not in (*NUMBER_BITS, own):
        raise InputError(f"weight_bits: {given:g}: {runs}: give one of these")
    return given


def check_packing(model: PreTrainedModel, weight_bits: WeightBits | None) -> None:
    """Raises InputError for a width that the engine does not run, and for experts that it cannot pack."""
    anatomy = Anatomy.of(model)
    packed_layers(model, anatomy, weight_bits, [Split()] * len(anatomy.layers), prefill_on_host=False)


def packed_layers(
    model: PreTrainedModel,
    anatomy: Anatomy,
    weight_bits: WeightBits | None,
    splits: Sequence[Split],
    *,
    prefill_on_host: bool,
) -> list[PackedLayer | None]:
    """Per layer, what is packed. Raises InputError for experts that cannot be."""
    width = _expert_width(weight_bits, model)
    bits = NUMBER_BITS.get(width or 0.0)
    if bits is None:
        return [None] * len(anatomy.layers)
    found = list[PackedLayer | None]()
    for i, (experts, split) in enumerate(zip(anatomy.experts, splits, strict=True)):
        if experts and not can_split(experts, anatomy.num_experts):
            kind = type(model).__name__
            raise InputError(f"weight_bits: {width:g}: the experts of {kind} cannot be packed: leave it out")
        formats = tuple(_format(one, bits) for one in experts)
        unpacked = are_unpacked(split, prefill_on_host=prefill_on_host)
        found.append(PackedLayer(i, experts, formats, anatomy.num_experts, unpacked) if experts else None)
    tensors = [one.tensor for layer in found if layer for one in layer.parameters]
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        kind = type(model).__name__
        raise InputError(f"weight_bits: {width:g}: layers of {kind} share their experts: leave it out")
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
    return max((one.in_room(num_micro_batches) * one.unpacked_bytes for one in layers if one), default=0)


@contextlib.contextmanager
def unpacked_room(
    layers: Sequence[PackedLayer | None], device: Device, num_micro_batches: int
) -> Iterator[UnpackedRoom]:
    """While entered, the device has room for unpacked experts."""
    num_bytes = room_bytes(layers, num_micro_batches)
    if not num_bytes:
        yield UnpackedRoom(torch.empty(0, dtype=torch.uint8))
        return
    memory = device.allocate(MemoryPart.UNPACKED_EXPERTS, (num_bytes,), torch.uint8)
    try:
        yield UnpackedRoom(memory)
    finally:
        device.free(memory)


@contextlib.contextmanager
def packed_on_device(
    layer: PackedLayer,
    numbers: Sequence[int],
    room: UnpackedRoom,
    device: Device,
    host: HostWeights,
    num_micro_batches: int,
    keep_model: bool,
) -> Iterator[PackedExperts]:
    """While entered, a layer's experts are packed, and those of these numbers are on the device.

    They are packed at once, the others when `host` takes them. At the end `keep_model` gives the model what the packed
    experts say, as the layer's packed bytes go.
    """
    with contextlib.ExitStack() as at_end:
        resident = _room_of_resident(layer, len(numbers), device, at_end) if numbers else {}
        if keep_model:
            at_end.callback(_unpack_whole, layer, numbers, resident, host, device)
        _pack_resident(layer, numbers, resident)
        rows = expert_rows(numbers, layer.num_experts).to(device.torch_device)
        yield PackedExperts(
            layer.owner,
            layer.num_experts,
            ExpertPart.of(resident, rows, numbers) if numbers else None,
            formats=layer.formats_by_name,
            layer=layer.index,
            room=room,
            in_room=layer.in_room(num_micro_batches),
            at_once=unpacked_at_once(layer.num_experts, layer.unpacked_bytes),
        )


def _room_of_resident(
    layer: PackedLayer, count: int, device: Device, at_end: contextlib.ExitStack
) -> dict[str, torch.Tensor]:
    room = {}
    for name, form in layer.formats_by_name.items():
        part = f"{MemoryPart.RESIDENT_EXPERTS} of layer {layer.index}"
        room[name] = device.allocate(part, (count, form.num_bytes), torch.uint8)
        at_end.callback(device.free, room[name])
    return room


def _pack_resident(layer: PackedLayer, numbers: Sequence[int], resident: dict[str, torch.Tensor]) -> None:
    """Packs what stays on the device, where all of a layer does in place of the model's own."""
    for parameter in layer.parameters if resident else ():
        source, form = parameter.tensor.detach(), layer.formats_by_name[parameter.name]
        packed = torch.empty_like(resident[parameter.name], device="cpu")
        for row, number in enumerate(numbers):
            form.pack(source[number : number + 1], packed[row : row + 1])
        resident[parameter.name].copy_(packed)
        del source
        if len(numbers) == layer.num_experts:
            let_go(parameter)
    return_freed_memory()


def _unpack_whole(
    layer: PackedLayer,
    numbers: Sequence[int],
    resident: dict[str, torch.Tensor],
    host: HostWeights,
    device: Device,
) -> None:
    """Gives a layer's parameters, which were let go, their content again."""
    parts = host.experts_of_all_places(layer.index)
    if not host.numbers(layer.index, KEPT):  # else what is on the device may be others by now
        parts.append((numbers, resident))
    for parameter, form in zip(layer.parameters, layer.formats, strict=True):
        if parameter.tensor.numel():
            continue
        content = device.host_block(layer.num_experts * form.unpacked_bytes)
        whole = content.view(form.dtype).view(layer.num_experts, *form.shape)
        for experts, tensors in parts:
            for row, number in enumerate(experts):
                form.unpack(tensors[parameter.name][row : row + 1].to("cpu"), whole[number : number + 1])
        parameter.tensor.data = whole
    host.give_back(layer.index)
