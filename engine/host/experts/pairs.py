"""Which tokens go to which expert: the (token, expert) pairs of one call, expert by expert."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from engine.host.bits import Array
from engine.host.experts.kernel import sorted_pairs


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs in the order of their experts. Those of `experts[i]` are `starts[i]` to `starts[i + 1]` - 1."""

    experts: Array
    starts: Array
    tokens: Array
    weights: Array

    @classmethod
    def of(cls, index: torch.Tensor, weights: torch.Tensor, on_host: Array) -> "Pairs":
        """Those whose expert is on the host. index, weights [tokens, k]; `on_host`: for each expert, whether it is."""
        chosen, given = chosen_of(index, weights)
        experts, starts, tokens = (np.empty(chosen.size + more, np.int64) for more in (0, 1, 0))
        shares = np.empty(chosen.size, np.float32)
        used = sorted_pairs(chosen, given, on_host, experts, starts, tokens, shares)
        pairs = int(starts[used])
        return cls(experts[:used], starts[: used + 1], tokens[:pairs], shares[:pairs])

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        """Each expert, and its pairs."""
        for expert, start, stop in zip(self.experts, self.starts[:-1], self.starts[1:], strict=True):
            yield int(expert), slice(start, stop)


def chosen_of(index: torch.Tensor, weights: torch.Tensor) -> tuple[Array, Array]:
    """The experts of each token as int64 and what each counts as float32, [tokens, k] as arrays."""
    chosen = index if index.dtype == torch.int64 else index.to(torch.int64)
    given = weights if weights.dtype == torch.float32 else weights.to(torch.float32)
    return chosen.numpy(), given.numpy()
