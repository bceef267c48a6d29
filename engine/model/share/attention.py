"""A rank's share of attention: its heads; or all of them, and its part of what the output projection takes."""

from dataclasses import dataclass

from torch import nn

from engine.device import Rank
from engine.model.anatomy import OF_CACHE, OwnedParameter
from engine.model.share.cuts import Cut, Cuts, part_of
from engine.model.share.styles import OUT_PROJECTIONS, Style, Styles
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class AttentionShare:
    """What of a layer's attention a rank has, and the projection whose results ranks add up."""

    cuts: Cuts
    out: nn.Linear
    input: slice | None
    """What it takes of all heads' results, where the rank has all heads."""


def share_of_attention(layer: nn.Module, styles: Styles, rank: Rank, usual_heads: int) -> AttentionShare | None:
    """Of a decoder layer; None where no attention with an output projection is found in it."""
    found = [
        (path, module, name)
        for path, module in layer.named_modules()
        for name in OUT_PROJECTIONS
        if isinstance(getattr(module, name, None), nn.Linear)
    ]
    if len(found) != 1:
        return None
    path, attention, name = found[0]
    out: nn.Linear = getattr(attention, name)
    heads = _Heads.of(attention, usual_heads, rank)
    named = {one: styles(f"{path}.{one}") for one, _ in attention.named_parameters()}
    cuts = Cuts()
    if all(_is_known(attention, path, kind) for path, kind in named.items()):
        _cut_heads(cuts, attention, named, heads, out)
        cuts.linear(out, part_of(out.in_features, rank.index, rank.count), outputs=False)
        return AttentionShare(cuts, out, None)
    taken = part_of(out.in_features, rank.index, rank.count)
    cuts.linear(out, taken, outputs=False)
    return AttentionShare(cuts, out, taken)


@dataclass(frozen=True, slots=True)
class _Heads:
    """The heads of a layer: those that ask, and those of the cache, each of which some of the former share."""

    asking: int
    cached: int
    rank: Rank

    @staticmethod
    def of(attention: nn.Module, usual: int, rank: Rank) -> "_Heads":
        """Raises InputError where ranks do not divide them."""
        dim = getattr(attention, "head_dim", None)
        asking, cached = usual, 0
        for name, module in attention.named_children():
            if dim and isinstance(module, nn.Linear):
                asking = module.out_features // dim if name == "q_proj" else asking
                cached = module.out_features // dim if name == "k_proj" else cached
        if asking % rank.count or (cached and cached % rank.count and rank.count % cached):
            of_cache = f" and {cached} of the cache" if cached else ""
            raise InputError(
                f"{rank.count} devices do not divide the model's {asking} heads{of_cache}: give a number that does"
            )
        return _Heads(asking, cached or asking, rank)

    @property
    def repeats(self) -> bool:
        """Whether several ranks have one head of the cache."""
        return self.cached < self.rank.count

    def part(self, width: int, *, of_cache: bool) -> slice:
        """Of what all heads have side by side."""
        if of_cache and self.repeats:
            head, each = self.rank.index * self.cached // self.rank.count, width // self.cached
            return slice(head * each, (head + 1) * each)
        return part_of(width, self.rank.index, self.rank.count)


def _is_known(attention: nn.Module, path: str, style: Style | None) -> bool:
    """Whether a parameter can be divided by heads, or is the same for all of them."""
    parts, tensor = path.split("."), attention.get_parameter(path)
    if style is None:  # norms within a head
        return tensor.numel() <= getattr(attention, "head_dim", 0)
    divided = style in (Style.OUTPUTS, Style.INPUTS)
    if style is Style.WHOLE and "norm" in path and "_a_" not in path:
        return tensor.numel() <= getattr(attention, "head_dim", 0)
    return style is Style.WHOLE or (divided and len(parts) <= 2)


def _cut_heads(
    cuts: Cuts, attention: nn.Module, styles: dict[str, Style | None], heads: _Heads, out: nn.Linear
) -> None:
    for name in dict.fromkeys(path.split(".")[0] for path, style in styles.items() if style is Style.OUTPUTS):
        part = getattr(attention, name)
        if isinstance(part, nn.Linear):
            cuts.linear(part, heads.part(part.out_features, of_cache=name in OF_CACHE), outputs=True)
        else:
            kept = heads.part(len(part), of_cache=False)
            cuts.cuts.append(Cut(OwnedParameter(attention, name, part), 0, (kept,)))
    groups = getattr(attention, "num_key_value_groups", None)
    if groups and heads.repeats:
        cuts.said.append((attention, "num_key_value_groups", groups * heads.cached // heads.rank.count))
