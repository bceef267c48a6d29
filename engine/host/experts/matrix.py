"""One matrix of each expert of a layer, with or without a bias: for torch's products, and for the kernel."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.host.bits import BITS, Array, bits_of
from engine.host.experts.products import GROUP, LINE_BYTES
from engine.host.vectors import LANES

PIECE_WEIGHTS = 1 << 22
"""So many weights of another type are made float32 at a time: 16 MB, however large an expert is."""

NO_SCALES = np.empty((1, 1, 1), np.uint16)
NO_BIAS = np.empty((0, 0), np.float32)


class Packing(Protocol):
    """How an expert's matrix lies in its bytes: numbers of 4 or 8 bits, and behind them their scales."""

    @property
    def bits(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix of one expert, as the model knows it."""

    def unpack(self, packed: torch.Tensor, matrices: torch.Tensor) -> None:
        """Unpacks [experts, bytes] into [experts, *shape]."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`weights` [experts, output, input], or with input and output exchanged, or packed; `bias` [experts, output]."""

    weights: torch.Tensor
    bias: torch.Tensor | None
    is_transposed: bool
    packing: Packing | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input."""
        first, second = self.weights.shape[1:] if self.packing is None else self.packing.shape
        return (second, first) if self.is_transposed else (first, second)

    def product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """What the matrix of an expert makes of x [tokens, input]: [tokens, output], in the type of `x`."""
        matrix = self._unpacked(expert)
        matrix = matrix if self.is_transposed else matrix.T
        result = x.new_empty(len(x), matrix.shape[1])
        for start, stop in self._pieces(matrix, x.dtype):
            torch.mm(x, matrix[:, start:stop].to(x.dtype), out=result[:, start:stop])
        return result if self.bias is None else result.add_(self.bias[expert])

    def _unpacked(self, expert: int) -> torch.Tensor:
        if self.packing is None:
            return self.weights[expert]
        room = torch.empty(1, *self.packing.shape)
        self.packing.unpack(self.weights[expert : expert + 1], room)
        return room[0]

    def _pieces(self, matrix: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
        """Ranges of the output: one, where nothing is converted."""
        size, width = matrix.shape
        step = width if matrix.dtype == dtype else max(1, PIECE_WEIGHTS // max(1, size))
        return ((start, min(start + step, width)) for start in range(0, width, max(1, step)))

    def for_kernel(self) -> tuple[Array, Array, Array] | None:
        """Stored rows of each expert, their scales and biases; None where rows are no whole number of vectors."""
        output, size = self.shape
        width = LANES if self.is_transposed else GROUP if self.packing else self._line
        if (output if self.is_transposed else size) % width:
            return None
        bias = NO_BIAS if self.bias is None else self.bias.to(torch.float32).numpy()
        if self.packing is not None:
            return (*self._packed_rows(self.packing), bias)
        if self.weights.dtype not in BITS or not self.weights[:1].is_contiguous():
            return None
        return bits_of(self.weights), NO_SCALES, bias

    @property
    def _line(self) -> int:
        return max(LANES, LINE_BYTES // self.weights.dtype.itemsize)

    def _packed_rows(self, packing: Packing) -> tuple[Array, Array]:
        """Numbers and scales [experts, stored rows, bytes or scales of a row]: views of each expert's bytes."""
        outer, inner = packing.shape
        bytes_of_group = GROUP * packing.bits // 8
        if self.is_transposed:
            numbers, scales = (outer // GROUP * bytes_of_group, inner), (outer // GROUP, inner)
        else:
            numbers, scales = (outer, inner // GROUP * bytes_of_group), (outer, inner // GROUP)
        bytes_of_numbers = numbers[0] * numbers[1]
        kind = torch.uint8 if packing.bits == 4 else torch.int8
        found = self.weights[:, :bytes_of_numbers].view(kind).view(-1, *numbers)
        factors = self.weights[:, bytes_of_numbers:].view(torch.float16).view(-1, *scales)
        return found.numpy(), bits_of(factors)
