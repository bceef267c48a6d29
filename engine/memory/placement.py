"""Puts a model on a device: what stays there is moved, what streams gets its blocks and slots. Undone on exit."""

import contextlib
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.device import Device
from engine.host import can_run_on_host
from engine.memory.caches import LastUsedExperts
from engine.memory.host_weights import KEPT, HostWeights
from engine.memory.layers import HostPiece, StreamedLayer
from engine.memory.packed import PackedLayer, packed_on_device, unpacked_room
from engine.memory.weights import WeightStream
from engine.model import (
    Anatomy,
    ExpertPart,
    LayerCache,
    OwnedParameter,
    PlacedExperts,
    cache_for,
    can_split,
    expert_rows,
)
from sim.problem import Policy, Split, splits_of, weight_bits_text
from sim.schedule import ExpertPlace, MemoryPart, Place, Schedule, SlotLayout
from traces.errors import InputError


def streamed_layers(
    model: PreTrainedModel,
    anatomy: Anatomy,
    policy: Policy,
    schedule: Schedule,
    packed: Sequence[PackedLayer | None],
    orders: Sequence[Sequence[int]],
) -> list[StreamedLayer | None]:
    """What of each layer lives on the host, by the policy's placement of experts; `orders` has them by rank."""
    system = schedule.system
    splits = splits_of(policy, system, anatomy.expert_counts)
    layers: list[StreamedLayer | None] = []
    for i, (experts, split) in enumerate(zip(anatomy.experts, splits, strict=True)):
        if split.layer_on_host:
            _check_host_layer(model, i, policy)
            layers.append(None)  # it stays where it is
            continue
        _check_split(model, anatomy, i, split, policy, schedule)
        rest = anatomy.parameters(i) if system.streams_non_experts or policy.stream_non_experts else ()
        rest = tuple(p for p in rest if not any(p.tensor is e.tensor for e in experts))
        places = (ExpertPlace.STREAMED, ExpertPlace.FETCHED, ExpertPlace.HOST)
        streamed, fetched, on_host = ([*_pieces(experts, split, place, packed[i], orders[i])] for place in places)
        layer = StreamedLayer.of(
            (*streamed, *map(HostPiece.of, rest)),
            fetched,
            on_host,
            [*_pieces(experts, split, KEPT, packed[i], orders[i])] if system.caches_experts and split.fetched else (),
            prefill_on_host=policy.prefills_on(system) is Place.CPU,
        )
        layers.append(layer if layer.pieces else None)
    return layers


def _pieces(
    experts: Sequence[OwnedParameter],
    split: Split,
    place: ExpertPlace,
    packed: PackedLayer | None,
    order: Sequence[int],
) -> Iterator[HostPiece]:
    """Of a layer's experts those in one place, a piece of each parameter."""
    first, stop = split.ranks(place)
    if first == stop:
        return
    every = place is not KEPT and split.places == place
    numbers = sorted(order[first:stop])
    formats = packed.formats if packed else [None] * len(experts)
    for parameter, form in zip(experts, formats, strict=True):
        yield HostPiece.of(parameter, place, None if every else numbers, form)


def _check_split(
    model: PreTrainedModel, anatomy: Anatomy, layer: int, split: Split, policy: Policy, schedule: Schedule
) -> None:
    experts, kind = anatomy.experts[layer], type(model).__name__
    apart = schedule.system.splits_experts
    if not experts or not (apart or split.places.bit_count() > 1):
        return
    if not can_split(experts, anatomy.num_experts):
        if apart:
            raise InputError(
                f"schedule {schedule.name}: the experts of {kind} cannot be computed apart from their layers; give "
                f"another schedule, such as cgopipe"
            )
        raise InputError(
            f"experts_on_device: {policy.experts_on_device:g}: the experts of {kind} cannot be split "
            f"between device and host; give 0 or 1"
        )
    if split.on_host and not can_run_on_host(experts[0].owner):
        raise InputError(f"schedule {schedule.name}: the host cannot compute the experts of {kind}; place none there")


def _check_host_layer(model: PreTrainedModel, layer: int, policy: Policy) -> None:
    if policy.weight_bits is not None:
        given = weight_bits_text(policy.weight_bits)
        raise InputError(f"weight_bits: {given}: layers on the host run as the model has them: leave it out")
    layers = cache_for(model).layers
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    recurrent = layer < len(kinds) and kinds[layer] == "linear_attention"
    if recurrent or (layer < len(layers) and not isinstance(layers[layer], LayerCache)):
        raise InputError(
            f"layers_on_host: {list(policy.layers_on_host or ())}: layer {layer} of {type(model).__name__} keeps a "
            f"state that is no KV cache; give layers without such a state"
        )


