"""What experts in a second place cost: one layer's experts on the device, run in one part and in two, in turn."""

import contextlib

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.calibration.measure.measured import Measured
from engine.device import Device, LaneContext
from engine.model import Anatomy, SplitExperts, can_split, lean_gates
from sim.problem import Layer, Model
from sim.schedule import LaneKind

TOKENS = 16

PAIRS = 5
"""So many pairs for each repeat that other measurements get: the difference is small beside what it is between."""

Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Hidden states [tokens, hidden], and of each token the experts and their weights [tokens, top_k]."""


def second_place(model: PreTrainedModel, described: Model, device: Device, repeats: int) -> Measured | None:
    """Seconds that a layer's experts take longer in two places than in one; None if they cannot be split.

    `described` is the model as the simulator sees it. Raises DeviceOutOfMemory if the experts of a layer do not fit.
    """
    anatomy = Anatomy.of(model)
    count = anatomy.num_experts
    at = next((i for i, one in enumerate(anatomy.experts) if one and count > 1 and can_split(one, count)), None)
    if at is None:
        return None
    experts = anatomy.experts[at]
    with contextlib.ExitStack() as stack:
        placed = {}
        for one in experts:
            placed[one.name] = device.place("calibration", one.tensor.detach())
            stack.callback(device.free, placed[one.name])
        stack.enter_context(lean_gates(model.modules()))
        lane = stack.enter_context(device.open_lane(LaneKind.GPU))
        both = _Places(experts[0].owner, placed, count // 2, _call(described.layers[at], model.dtype, device))
        pairs = [both.seconds(lane, apart_first=bool(i % 2)) for i in range(1 + PAIRS * repeats)]
    what = f"experts of a layer in two places less in one, {TOKENS} tokens, by turns"
    return Measured.of([apart - together for together, apart in pairs[1:]], what)


class _Places:
    """A module of experts whose weights are on the device, whole or in two parts."""

    def __init__(self, module: nn.Module, placed: dict[str, torch.Tensor], first: int, call: Call) -> None:
        self._module, self._call = module, call
        self._whole = _parameters(placed)
        self._resident = _parameters({name: tensor[:first] for name, tensor in placed.items()})
        self._rest = _parameters({name: tensor[first:] for name, tensor in placed.items()})

    def seconds(self, lane: LaneContext, *, apart_first: bool) -> tuple[float, float]:
        """In one place, and in two."""
        table = self._module._parameters
        before = dict(table)
        try:
            if apart_first:
                apart = self._apart(lane)
                return self._together(lane), apart
            return self._together(lane), self._apart(lane)
        finally:
            table.update(before)

    def _together(self, lane: LaneContext) -> float:
        self._module._parameters.update(self._whole)
        return self._timed(lane)

    def _apart(self, lane: LaneContext) -> float:
        self._module._parameters.update(self._rest)
        split = SplitExperts(self._module, self._resident)
        try:
            return self._timed(lane)
        finally:
            split.remove()

    def _timed(self, lane: LaneContext) -> float:
        start = lane.mark()
        self._module(*self._call)
        return (lane.mark().time_ns - start.time_ns) / 1e9


def _parameters(tensors: dict[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}


def _call(layer: Layer, dtype: torch.dtype, device: Device) -> Call:
    """Random tokens, each for random experts: the same each time."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, layer.hidden_size, generator=generator).to(device.torch_device, dtype)
    weights, index = torch.rand(TOKENS, layer.num_experts, generator=generator).topk(layer.top_k)
    return hidden, index.to(device.torch_device), weights.to(device.torch_device, dtype)
