"""Which tokens go to which expert: the (token, expert) pairs of one call, expert by expert."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from engine.host.bits import Array


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
        top_k = index.shape[1]
        chosen = index.numpy().astype(np.int64, copy=False).reshape(-1)
        known = (chosen >= 0) & (chosen < len(on_host))
        known[known] = on_host[chosen[known]]
        places = np.flatnonzero(known)
        places = places[np.argsort(chosen[places], kind="stable")]
        experts, starts = np.unique(chosen[places], return_index=True)
        own = weights.to(torch.float32).numpy().reshape(-1)[places]
        return cls(experts, np.append(starts, len(places)), places // max(top_k, 1), own)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        """Each expert, and its pairs."""
        for expert, start, stop in zip(self.experts, self.starts[:-1], self.starts[1:], strict=True):
            yield int(expert), slice(start, stop)
