"""The routed experts of a layer: by what code they are computed, and how where some are resident and others stream.

Experts of a layer lie in several places on the device: some are resident, others come there. Each part computes the
(token, expert) pairs that are its own by the library's own expert code, and the results add up.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from engine.model.anatomy import OwnedParameter
from engine.model.coroutine import current
from engine.model.packing import PackedFormat

IMPLEMENTATION = "grouped_mm"
"""The library's expert code that reads weights where they are: one product over all experts, tokens in their order."""

KEPT = f"cgopipe_{IMPLEMENTATION}"
"""The same under a name that the library does not know."""

PRODUCTS = 2
"""Products over all experts in one call: up (with the gate), and down."""

ONE_KERNEL = (9, 10)
"""Generations of CUDA devices that have a kernel for a product over all experts, which takes bfloat16."""

Parameters = Mapping[str, nn.Parameter | None]


def can_split(parameters: tuple[OwnedParameter, ...], num_experts: int) -> bool:
    """Whether these are the fused parameters of one module that the library's expert implementations can run."""
    owners = {id(parameter.owner) for parameter in parameters}
    fused = all(parameter.tensor.shape[0] == num_experts for parameter in parameters)
    return len(owners) == 1 and fused and hasattr(parameters[0].owner, "_apply_gate")


@contextlib.contextmanager
def kept_experts(model: PreTrainedModel) -> Iterator[None]:
    """While entered, `generate()` computes experts in decode as in prefill.

    On any device but the CPU it would go from IMPLEMENTATION, known by its name, to one that copies the weights of an
    expert for every token that uses it. A model that was given another implementation keeps that.
    """
    ALL_EXPERTS_FUNCTIONS.register(KEPT, ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION])
    before = model.get_experts_implementation()
    changed = {part: KEPT if name == IMPLEMENTATION else name for part, name in before.items()}
    model.set_experts_implementation(changed)
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def host_waits(device: torch.device, dtype: torch.dtype) -> int:
    """How often the host waits for the device while it computes experts of one place.

    Without a kernel for all experts at once torch asks the device where each expert's tokens end, before each product,
    and makes a product for each expert. On the CPU nobody waits.
    """
    if device.type == "cpu":
        return 0
    cuda = device.type == "cuda" and torch.version.hip is None
    one_kernel = cuda and dtype is torch.bfloat16 and torch.cuda.get_device_capability(device)[0] in ONE_KERNEL
    return 0 if one_kernel else PRODUCTS


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
def with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While entered, a call of the module calls this.

    (A hook would do, but with hooks on it a module takes a longer way to each call.)
    """
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """Experts of a layer that lie together, as rows of these parameters."""

    parameters: Parameters
    rows: torch.Tensor
    """For each expert of the layer its row, or a number behind the last row; where tokens choose."""
    numbers: Sequence[int] = ()
    """Which experts the rows are, where the host must know it: of packed ones."""

    @property
    def count(self) -> int:
        """How many rows there are."""
        return next(len(tensor) for tensor in self.parameters.values() if tensor is not None)

    @staticmethod
    def of(tensors: Mapping[str, torch.Tensor], rows: torch.Tensor, numbers: Sequence[int] = ()) -> "ExpertPart":
        """Of plain tensors by the names of the parameters."""
        parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
        return ExpertPart(parameters, rows, numbers)


PartCode = Callable[[nn.Module, ExpertPart, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""What a module's experts of one part make of tokens: hidden states, experts of each, and what each counts for."""


@dataclass(slots=True, eq=False)
class PlacedExperts:
    """The experts of a layer in the parts that they lie in; computes what all parts on the device make of tokens."""

    module: nn.Module
    num_experts: int
    """The module says so too, but not while it computes some of them."""
    resident: ExpertPart | None = None
    """Those that stay on the device."""
    came: tuple[ExpertPart, ...] = ()
    """Those that came there for this run of the layer."""
    formats: Mapping[str, PackedFormat] = field(default_factory=dict)
    """How parameters are packed, if they are: a row is then the bytes of an expert."""
    shared: nn.Module | None = None
    """The layer's shared experts, if they are computed with these and not by the layer."""

    @property
    def parts(self) -> tuple[ExpertPart, ...]:
        return self.came if self.resident is None else (self.resident, *self.came)

    def compute(
        self,
        parts: Iterable[ExpertPart],
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        *,
        in_prefill: bool,
        in_decode_by: PartCode | None = None,
    ) -> torch.Tensor:
        """What the experts of some parts make of tokens; `in_decode_by`: other code than the library's, for decode."""
        pairs = own_pairs if rows_are_known(hidden, in_prefill=in_prefill) else all_pairs
        result: torch.Tensor | None = None
        for one in parts:
            if in_decode_by is not None and not in_prefill:
                made = in_decode_by(self.module, one, hidden, index, weights)
            else:
                compute = _every_pair if one.count == self.num_experts else pairs
                made = compute(self.module, one.parameters, one.count, hidden, one.rows[index], weights)
            result = made if result is None else result.add_(made)
        return torch.zeros_like(hidden) if result is None else result

    def in_place(self) -> contextlib.AbstractContextManager[None]:
        """While entered, takes the place of the module's `forward`."""

        def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, *_: Any) -> torch.Tensor:
            micro_batch = current()
            return self.compute(
                self.parts, hidden, index, weights, in_prefill=micro_batch is not None and micro_batch.step == 0
            )

        return with_forward(self.module, forward)


def expert_rows(experts: Iterable[int], num_experts: int) -> torch.Tensor:
    """For each of a layer's experts its row where these lie in this order, or the number of rows if it is not there."""
    order = torch.tensor(list(experts), dtype=torch.int64)
    return torch.full((num_experts,), len(order)).index_copy_(0, order, torch.arange(len(order)))


def rows_are_known(hidden: torch.Tensor, *, in_prefill: bool) -> bool:
    """Whether the host should learn which tokens use the experts of a part.

    Then nothing is computed for the others; but to learn it, the host waits for a device. That is little beside a
    prompt, and much beside a token of each request.
    """
    return in_prefill or hidden.device.type == "cpu"


def _every_pair(
    module: Any, parameters: Parameters, count: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What `count` experts make of tokens that use no others."""
    with with_experts(module, parameters, count):
        result: torch.Tensor = ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](module, hidden, index, weights)
    return result


def own_pairs(
    module: Any, parameters: Parameters, count: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What `count` experts make of the pairs that are their own; an index from `count` on is foreign."""
    rows, slots = (index < count).nonzero(as_tuple=True)
    result = torch.zeros_like(hidden)
    if len(rows):
        own = index[rows, slots].unsqueeze(-1), weights[rows, slots].unsqueeze(-1)
        with with_experts(module, parameters, count):
            result.index_add_(0, rows, ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](module, hidden[rows], *own))
    return result


def all_pairs(
    module: Any, parameters: Parameters, count: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The same without a word to the host: the library itself leaves foreign pairs out."""
    if count == 1:  # the library's count of an only expert's tokens would count all
        parameters, count, index = _twice(parameters), 2, torch.where(index == 0, 0, 2)
    with with_experts(module, parameters, count):
        module._is_expert_parallel = True
        try:
            result: torch.Tensor = ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](module, hidden, index, weights)
        finally:
            module._is_expert_parallel = False
    return result


def _twice(parameters: Parameters) -> Parameters:
    """An only expert and, behind it, itself again in the same memory, which no token uses."""
    given = {name: tensor.expand(2, *tensor.shape[1:]) for name, tensor in parameters.items() if tensor is not None}
    return {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in given.items()}
