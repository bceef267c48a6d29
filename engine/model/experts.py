"""A layer whose routed experts are partly resident: the library's own expert code, run once for each part.

`experts_on_device` keeps the first experts of each layer on the device while the others stream. Each part computes the
(token, expert) pairs that are its own, as tokens with one expert each, and the results add up.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from engine.model.anatomy import OwnedParameter

IMPLEMENTATION = "grouped_mm"


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
    lean: list[Any] = [
        module for module in modules if getattr(type(module), "_apply_gate", None) is _default_apply_gate
    ]
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


class SplitExperts:
    """Takes the place of an experts module's `forward` until `close`.

    `resident` are the module's parameters cut down to the experts on the device. The module's parameters themselves
    must be those of the streamed experts whenever it is called.
    """

    def __init__(self, module: nn.Module, resident: dict[str, nn.Parameter]) -> None:
        self._module = module
        self._resident = resident
        self._num_resident = next(iter(resident.values())).shape[0]
        self._num_experts: int = module.num_experts  # type: ignore[assignment]
        module.forward = self

    def __call__(
        self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor, *_: Any
    ) -> torch.Tensor:
        streamed = {name: self._module._parameters[name] for name in self._resident}
        resident = self._part(self._resident, 0, self._num_resident, hidden, top_k_index, top_k_weights)
        rest = self._part(streamed, self._num_resident, self._num_experts, hidden, top_k_index, top_k_weights)
        return resident + rest

    def close(self) -> None:
        """Gives the module its own `forward` back."""
        del self._module.forward

    def _part(
        self,
        parameters: Any,
        first: int,
        stop: int,
        hidden: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        module: Any = self._module
        rows, slots = ((top_k_index >= first) & (top_k_index < stop)).nonzero(as_tuple=True)
        index = (top_k_index[rows, slots] - first).unsqueeze(-1)
        weights = top_k_weights[rows, slots].unsqueeze(-1)
        before = {name: module._parameters[name] for name in parameters}
        module._parameters.update(parameters)
        module.num_experts = stop - first
        result = torch.zeros_like(hidden)
        try:
            if len(rows):
                result.index_add_(0, rows, ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](module, hidden[rows], index, weights))
        finally:
            module._parameters.update(before)
            module.num_experts = self._num_experts
        return result
