"""What experts cost that lie partly on the device: one layer's experts there, run in one part and in two, by turns."""

import contextlib
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from engine.calibration.measure.measured import Measured, lane_seconds
from engine.device import Device
from engine.model import Anatomy, ExpertPart, PlacedExperts, can_split, expert_rows, lean_gates, with_experts
from sim.problem import Layer, Model
from sim.schedule import LaneKind

TOKENS = 16

PAIRS = 5
"""So many pairs for each repeat that other measurements get: the difference is small beside what it is between."""


def split_cost(model: PreTrainedModel, described: Model, device: Device, repeats: int) -> Measured | None:
    """Seconds that a layer's experts take longer in two parts than in one; None if they cannot be split.

    `described` is the model as the simulator sees it. Raises DeviceOutOfMemory if the experts of a layer do not fit.
    """
    anatomy = Anatomy.of(model)
    count = anatomy.num_experts
    at = next((i for i, one in enumerate(anatomy.experts) if one and count > 1 and can_split(one, count)), None)
    if at is None:
        return None
    experts = anatomy.experts[at]
    module, call = experts[0].owner, _call(described.layers[at], model.dtype, device)
    with contextlib.ExitStack() as stack:
        placed: dict[str, torch.Tensor] = {}
        for one in experts:
            placed[one.name] = device.place("calibration", one.tensor.detach())
            stack.callback(device.free, placed[one.name])
        stack.enter_context(lean_gates([module]))
        lane = stack.enter_context(device.open_lane(LaneKind.GPU))
        halves = (slice(count // 2), slice(count // 2, None))
        resident, streamed = (
            ExpertPart.of(
                {name: t[half] for name, t in placed.items()},
                expert_rows(range(*half.indices(count)), count).to(device.torch_device),
            )
            for half in halves
        )
        whole = ExpertPart.of(placed, expert_rows(range(count), count)).parameters

        def whole_s() -> float:
            with with_experts(module, whole, count):
                return lane_seconds(lane, lambda: module(*call))

        def split_s() -> float:
            with PlacedExperts(module, count, resident, (streamed,)).in_place():
                return lane_seconds(lane, lambda: module(*call))

        extra_s = differences(whole_s, split_s, 1 + PAIRS * repeats)[1:]
    return Measured.of(extra_s, f"experts of a layer in two parts less in one, {TOKENS} tokens, by turns")


def differences(usual: Callable[[], float], other: Callable[[], float], count: int) -> list[float]:
    """How much more `other` gives than `usual`, in pairs of which every second one begins with `other`."""
    found = []
    for i in range(count):
        first, second = (usual(), other()) if i % 2 == 0 else (other(), usual())
        found.append(second - first if i % 2 == 0 else first - second)
    return found


def _call(layer: Layer, dtype: torch.dtype, device: Device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random hidden states [tokens, hidden], experts and weights of each token [tokens, top_k]; always the same."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, layer.hidden_size, generator=generator).to(device.torch_device, dtype)
    weights, index = torch.rand(TOKENS, layer.num_experts, generator=generator).topk(layer.top_k)
    return hidden, index.to(device.torch_device), weights.to(device.torch_device, dtype)
