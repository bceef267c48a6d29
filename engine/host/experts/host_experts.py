"""The routed experts of a layer that are computed on the host: on views of the model's own tensors, tensors only.

No module is run and none is changed, because the device may be using the same one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from engine.device import intra_op_threads
from engine.host.bits import Array
from engine.host.experts.few_tokens import FewTokens
from engine.host.experts.gates import Activation, activation_of
from engine.host.experts.matrix import Matrix, Packing
from engine.host.experts.pairs import Pairs
from engine.host.threads import HostThreads


def can_run_on_host(module: nn.Module) -> bool:
    """Whether a module of routed experts says all that they compute with."""
    described = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "_apply_gate"))
    return described and not getattr(module, "has_post_expert_norm", False)


@dataclass(frozen=True, slots=True)
class HostExperts:
    """The experts of one layer that are on the host. Used from one thread."""

    up: Matrix
    down: Matrix
    activation: Activation
    """From what `up` gives to what `down` takes."""
    on_host: Array
    """For each expert, whether it is on the host."""
    threads: HostThreads
    few_tokens: FewTokens | None
    """What computes where an expert has few tokens; None if the kernel lacks something."""

    @classmethod
    def of(
        cls,
        module: nn.Module,
        parameters: Mapping[str, torch.Tensor],
        experts: Iterable[int],
        threads: HostThreads | None = None,
        packings: Mapping[str, Packing] | None = None,
    ) -> Self:
        """The experts with these numbers of a module that `can_run_on_host`.

        `parameters`: the module's, as they are on the host, by name: number n is row n of each, and what an index calls
        n. The module only says how they are laid out and what lies between them. `packings`: of those that are packed.
        """
        if not can_run_on_host(module):
            raise ValueError(f"{type(module).__name__} does not say what its experts compute")
        described: Any = module
        packed = packings or {}
        up, down = (
            Matrix(parameters[name], _bias(name, parameters, packed), described.is_transposed, packed.get(name))
            for name in ("gate_up_proj" if described.has_gate else "up_proj", "down_proj")
        )
        on_host = np.zeros(len(down.weights), np.bool_)
        on_host[list(experts)] = True
        threads = threads or HostThreads()
        return cls(up, down, activation_of(module), on_host, threads, FewTokens.of(module, up, down, threads))

    def __call__(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sum over the (token, expert) pairs whose expert is on the host; others count nothing.

        hidden [tokens, hidden size]; index, weights [tokens, k]: the experts of each token and what each counts. What
        is returned has the shape and type of `hidden`: `out`, if it is given, which shares no memory with the others
        and may be of any type; sums are rounded to it once.
        """
        found = torch.empty_like(hidden) if out is None else out
        with torch.inference_mode():
            few = self.few_tokens
            if few is not None and few.takes_at_once(hidden):
                few.at_once(hidden, index, weights, self.on_host, found)
                return found
            pairs = Pairs.of(index, weights, self.on_host)
            compute = few if few is not None and few.takes(hidden, pairs) else self._by_products
            return found.copy_(compute(hidden, pairs))

    def prepare(self) -> None:
        """Compiles the kernel for these weights, or loads what was compiled before: seconds that decode is spared."""
        for expert in np.flatnonzero(self.on_host)[:1]:
            self(torch.zeros(1, self.down.shape[0]), torch.tensor([[expert]]), torch.ones(1, 1))

    def _by_products(self, hidden: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """Expert by expert, in torch's products over all tokens that an expert has. In float32 or better."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        result = torch.zeros_like(wide)
        with intra_op_threads(self.threads.threads, 1):  # the lane has one
            for expert, own in pairs:
                tokens, weights = torch.from_numpy(pairs.tokens[own]), torch.from_numpy(pairs.weights[own])
                made = self.down.product(expert, self.activation(self.up.product(expert, wide[tokens])))
                result.index_add_(0, tokens, made.mul_(weights.unsqueeze(-1)))
        return result


def _bias(name: str, parameters: Mapping[str, torch.Tensor], packed: Mapping[str, Packing]) -> torch.Tensor | None:
    """The biases of a matrix, unpacked once: they are few."""
    found, packing = parameters.get(f"{name}_bias"), packed.get(f"{name}_bias")
    if found is None or packing is None:
        return found
    wide = torch.empty(len(found), *packing.shape)
    packing.unpack(found, wide)
    return wide
