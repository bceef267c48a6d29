"""What a rank keeps of a parameter, and a model that has nothing but that."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from engine.model.anatomy import OwnedParameter


@dataclass(frozen=True, slots=True)
class Cut:
    """Of a parameter these stretches along one dimension, one behind the other; without any, zeros in its place."""

    parameter: OwnedParameter
    dim: int
    kept: tuple[slice, ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """New memory with what is kept."""
        if not self.kept:
            return torch.zeros_like(tensor)
        parts = [tensor.narrow(self.dim, one.start, one.stop - one.start) for one in self.kept]
        return torch.cat(parts, self.dim) if len(parts) > 1 else parts[0].contiguous().clone()


@dataclass(slots=True)
class Cuts:
    """Of some of a model's parameters what a rank keeps, and what modules say of themselves accordingly."""

    cuts: list[Cut] = field(default_factory=list)
    said: list[tuple[nn.Module, str, int]] = field(default_factory=list)

    def linear(self, module: nn.Linear, kept: slice, *, outputs: bool) -> None:
        """A part of a linear module's outputs, or of its inputs, which the first rank adds the bias to."""
        for name, tensor in module.named_parameters(recurse=False):
            if name == "bias" and not outputs:
                self.of_first(OwnedParameter(module, name, tensor), is_first=kept.start == 0)
            else:
                self.cuts.append(Cut(OwnedParameter(module, name, tensor), 0 if outputs else 1, (kept,)))
        self.said.append((module, "out_features" if outputs else "in_features", kept.stop - kept.start))

    def of_first(self, parameter: OwnedParameter, *, is_first: bool) -> None:
        """What is added to a sum is added once, by the first rank."""
        if not is_first:
            self.cuts.append(Cut(parameter, 0, ()))

    @contextlib.contextmanager
    def made(self, *, keep: bool) -> Iterator[None]:
        """While entered, the model has what is kept and no more; without `keep` for good."""
        new: dict[int, nn.Parameter] = {}  # tied parameters are one object
        with contextlib.ExitStack() as at_end:
            for cut in self.cuts:
                owner, name, tensor = cut.parameter
                if id(tensor) not in new:
                    new[id(tensor)] = nn.Parameter(cut.of(tensor.detach()), requires_grad=False)
                table: dict[str, torch.Tensor | None] = owner._parameters  # type: ignore[assignment]
                table[name] = new[id(tensor)]
                if keep:
                    at_end.callback(table.update, {name: tensor})
            for module, name, value in self.said:
                if keep:
                    at_end.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
            new.clear()
            self.cuts.clear()  # the whole parameters may go
            yield


def part_of(whole: int, rank: int, count: int) -> slice:
    """A rank's part of so many equal things: ranks have the same number, or the last ones fewer."""
    each = -(-whole // count)
    return slice(min(rank * each, whole), min((rank + 1) * each, whole))
