"""Routed experts by the compiled kernel: for few tokens an expert, at the speed at which the weights are read."""

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import nn

from engine.host.bits import Array
from engine.host.experts.gates import Gate
from engine.host.experts.kernel import KernelMatrix, both_phases, down_unit, phases_in_turns, up_unit
from engine.host.experts.matrix import Matrix
from engine.host.experts.pairs import Pairs, chosen_of
from engine.host.threads import HostThreads
from engine.host.vectors import LANES, TILES

MOST_TOKENS: Final = 64
"""Tokens an expert, on average, up to which the kernel is not slower than torch's products.

Measured on a core with AVX-512, torch 2.13: at 64, torch takes 1.1 to 1.2 times as long in float32, 1.5 in bfloat16 and
1.2 to 2 for packed weights, which it must first make float32; at 128 it takes 0.9 to 1.4 times as long.
"""


@dataclass(frozen=True, slots=True)
class FewTokens:
    """The experts of a layer as the kernel sees them."""

    gate: Gate
    up: KernelMatrix
    down: KernelMatrix
    sizes: tuple[int, int]
    """Hidden size, and what lies between the matrices."""
    is_transposed: bool
    threads: HostThreads

    @classmethod
    def of(cls, module: nn.Module, up: Matrix, down: Matrix, threads: HostThreads) -> "FewTokens | None":
        """None if the kernel does not know their gate, type or layout."""
        gate = Gate.of(module)
        first, second = up.for_kernel(), down.for_kernel()
        if gate is None or first is None or second is None or down.shape[1] % LANES:
            return None
        return cls(gate, first, second, down.shape, up.is_transposed, threads)

    def takes(self, hidden: torch.Tensor, pairs: Pairs) -> bool:
        """Whether it is the faster way for these pairs."""
        return hidden.dtype.itemsize <= torch.float32.itemsize and len(pairs) <= MOST_TOKENS * len(pairs.experts)

    def takes_at_once(self, hidden: torch.Tensor) -> bool:
        """Whether one call of the kernel does all for these tokens, whatever experts they use."""
        few = len(hidden) <= MOST_TOKENS and hidden.dtype.itemsize <= torch.float32.itemsize
        return few and self.threads.threads == 1

    def at_once(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, on_host: Array, out: torch.Tensor
    ) -> None:
        """Fills `out` in one call: its sums, and those of all else, are what `__call__` makes of the same pairs."""
        direct = out.dtype == torch.float32 and out.is_contiguous()
        found = out.numpy() if direct else np.empty(tuple(out.shape), np.float32)
        wide = hidden if hidden.dtype == torch.float32 else hidden.to(torch.float32)
        between = self.sizes[1]
        both_phases(wide.numpy(), *chosen_of(index, weights), on_host, self.up, self.down, *self._gated, between, found)
        if not direct:
            out.copy_(torch.from_numpy(found))

    @property
    def _gated(self) -> tuple[tuple[bool, bool, int], tuple[np.float32, np.float32]]:
        """How the matrices are laid out and what is between them, and its constants."""
        gate = self.gate
        constants = np.float32(gate.alpha), np.float32(gate.limit)
        return (self.is_transposed, gate.is_interleaved, gate.kind), constants

    def __call__(self, hidden: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """The sum over the pairs, in float32."""
        wide, between = self.sizes
        x, middle = (np.zeros((len(pairs) + TILES[0], width), np.float32) for width in (wide, between))
        np.take(hidden.to(torch.float32).numpy(), pairs.tokens, axis=0, out=x[: len(pairs)])
        result = np.empty((len(hidden), wide), np.float32)
        own = pairs.experts, pairs.starts, pairs.tokens, pairs.weights
        work = partial(phases_in_turns, x, *own, self.up, self.down, *self._gated, middle, result)
        unit, columns = up_unit(self.is_transposed), down_unit(self.is_transposed)
        phases = len(pairs.experts) * -(-between // unit), -(-wide // columns)
        read_bytes = len(pairs.experts) * (self.up[0][0].nbytes + self.down[0][0].nbytes)
        self.threads.share_out(work, phases, read_bytes)
        return torch.from_numpy(result)
