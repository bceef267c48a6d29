"""One matrix of each expert of a layer, with or without a bias."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

PIECE_WEIGHTS = 1 << 22
"""So many weights of another type are made float32 at a time: 16 MB, however large an expert is."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`weights` [experts, output, input], or with input and output exchanged; `bias` [experts, output]."""

    weights: torch.Tensor
    bias: torch.Tensor | None
    is_transposed: bool

    def product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """What the matrix of an expert makes of x [tokens, input]: [tokens, output], in the type of `x`."""
        matrix = self.weights[expert] if self.is_transposed else self.weights[expert].T
        result = x.new_empty(len(x), matrix.shape[1])
        for start, stop in self._pieces(matrix, x.dtype):
            torch.mm(x, matrix[:, start:stop].to(x.dtype), out=result[:, start:stop])
        return result if self.bias is None else result.add_(self.bias[expert])

    def _pieces(self, matrix: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
        """Ranges of the output: one, where nothing is converted."""
        size, width = matrix.shape
        step = width if matrix.dtype == dtype else max(1, PIECE_WEIGHTS // max(1, size))
        return ((start, min(start + step, width)) for start in range(0, width, max(1, step)))
