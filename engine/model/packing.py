"""Experts' weights as whole numbers of 4 or 8 bits: for every 32 of them along a matrix's input a scale of 16 bits.

An expert's matrix is one range of bytes: first the numbers, then the scales. The matrix counts as `[outer, 32, inner]`,
where the 32 are a group along the input: `inner` is 1 where the input comes last, as torch has it, and the width of
the output where that comes last. Numbers of 8 bits are signed bytes `[outer, 32, inner]`. Those of 4 bits are stored
with 8 added, two a byte, `[outer, 16, inner]`: the low half of a byte is one of a group's first 16, the high half the
one 16 further on. Scales are float16, `[outer, inner]`. A weight is its number times its scale, as float32 has it,
rounded to the type that the model computes in.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch

GROUP = 32
"""Weights that share a scale."""

SCALE = torch.float16

NUMBER_BITS = {bits + SCALE.itemsize * 8 / GROUP: bits for bits in (4, 8)}
"""By what a weight takes with its part of the scale, the bits of its number."""

ZERO = 8
"""What numbers of 4 bits are stored with on top."""

PIECE_WEIGHTS = 1 << 18
"""So many are unpacked at a time where the host's cores do it: 1 MB of float32, which stays in a core's cache."""


@dataclass(frozen=True)
class PackedFormat:
    """How one expert's part of a fused parameter is packed. `shape` and `dtype` are those that the model knows."""

    bits: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    input_first: bool = False
    """Whether a matrix is [input, output]."""

    @property
    def input_size(self) -> int:
        """What must be a multiple of GROUP."""
        return self.shape[0] if self.input_first and len(self.shape) > 1 else self.shape[-1]

    @property
    def num_bytes(self) -> int:
        """Of one expert."""
        return self._code_bytes + self._groups * SCALE.itemsize

    @property
    def unpacked_bytes(self) -> int:
        """Of one expert as the model knows it."""
        return prod(self.shape) * self.dtype.itemsize

    def pack(self, matrices: torch.Tensor, packed: torch.Tensor) -> None:
        """Packs host tensors [experts, *shape] into [experts, num_bytes].

        A group's scale lets the weight that is furthest from zero be the lowest number, -8 or -128: what is unpacked
        packs to the same again.
        """
        lowest = -(1 << (self.bits - 1))
        for matrix, block in zip(matrices, packed, strict=True):
            groups = matrix.float().reshape(self._outer, GROUP, self._inner)
            least, most = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
            furthest = torch.where(-least > most, least, most)
            scales = (furthest / lowest).clamp_(-torch.finfo(SCALE).max, torch.finfo(SCALE).max).to(SCALE)
            divisor = torch.where(scales == 0, 1.0, scales.float())
            numbers = (groups / divisor).round_().clamp_(lowest, -1 - lowest).to(torch.int8)
            if self.bits == 4:
                stored = numbers.add_(ZERO).view(torch.uint8)
                codes = stored[:, : GROUP // 2] | (stored[:, GROUP // 2 :] << 4)
            else:
                codes = numbers.view(torch.uint8)
            block[: self._code_bytes].copy_(codes.reshape(-1))
            block[self._code_bytes :].view(SCALE).copy_(scales.reshape(-1))

    def unpack(self, packed: torch.Tensor, matrices: torch.Tensor) -> None:
        """Unpacks [experts, num_bytes] into [experts, *shape] on the same device."""
        outer, inner = self._outer, self._inner
        codes = packed[:, : self._code_bytes].view(-1, outer, GROUP * self.bits // 8, inner)
        scales = packed[:, self._code_bytes :].view(SCALE).view(-1, outer, 1, inner)
        groups = matrices.view(-1, outer, GROUP, inner)
        if groups.device.type != "cpu":
            self._unpack_at_once(codes, scales, groups)
            return
        rows = max(1, PIECE_WEIGHTS // (GROUP * inner))
        for expert in zip(codes, scales, groups, strict=True):
            for piece in zip(*(tensor.split(rows) for tensor in expert), strict=True):
                self._unpack_in_cache(*piece)

    def _unpack_in_cache(self, codes: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor) -> None:
        """By products in float32, one after the other in the same memory."""
        room = groups if groups.dtype is torch.float32 else torch.empty_like(groups, dtype=torch.float32)
        if self.bits == 4:
            room[:, : GROUP // 2].copy_(codes & 15)
            room[:, GROUP // 2 :].copy_(codes >> 4)
            room.sub_(ZERO)
        else:
            room.copy_(codes.view(torch.int8))
        room.mul_(scales.float())
        if room is not groups:
            groups.copy_(room)

    def _unpack_at_once(self, codes: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor) -> None:
        """By products that a device computes in float32 and rounds as it writes them."""
        factors = scales.float()
        if self.bits == 4:
            half = GROUP // 2
            torch.mul((codes & 15).view(torch.int8).sub_(ZERO), factors, out=groups[:, :, :half])
            torch.mul((codes >> 4).view(torch.int8).sub_(ZERO), factors, out=groups[:, :, half:])
        else:
            torch.mul(codes.view(torch.int8), factors, out=groups)

    @cached_property
    def _inner(self) -> int:
        return self.shape[1] if self.input_first and len(self.shape) > 1 else 1

    @cached_property
    def _groups(self) -> int:
        return prod(self.shape) // GROUP

    @cached_property
    def _outer(self) -> int:
        return self._groups // self._inner

    @cached_property
    def _code_bytes(self) -> int:
        return prod(self.shape) * self.bits // 8
