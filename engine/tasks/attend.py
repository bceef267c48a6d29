"""Where a micro-batch's attention is computed, and by what: our kernel on the host, or the model's own code."""

from collections.abc import Callable

import torch
from torch import nn

from engine.attention import HostAttention, unsupported
from engine.device import intra_op_threads
from engine.model import AttentionCall, InFlight, KeysValues, is_causal, own_attention

Room = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Memory for a tensor that goes to the device."""


def attend_on_device(call: AttentionCall, known: KeysValues) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention that the model would have used itself, on all that is known."""
    return own_attention(call)(call.query, known.keys, known.values, call.mask, **call.kwargs)


class DecodeAttention:
    """Decode attention on the host for one batch. `kernel_calls` and `own_calls` count which path ran."""

    def __init__(self, kernel: HostAttention) -> None:
        self._kernel = kernel
        self._refused: dict[int, str] = {}  # by layer: why the kernel cannot be used, empty if it can
        self.own_calls = 0
        self.kernel_calls = 0

    def by_kernel(self, call: AttentionCall, num_tokens: int) -> bool:
        """Whether our kernel computes this call on a cache of `num_tokens`; else the model's own attention does.

        The kernel's requests see all tokens but the padding before them.
        """
        if call.layer not in self._refused:
            self._refused[call.layer] = unsupported(call.module, call.query, call.key, call.value, call.kwargs)
        if self._refused[call.layer]:
            return False
        return call.mask is None or (is_causal(call.mask) and call.mask.shape[-1] == num_tokens)

    def __call__(self, micro_batch: InFlight, query: torch.Tensor, known: KeysValues, room: Room) -> torch.Tensor:
        """Attention output [batch, 1, heads, value_dim] in memory from `room`, of tensors on the host."""
        call = micro_batch.at
        assert isinstance(call, AttentionCall)
        if self.by_kernel(call, known.num_tokens):
            self.kernel_calls += 1
            starts = None if call.mask is None else torch.tensor(micro_batch.padding)
            query = query[:, :, 0]
            return self._kernel(query, *known, starts, call.kwargs.get("scaling"), room(query.shape, query.dtype))[
                :, None
            ]
        self.own_calls += 1
        kwargs = {name: _to_host(value) for name, value in call.kwargs.items()}
        own = own_attention(call, _OnHost(call.module))
        with intra_op_threads(self._kernel.threads, 1):  # the lane has one, the kernel's own sleep
            output = own(query, *known, micro_batch.mask_on_host, **kwargs)[0]
        return room(output.shape, output.dtype).copy_(output)


class _OnHost:
    """An attention module seen with its tensors in host memory; nothing changes where they are there already."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        return _to_host(getattr(self._module, name))


def _to_host(value: object) -> object:
    return value.cpu() if isinstance(value, torch.Tensor) else value
