"""Where a micro-batch's attention is computed, and by what: our kernel on the host, or the model's own code."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from engine.device import intra_op_threads
from engine.host import HostAttention, unsupported
from engine.model import AsItLies, Attended, AttentionCall, InFlight, Kept, is_causal, own_attention

Room = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Memory for a tensor that goes to the device."""

POSITIONS = ("position_ids", "cache_position")
"""Tensors on the device that models hand to every attention, and that on the host only flash attention would read."""


def attend_on_device(call: AttentionCall, known: Sequence[AsItLies]) -> Attended:
    """The attention that the model would have used itself, on all that is known.

    The requests may lie in several places, one behind the other: what each of them attends to is its own alone.
    """
    attention, parts, first = own_attention(call), list[Attended](), 0
    for one in known:
        rows = slice(first, first + len(one.content.keys))
        mask = call.mask if call.mask is None or len(call.mask) == 1 else call.mask[rows]
        parts.append(attention(call.query[rows], *one.content, one.turned(mask), **call.kwargs))
        first = rows.stop
    if len(parts) == 1:
        return parts[0]
    outputs, weights = zip(*parts, strict=True)
    return torch.cat(outputs), None if weights[0] is None else torch.cat(weights)


class DecodeAttention:
    """Decode attention on the host for one batch. `kernel_calls` and `own_calls` count which path ran."""

    def __init__(self, kernel: HostAttention) -> None:
        self._kernel = kernel
        self._refused: dict[int, str] = {}  # by layer: why the kernel cannot be used, empty if it can
        self._weights = _OnceToHost()
        self.own_calls = 0
        self.kernel_calls = 0

    def by_kernel(self, call: AttentionCall, num_tokens: int, window: int | None) -> bool:
        """Whether our kernel computes this call on a cache of `num_tokens`; else the model's own attention does.

        The kernel's requests see all tokens but the padding before them. Those of a sliding window are all that a cache
        keeps which has the same `window`.
        """
        slides = window is not None and call.kwargs.get("sliding_window") == window
        if call.layer not in self._refused:
            kwargs = {**call.kwargs, "sliding_window": None} if slides else call.kwargs
            self._refused[call.layer] = unsupported(call.module, call.query, call.key, call.value, kwargs)
        if self._refused[call.layer]:
            return False
        return call.mask is None or ((slides or is_causal(call.mask)) and call.mask.shape[-1] == num_tokens)

    def __call__(self, micro_batch: InFlight, query: torch.Tensor, known: Kept, room: Room) -> torch.Tensor:
        """Attention output [batch, 1, heads, value_dim] in memory from `room`, of tensors on the host.

        `known` has the newest tokens already.
        """
        call = micro_batch.at
        assert isinstance(call, AttentionCall)
        if self.by_kernel(call, known.num_tokens, micro_batch.window(call.layer)):
            self.kernel_calls += 1
            lengths = micro_batch.lengths if any(micro_batch.padding) else None
            query = query[:, :, 0]
            out, scaling = room(query.shape, query.dtype), call.kwargs.get("scaling")
            return known.attend(self._kernel, query, lengths, scaling=scaling, out=out)[:, None]
        self.own_calls += 1
        kwargs = {name: self._weights(value) for name, value in call.kwargs.items() if name not in POSITIONS}
        own = own_attention(call, _OnHost(call.module, self._weights))
        with intra_op_threads(self._kernel.threads, 1):  # the lane has one, the kernel's own sleep
            all_known = known.as_it_lies
            output = own(query, *all_known.content, all_known.turned(micro_batch.mask_on_host), **kwargs)[0]
        return room(output.shape, output.dtype).copy_(output)


class _OnceToHost:
    """Tensors in host memory; a weight comes from the device once, because a copy makes the host wait for all of it."""

    def __init__(self) -> None:
        self._weights: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}  # by id, which the weight keeps its own

    def __call__(self, value: object) -> object:
        if not isinstance(value, torch.Tensor) or value.device.type == "cpu":
            return value
        if not isinstance(value, nn.Parameter):
            return value.cpu()
        if id(value) not in self._weights:
            self._weights[id(value)] = value, value.detach().cpu()
        return self._weights[id(value)][1]


class _OnHost:
    """An attention module seen with its tensors in host memory."""

    def __init__(self, module: nn.Module, to_host: _OnceToHost) -> None:
        self._module = module
        self._to_host = to_host

    def __getattr__(self, name: str) -> object:
        return self._to_host(getattr(self._module, name))
