"""Weights packed number by number, as slowly and plainly as the format is described."""

from dataclasses import dataclass

import numpy as np
import torch

GROUP = 32


@dataclass(frozen=True)
class PlainPacking:
    """A matrix counts as [outer, GROUP, inner], the groups along its input: numbers, then a float16 scale a group."""

    bits: int
    shape: tuple[int, int]
    input_first: bool = False

    def random(self, num_experts: int, seed: int = 0) -> torch.Tensor:
        """Packed experts with any numbers and small scales."""
        generator = np.random.default_rng(seed)
        groups = self.shape[0] * self.shape[1] // GROUP
        numbers = generator.integers(0, 256, (num_experts, groups * GROUP * self.bits // 8), np.uint8)
        scales = generator.uniform(-0.02, 0.02, (num_experts, groups)).astype(np.float16)
        return torch.from_numpy(np.concatenate([numbers, scales.view(np.uint8)], 1))

    def unpack(self, packed: torch.Tensor, matrices: torch.Tensor) -> None:
        """Unpacks [experts, bytes] into [experts, *shape]."""
        inner = self.shape[1] if self.input_first else 1
        groups = self.shape[0] * self.shape[1] // GROUP
        for block, matrix in zip(packed.numpy(), matrices, strict=True):
            numbers, scales = np.split(block, [groups * GROUP * self.bits // 8])
            stored = numbers.reshape(groups // inner, -1, inner)
            if self.bits == 4:
                found = np.concatenate([stored & 15, stored >> 4], 1).astype(np.float64) - 8
            else:
                found = stored.view(np.int8).astype(np.float64)
            weights = found * scales.view(np.float16).astype(np.float64).reshape(-1, 1, inner)
            matrix.copy_(torch.from_numpy(weights.reshape(self.shape)))
