"""Shared experts of a layer: which families let them be computed beside the routed ones, later or earlier than they do.

Some families ask for them before the routed ones, and need what comes out only behind these; others ask behind them.
Either way they may be computed while the host has the routed ones, if both get the same and nothing in between looks at
what comes out. No list of families says so: a trial does, in which stand-ins take the place of both networks. Where
it fails, and where shared experts do not stand beside the routed ones (granitemoeshared has them in the layer itself),
they run where the family has them: in Route, or in the next PreAttn.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.model.anatomy import Anatomy
from engine.model.experts.placed import with_forward

TRIED_TOKENS = 2


def shared_apart(model: PreTrainedModel, anatomy: Anatomy) -> dict[int, nn.Module]:
    """By layer, the shared experts that may be computed beside the routed ones. The model must be in host memory."""
    hidden_size = model.config.get_text_config(decoder=True).hidden_size
    numbers = torch.linspace(-1, 1, TRIED_TOKENS * hidden_size, dtype=torch.float64)
    tokens = numbers.view(1, TRIED_TOKENS, hidden_size).to(model.dtype)
    outcomes: dict[int, bool] = {}  # layers of one kind have the same code
    found = {}
    for i, layer in enumerate(anatomy.layers):
        beside = _beside(layer, anatomy.experts[i][0].owner) if anatomy.shared[i] else None
        if beside is None:
            continue
        if anatomy.kinds[i] not in outcomes:
            outcomes[anatomy.kinds[i]] = beside.may_be_apart(tokens)
        if outcomes[anatomy.kinds[i]]:
            found[i] = beside.shared
    return found


@dataclass(frozen=True, slots=True)
class ExpertBlock:
    """A module of a layer in which routed and shared experts stand beside each other."""

    block: nn.Module
    routed: nn.Module
    shared: nn.Module

    def may_be_apart(self, tokens: torch.Tensor) -> bool:
        """Whether it makes no difference to the block when its shared experts are computed."""
        try:
            at_once, late = (_Trial(self, late=late).outcome(tokens) for late in (False, True))
        except Exception:  # the library's code, called in a way that it may not know: then it is left as it is
            return False
        return torch.equal(at_once, late)


def _beside(layer: nn.Module, routed: nn.Module) -> ExpertBlock | None:
    for block in layer.modules():
        if block is not layer and any(child is routed for child in block.children()):
            named = [child for name, child in block.named_children() if "shared" in name and child is not routed]
            shared = max(named, key=_num_parameters, default=None)  # the others are its gate
            return None if shared is None else ExpertBlock(block, routed, shared)
    return None


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(slots=True)
class _Trial:
    """One pass through a block whose networks are stand-ins that say what they got."""

    beside: ExpertBlock
    late: bool
    """Whether what shared experts make is not a number until the routed ones are asked."""
    got: dict[str, torch.Tensor] = field(default_factory=dict)
    promised: torch.Tensor | None = None

    def outcome(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the block makes of the tokens. Raises ValueError if its networks get different things."""
        with (
            torch.no_grad(),
            with_forward(self.beside.routed, self._routed),
            with_forward(self.beside.shared, self._shared),
        ):
            made = self.beside.block(tokens)
        if not torch.equal(self.got["routed"].flatten(), self.got["shared"].flatten()):
            raise ValueError("shared and routed experts get different things")
        output: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return output

    def _routed(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self._note("routed", hidden)
        if self.promised is not None:
            self.promised.copy_(2 * self.got["shared"])
        return 3 * hidden

    def _shared(self, hidden: torch.Tensor) -> torch.Tensor:
        self._note("shared", hidden)
        if not self.late or "routed" in self.got:
            return 2 * hidden
        self.promised = torch.full_like(hidden, torch.nan)
        return self.promised

    def _note(self, network: str, hidden: torch.Tensor) -> None:
        if network in self.got:
            raise ValueError(f"{network} experts are asked twice")
        self.got[network] = hidden.clone()
