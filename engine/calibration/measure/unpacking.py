"""How fast the device unpacks experts that are stored in 4 bits: a few of one layer, over and over."""

import contextlib

import torch
from transformers import PreTrainedModel

from engine.calibration.measure.measured import Measured, lane_seconds, repeated
from engine.device import Device
from engine.model import GROUP, Anatomy, PackedFormat, can_split
from sim.problem import unpacked_at_once
from sim.schedule import LaneKind

BITS = 4


def unpack_rate(model: PreTrainedModel, device: Device, repeats: int) -> Measured | None:
    """Bytes a second of weights as the model has them, made of packed ones; None for experts that cannot be packed.

    Raises DeviceOutOfMemory if there is no room for a few experts.
    """
    anatomy = Anatomy.of(model)
    experts = next((one for one in anatomy.experts if one and can_split(one, anatomy.num_experts)), ())
    made = [
        PackedFormat(BITS, tuple(one.tensor.shape[1:]), one.tensor.dtype, bool(one.owner.is_transposed))
        for one in experts
    ]
    if not made or any(form.input_size % GROUP for form in made):
        return None
    count = unpacked_at_once(anatomy.num_experts, sum(form.unpacked_bytes for form in made))
    with contextlib.ExitStack() as stack:
        pairs = []
        for one, form in zip(experts, made, strict=True):
            packed = torch.empty((count, form.num_bytes), dtype=torch.uint8)
            form.pack(one.tensor.detach()[:count], packed)
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
