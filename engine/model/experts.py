"""A layer whose routed experts are partly resident: the library's own expert code, run once for each part.

`experts_on_device` keeps the first experts of each layer on the device while the others stream. Each part computes the
(token, expert) pairs that are its own, as tokens with one expert each, and the results add up.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from engine.model.anatomy import OwnedParameter

IMPLEMENTATION = "grouped_mm"

Parameters = Mapping[str, nn.Parameter | None]


def can_split(parameters: tuple[OwnedParameter, ...], num_experts: int) -> bool:
    """Whether these are the fused parameters of one module that the library's expert implementations can run."""
    owners = {id(parameter.owner) for parameter in parameters}
    fused = all(parameter.tensor.shape[0] == num_experts for parameter in parameters)
    return len(owners) == 1 and fused and hasattr(parameters[0].owner, "_is_expert_parallel")


@contextlib.contextmanager
def lean_gates(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While entered, gated experts multiply gate and up in place: the same numbers, one expert-wide tensor fewer.

    Experts whose family has a gate of its own keep it.
    """
    lean: list[Any] = [one for one in modules if getattr(type(one), "_apply_gate", None) is _default_apply_gate]
    for module in lean:
        module._apply_gate = functools.partial(_apply_gate, module)
    try:
        yield
    finally:
        for module in lean:
            del module._apply_gate


def _apply_gate(module: Any, gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    activated: torch.Tensor = module.act_fn(gate)
    return activated.mul_(up)


@contextlib.contextmanager
def with_experts(module: Any, parameters: Parameters, num_experts: int) -> Iterator[None]:
    """While entered, these are the parameters of so many experts that a module of experts has."""
    before = dict(module._parameters), module.num_experts
    module._parameters.update(parameters)
    module.num_experts = num_experts
    try:
        yield
    finally:
        module._parameters.update(before[0])
        module.num_experts = before[1]


@contextlib.contextmanager
def split_experts(module: nn.Module, resident: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """While entered, takes the place of an experts module's `forward`.

    `resident` are the module's parameters cut down to the experts on the device. The module's parameters themselves
    must be those of the streamed experts whenever it is called.
    """
    num_resident = next(iter(resident.values())).shape[0]
    num_experts: int = module.num_experts  # type: ignore[assignment]

    def forward(hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor, *_: Any) -> torch.Tensor:
        def part(parameters: Parameters, first: int, stop: int) -> torch.Tensor:
            rows, slots = ((top_k_index >= first) & (top_k_index < stop)).nonzero(as_tuple=True)
            result = torch.zeros_like(hidden)
            if len(rows):
                index = (top_k_index[rows, slots] - first).unsqueeze(-1)
                weights = top_k_weights[rows, slots].unsqueeze(-1)
                with with_experts(module, parameters, stop - first):
                    computed = ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](module, hidden[rows], index, weights)
                result.index_add_(0, rows, computed)
            return result

        streamed: Parameters = {name: module._parameters[name] for name in resident}
        return part(resident, 0, num_resident) + part(streamed, num_resident, num_experts)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
