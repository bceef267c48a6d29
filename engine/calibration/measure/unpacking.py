"""How fast the device unpacks experts that are stored in 4 bits, and how fast the host computes with such."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import torch
from transformers import PreTrainedModel

from engine.calibration.measure.measured import Measured, lane_seconds, repeated
from engine.device import Device
from engine.host import HostExperts, HostThreads, can_run_on_host
from engine.model import GROUP, Anatomy, OwnedParameter, PackedFormat, can_split
from sim.problem import unpacked_at_once
from sim.schedule import LaneKind

BITS = 4

ON_HOST = 8
"""Experts of each layer that the host computes with, for one token each."""
ENOUGH_BYTES = 1 << 28
"""So much at its full width takes turns, if the model has it: more than caches hold of what is packed."""


def unpack_rate(model: PreTrainedModel, device: Device, repeats: int) -> Measured | None:
    """Bytes a second of weights as the model has them, made of packed ones; None for experts that cannot be packed.

    Raises DeviceOutOfMemory if there is no room for a few experts.
    """
    anatomy = Anatomy.of(model)
    experts = next((one for one in anatomy.experts if one and can_split(one, anatomy.num_experts)), ())
    made = _formats(experts)
    if not made:
        return None
    count = unpacked_at_once(anatomy.num_experts, sum(form.unpacked_bytes for form in made))
    with contextlib.ExitStack() as stack:
        pairs = []
        for one, form in zip(experts, made, strict=True):
            packed = _packed(one, form, count)
            there = device.allocate("calibration", packed.shape, packed.dtype).copy_(packed)
            stack.callback(device.free, there)
            room = device.allocate("calibration", (count, *form.shape), form.dtype)
            stack.callback(device.free, room)
            pairs.append((form, there, room))
        lane = stack.enter_context(device.open_lane(LaneKind.GPU))
        num_bytes = sum(room.nbytes for _, _, room in pairs)

        def unpack() -> None:
            for form, *tensors in pairs:
                form.unpack(*tensors)

        def rate() -> float:
            return num_bytes / lane_seconds(lane, unpack)

        return repeated(rate, f"{count} experts unpacked from {BITS} bits", repeats)


def host_unpack_rate(model: PreTrainedModel, device: Device, repeats: int) -> Measured | None:
    """Bytes a second of weights as the model has them that the host computes with, reading packed ones.

    Layers take turns, with a token for each expert. None for experts that cannot be packed or computed on the host.
    """
    anatomy = Anatomy.of(model)
    layers = [one for one in anatomy.experts if one and can_split(one, anatomy.num_experts) and _formats(one)]
    layers = [one for one in layers if can_run_on_host(one[0].owner)]
    if not layers:
        return None
    count = min(ON_HOST, anatomy.num_experts)
    num_bytes = count * sum(form.unpacked_bytes for form in _formats(layers[0]))
    hidden_size = model.config.get_text_config(decoder=True).hidden_size
    tokens = torch.ones(count, hidden_size, dtype=model.dtype), torch.arange(count).unsqueeze(1), torch.ones(count, 1)
    with contextlib.closing(HostThreads(device.cpu_threads)) as threads, ThreadPoolExecutor(1) as apart:
        every = cycle([_on_host(one, count, threads) for one in layers[: max(1, ENOUGH_BYTES // num_bytes)]])

        def measured() -> Measured:
            with device.open_lane(LaneKind.CPU) as lane:
                what = f"{count} experts of {BITS} bits on the host, a token each, layers in turn"
                return repeated(lambda: num_bytes / lane_seconds(lane, lambda: next(every)(*tokens)), what, repeats)

        return apart.submit(measured).result()


def _on_host(experts: Sequence[OwnedParameter], count: int, threads: HostThreads) -> HostExperts:
    forms = {one.name: form for one, form in zip(experts, _formats(experts), strict=True)}
    packed = {one.name: _packed(one, forms[one.name], count) for one in experts}
    return HostExperts.of(experts[0].owner, packed, range(count), threads, forms)


def _formats(experts: Sequence[OwnedParameter]) -> list[PackedFormat]:
    """How experts are packed; none if they cannot be."""
    made = [
        PackedFormat(BITS, tuple(one.tensor.shape[1:]), one.tensor.dtype, bool(one.owner.is_transposed))
        for one in experts
    ]
    return [] if any(form.input_size % GROUP for form in made) else made


def _packed(parameter: OwnedParameter, form: PackedFormat, count: int) -> torch.Tensor:
    packed = torch.empty((count, form.num_bytes), dtype=torch.uint8)
    form.pack(parameter.tensor.detach()[:count], packed)
    return packed
