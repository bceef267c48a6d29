"""What lies between the two matrices of an expert, where the compiled kernel knows it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import gelu, silu

Activation = Callable[[torch.Tensor], torch.Tensor]

SILU: Final = 0
GELU: Final = 1
GELU_TANH: Final = 2
GPT_OSS: Final = 3

PLAIN: Final[dict[int, Activation]] = {SILU: silu, GELU: gelu, GELU_TANH: partial(gelu, approximate="tanh")}
"""What is done to the gate before the other half is multiplied with it."""

FARTHEST: Final = 40.0
"""To where a gate is looked at, on both sides of zero: far beyond where its exponents saturate."""

EXACT: Final = 1e-5
"""Two ways to write one gate differ by less, relatively; two gates by more, somewhere."""


@dataclass(frozen=True, slots=True)
class Gate:
    """`kind` is one of those above. `alpha` and `limit`: of gpt_oss; SiLU has an alpha of 1."""

    kind: int
    is_interleaved: bool = False
    alpha: float = 1.0
    limit: float = float("inf")

    @staticmethod
    def of(module: Any) -> "Gate | None":
        """The gate of a module of experts, known by what it gives; None if the kernel has no such gate."""
        if not module.has_gate:
            return None
        halves = _seen_at()
        for is_interleaved in (False, True):
            given = torch.stack(halves, -1).flatten(-2) if is_interleaved else torch.cat(halves, -1)
            made = activation_of(module)(given)
            for gate in _known(module, is_interleaved):
                if torch.allclose(made, gate.apply(*halves), rtol=EXACT, atol=EXACT):
                    return gate
        return None

    def apply(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """What the kernel does, in words of torch."""
        if self.kind != GPT_OSS:
            return PLAIN[self.kind](gate) * up
        gate = gate.clamp(max=self.limit)
        return (up.clamp(-self.limit, self.limit) + 1) * gate * torch.sigmoid(gate * self.alpha)


def activation_of(module: Any) -> Activation:
    """From what an expert's first matrix gives to what its second takes.

    By what the class of the module says: a module may have a gate of its own for as long as a run lasts.
    """
    own: Any = type(module)
    return partial(own._apply_gate, module) if module.has_gate else module.act_fn


def _known(module: nn.Module, is_interleaved: bool) -> list[Gate]:
    own: Any = module
    has_limit = hasattr(module, "alpha") and hasattr(module, "limit")
    ours = [Gate(GPT_OSS, is_interleaved, own.alpha, own.limit)] if has_limit else []
    return [*(Gate(kind, is_interleaved) for kind in PLAIN), *ours]


def _seen_at() -> list[torch.Tensor]:
    points = torch.linspace(-FARTHEST, FARTHEST, 321)
    return [torch.cat([points, points]), torch.cat([points.flip(0) / 3, points.roll(100)])]
