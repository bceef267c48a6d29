"""A rank's share of the networks behind attention: its columns of experts, of shared ones and of dense networks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from engine.device import Rank
from engine.model.anatomy import OwnedParameter
from engine.model.share.cuts import Cut, Cuts, part_of
from engine.model.share.styles import Style, Styles
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class BlockShare:
    """The module of a layer whose results ranks add up, and what of it a rank has."""

    block: nn.Module
    cuts: Cuts = field(default_factory=Cuts)


def share_of_block(
    layer: nn.Module,
    experts: Sequence[OwnedParameter],
    num_experts: int,
    styles: Styles,
    rank: Rank,
) -> BlockShare | None:
    """Of a decoder layer with these routed experts, or none; None where it is made in a way that nobody knows.

    What stands beside the module that has the experts is left whole.
    """
    name, block = _block(layer, experts)
    if block is None:
        return None
    share = BlockShare(block)
    fused = {id(one.tensor) for one in experts}
    if len({id(one.owner) for one in experts}) > 1:
        return None
    for path, parameter in _parameters(block):
        if id(parameter.tensor) in fused:
            cut = _of_experts(parameter, styles.told(f"{name}.{path}"))
        else:
            cut = _of_network(parameter, path, styles(f"{name}.{path}"), num_experts)
        if cut is None:
            return None
        _add(share.cuts, parameter, cut, rank)
    return share


@dataclass(frozen=True, slots=True)
class _Split:
    """Along which dimension a parameter is cut, and of how many equal stretches a part each; none: it is whole."""

    dim: int = 0
    stretches: int = 0
    of_first: bool = False
    """What is added once."""


_WHOLE = _Split()
_ADDED_ONCE = _Split(of_first=True)

OF_EXPERTS = {
    Style.GATED_OUTPUTS: _Split(-2, 2),
    Style.GATED_INPUTS: _Split(-1, 2),
    Style.OUTPUTS: _Split(-2, 1),
    Style.INPUTS: _Split(-1, 1),
}
"""Of experts in one parameter, how plans cut it."""

PRODUCT_BYTES = 16
"""`torch.nn.functional.grouped_mm` takes matrices whose rows and columns are multiples of so much."""
MATRIX = 2
"""Dimensions of a network's matrices; those of all experts together have one more."""


def _block(layer: nn.Module, experts: Sequence[OwnedParameter]) -> tuple[str, nn.Module | None]:
    """The child of a layer that holds its experts; of a dense layer, what has a projection down."""
    for name, child in layer.named_children():
        if experts and any(module is experts[0].owner for module in child.modules()):
            return name, child
        if not experts and any(isinstance(getattr(child, down, None), nn.Linear) for down in ("down_proj", "w2")):
            return name, child
    return "", None


def _parameters(block: nn.Module) -> Iterator[tuple[str, OwnedParameter]]:
    for path, module in block.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            yield f"{path}.{name}".lstrip("."), OwnedParameter(module, name, tensor)


def _of_experts(parameter: OwnedParameter, told: Style | None) -> _Split | None:
    """Of a parameter of all routed experts [expert, …]; where no plan tells, by what their module says of itself."""
    if told in OF_EXPERTS:
        return OF_EXPERTS[told]
    owner: Any = parameter.owner
    kind, of, suffix = parameter.name.partition("_proj")
    if not of or not hasattr(owner, "is_transposed"):
        return None
    if kind == "down":
        return _ADDED_ONCE if suffix else _Split(-2 if owner.is_transposed else -1, 1)
    stretches = 2 if kind == "gate_up" and owner.is_concatenated else 1
    return _Split(-1 if suffix or owner.is_transposed else -2, stretches)


def _of_network(parameter: OwnedParameter, path: str, style: Style | None, num_experts: int) -> _Split | None:
    """Of a network that every token passes, or of what chooses experts, which each rank does for itself."""
    is_bias = path.endswith(".bias")
    if style is Style.OUTPUTS:
        return _Split(0, 1)
    if style is Style.INPUTS:
        return _ADDED_ONCE if is_bias else _Split(1, 1)
    chooses = num_experts in parameter.tensor.shape or parameter.tensor.shape[0] == 1
    return _WHOLE if chooses or style is Style.WHOLE else None


def _add(cuts: Cuts, parameter: OwnedParameter, split: _Split, rank: Rank) -> None:
    if split.of_first:
        cuts.of_first(parameter, is_first=rank.is_first)
    if not split.stretches:
        return
    tensor = parameter.tensor
    each = tensor.shape[split.dim] // split.stretches
    if each % rank.count:
        raise InputError(f"{rank.count} devices do not divide {each} columns of experts: give a number that does")
    part = part_of(each, rank.index, rank.count)
    count = part.stop - part.start
    if tensor.dim() > MATRIX and count * tensor.itemsize % PRODUCT_BYTES:
        raise InputError(
            f"{rank.count} devices leave {count} of {each} columns of each expert, {count * tensor.itemsize} bytes, "
            f"and torch's product over experts takes multiples of {PRODUCT_BYTES}: give fewer devices"
        )
    dim = split.dim % tensor.dim()
    kept = (slice(part.start + each * i, part.stop + each * i) for i in range(split.stretches))
    cuts.cuts.append(Cut(parameter, dim, tuple(kept)))
    if isinstance(parameter.owner, nn.Linear) and parameter.name == "weight":
        cuts.said.append((parameter.owner, "out_features" if dim == 0 else "in_features", count))