@contextlib.contextmanager
def placed(
    model: PreTrainedModel,
    anatomy: Anatomy,
    device: Device,
    host: HostWeights,
    layout: SlotLayout,
    packed: Sequence[PackedLayer | None] = (),
    keep_model: bool = True,
) -> Iterator[WeightStream]:
    """While entered, resident weights are on the device and streamed ones come through the slots of what it yields.

    A weight is in one place at a time: a device with a memory of its own takes it over from the host. Without
    `keep_model` packed experts are not unpacked at the end.
    """
    with contextlib.ExitStack() as at_end:
        weights = at_end.enter_context(contextlib.closing(WeightStream(device, host, layout)))
        packed_parameters = {id(one.tensor) for layer in packed if layer for one in layer.parameters}
        on_host = {identity for layer in host.streamed if layer for identity in layer.parameters}
        stay = range(*layout.shape.layers_on_host)
        _place_resident(model, device, packed_parameters | on_host | anatomy.tensors(stay), at_end)
        at_end.enter_context(host.holding(anatomy.parameters(i) for i in stay))
        at_end.callback(host.close)
        num_micro_batches = layout.shape.num_micro_batches
        room = at_end.enter_context(unpacked_room(packed, device, num_micro_batches))
        for i, experts in enumerate(anatomy.experts):
            narrow = packed[i] if packed else None
            placed: PlacedExperts | None = None
            if narrow:
                numbers = _on_device(i, anatomy.num_experts, host)
                packing = packed_on_device(narrow, numbers, room, device, host, num_micro_batches, keep_model)
                placed = at_end.enter_context(packing)
            elif experts and i not in stay and (layout.shape.experts or _in_parts(host.streamed[i])):
                placed = _placed_experts(i, experts, anatomy.num_experts, device, host, at_end)
            if placed:
                weights.experts[i] = placed
                kept = host.numbers(i, KEPT)
                if kept and placed.resident:
                    tensors = {
                        name: tensor for name, tensor in placed.resident.parameters.items() if tensor is not None
                    }
                    weights.caches[i] = LastUsedExperts(tensors, kept)
        host.take()
        for i, layer in enumerate(host.streamed):
            if _in_parts(layer) or (packed and packed[i]):
                at_end.enter_context(weights.experts[i].in_place())
        yield weights


def _in_parts(layer: StreamedLayer | None) -> bool:
    """Whether the experts of a layer are in several places."""
    return layer is not None and any(piece.experts is not None for piece in layer.pieces)


def _on_device(index: int, num_experts: int, host: HostWeights) -> list[int]:
    """The experts of a layer that do not live on the host."""
    layer = host.streamed[index]
    pieces = [piece for piece in layer.pieces if piece.place not in (None, KEPT)] if layer else []
    elsewhere = {number for piece in pieces for number in piece.experts or range(num_experts)}
    return [number for number in range(num_experts) if number not in elsewhere]


def _placed_experts(
    index: int,
    experts: Sequence[OwnedParameter],
    num_experts: int,
    device: Device,
    host: HostWeights,
    at_end: contextlib.ExitStack,
) -> PlacedExperts:
    """The experts of a layer, those that do not live on the host in the device's memory."""
    module, layer = experts[0].owner, host.streamed[index]
    numbers = _on_device(index, num_experts, host)
    rows = expert_rows(numbers, num_experts).to(device.torch_device)
    if len(numbers) == num_experts:
        tensors = {one.name: module._parameters[one.name] for one in experts}
        return PlacedExperts(module, num_experts, ExpertPart(tensors, rows))
    on_device: dict[str, torch.Tensor] = {}
    if _in_parts(layer):
        at_end.callback(host.put_together, index, on_device, numbers)
    for parameter in experts if numbers else ():
        source = parameter.tensor.detach()
        shape = (len(numbers), *source.shape[1:])
        there = device.allocate(f"{MemoryPart.RESIDENT_EXPERTS} of layer {index}", shape, source.dtype)
        on_device[parameter.name] = there
        at_end.callback(device.free, there)
        together = numbers[-1] - numbers[0] == len(numbers) - 1
        there.copy_(source[numbers[0] : numbers[-1] + 1] if together else source[numbers])
    return PlacedExperts(module, num_experts, ExpertPart.of(on_device, rows) if numbers else None)


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
