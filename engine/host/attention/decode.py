"""Attention of decode on the host: one query token per request, where the KV cache is, at the speed of its memory.

Requests see ragged contexts: prompts padded on the left have an offset each, and padding is neither read nor computed.
Their tokens lie in one piece, or in blocks that a table names. Keys and values are float32, float16 or bfloat16; all
sums are in float32. What the kernel lacks (`unsupported`) is for the model's own attention.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from engine.host.attention.block_table import BlockTable
from engine.host.attention.kernel import ONE_BLOCK, Strides, attend_in_turns, scratch_for
from engine.host.bits import BITS, Array, bits_of
from engine.host.threads import HostThreads
from engine.model import eager_attention


class HostAttention:
    """Decode attention with `threads` threads, the caller's included. A context manager, used from one thread."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.host_threads = HostThreads(threads)

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        first_seen: torch.Tensor | None = None,
        scaling: float | None = None,
        out: torch.Tensor | None = None,
        table: BlockTable | None = None,
    ) -> torch.Tensor:
        """Softmax attention of each request's newest token over its tokens `first_seen` to the last.

        query [requests, query_heads, head_dim]; keys, values [requests, kv_heads, tokens, head_dim], the newest token's
        included, views of larger buffers welcome; first_seen [requests], None: everything; scaling, None:
        1 / sqrt(head_dim). Returns [requests, query_heads, head_dim] in the query's dtype: `out`, if it is given, a
        tensor that shares no memory with the others. With a `table`, keys and values are [blocks, kv_heads, tokens of a
        block, head_dim], and a request's tokens are those of its blocks. Raises ValueError for shapes or types that
        `unsupported` refuses.
        """
        reason = _unsupported_tensors(query, keys, values, len(keys) if table is None else len(table.tokens))
        reason = reason or _unsupported_out(query, out) or _unsupported_table(keys, table)
        if reason:
            raise ValueError(f"attention on the host: {reason}")
        requests, (_, kv_heads, tokens, head_dim) = len(query), keys.shape
        group = query.shape[1] // kv_heads
        table, block_bits = (_one_piece(requests, tokens), ONE_BLOCK) if table is None else (table, _bits(tokens))
        starts = _starts(first_seen, table.tokens)
        scale = np.float32(head_dim**-0.5 if scaling is None else scaling)
        found = torch.empty(query.shape, dtype=query.dtype) if out is None or not out.is_contiguous() else out
        into = bits_of(found).reshape(requests, kv_heads, group, head_dim)
        lie = *_rows(keys), *_rows(values), table.blocks, block_bits
        problem = (bits_of(query.contiguous()), scale, *lie, starts, table.tokens, into)
        seen = table.tokens - starts
        most_seen, read_bytes = int(seen.max()), 2 * int(seen.sum()) * kv_heads * head_dim * keys.itemsize

        def work(turns: Array) -> bool:
            scratch = scratch_for(group, head_dim, most_seen, problem[2].dtype)
            return bool(attend_in_turns(*problem, scratch, turns))

        self.host_threads.share_out(work, (requests * kv_heads,), read_bytes)
        return found if out is None or out is found else out.copy_(found)

    def prepare(self, dtype: torch.dtype) -> None:
        """Compiles for keys and values of `dtype`, or loads what was compiled before: seconds that decode is spared."""
        keys = torch.zeros(1, 1, 1, 1, dtype=dtype)
        self(keys[0], keys, keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.host_threads.close()


def unsupported(
    module: nn.Module, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kwargs: Mapping[str, Any]
) -> str:
    """Why the kernel cannot stand in for the attention of `module` in decode; empty if it can.

    query [requests, query_heads, 1, head_dim] and `kwargs` as the module hands them to its attention function. The
    module's own eager attention must be the library's standard function, to the last instruction: sinks, soft caps
    and whatever a model adds show there. The mask is not looked at.
    """
    if query.dim() != 4 or query.shape[2] != 1:
        return f"a query of shape {list(query.shape)}: one token per request is needed"
    if not _is_standard(eager_attention(module)):
        return f"{type(module).__name__} has an attention function of its own"
    for name in ("sliding_window", "s_aux", "softcap", "position_bias"):
        if kwargs.get(name) is not None:
            return f"{name} is set"
    if kwargs.get("dropout") or kwargs.get("output_attentions"):
        return "dropout or attention weights are asked for"
    return _unsupported_tensors(query[:, :, 0], keys, values, len(keys))


def _unsupported_tensors(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, requests: int) -> str:
    """`query` [requests, query_heads, head_dim]; keys and values are those of so many requests."""
    if keys.shape != values.shape:
        return f"keys {list(keys.shape)} and values {list(values.shape)} differ in shape"
    if query.dim() != 3 or keys.dim() != 4 or query.shape[0] != requests or query.shape[2] != keys.shape[3]:
        return (
            f"a query of shape {list(query.shape)} does not fit {requests} requests, keys of shape {list(keys.shape)}"
        )
    if 0 in keys.shape or not requests:
        return f"keys of shape {list(keys.shape)} for {requests} requests are empty"
    if query.shape[1] % keys.shape[1]:
        return f"{query.shape[1]} query heads cannot be shared out over {keys.shape[1]} kv heads"
    if query.dtype not in BITS or keys.dtype not in BITS or values.dtype != keys.dtype:
        return f"types {query.dtype}, {keys.dtype}, {values.dtype}: float32, float16 or bfloat16 are needed"
    return ""


def _unsupported_table(keys: torch.Tensor, table: BlockTable | None) -> str:
    if table is None or (table.num_blocks <= len(keys) and table.block_tokens == keys.shape[2]):
        return ""
    named = f"a table of {table.num_blocks} blocks of {table.block_tokens} tokens"
    return f"{named} does not fit keys of shape {list(keys.shape)}: blocks, heads, tokens, head_dim"


def _unsupported_out(query: torch.Tensor, out: torch.Tensor | None) -> str:
    if out is None or (out.shape == query.shape and out.dtype == query.dtype):
        return ""
    return f"out is {out.dtype} {list(out.shape)}: {query.dtype} {list(query.shape)} is needed, as of the query"


def _is_standard(eager: object) -> bool:
    """Whether this does what the library's plain attention does: matmul, scale, add the mask, softmax, matmul."""
    from transformers.models.llama import modeling_llama as standard

    own_repeat = getattr(eager, "__globals__", {}).get("repeat_kv")
    return _same_code(eager, standard.eager_attention_forward) and _same_code(own_repeat, standard.repeat_kv)


def _same_code(one: object, other: object) -> bool:
    def content(function: object) -> tuple[object, ...] | None:
        code = getattr(function, "__code__", None)
        return code and (code.co_code, code.co_consts, code.co_names, code.co_varnames)

    return content(one) is not None and content(one) == content(other)


def _one_piece(requests: int, tokens: int) -> BlockTable:
    """Each request's tokens in one block."""
    return BlockTable(np.arange(requests).reshape(-1, 1), np.full(requests, tokens), tokens, tokens, requests)


def _bits(block_tokens: int) -> int:
    return block_tokens.bit_length() - 1


def _starts(first_seen: torch.Tensor | None, tokens: Array) -> Array:
    if first_seen is None:
        return np.zeros(len(tokens), np.int64)
    starts: Array = first_seen.to("cpu", torch.int64).contiguous().numpy()
    if starts.shape != tokens.shape or starts.min() < 0 or (starts >= tokens).any():
        needed = f"each needs 0 to {tokens.min() - 1}, or to its last token"
        raise ValueError(f"first_seen = {starts.tolist()} for {len(tokens)} requests: {needed}")
    return starts


def _rows(tensor: torch.Tensor) -> tuple[Array, Strides]:
    """The memory that [requests, heads, tokens, dim] lies in as rows of dim, and the rows from one to the next."""
    dim = tensor.shape[-1]
    *outer, inner = tensor.stride()
    if inner != 1 or any(stride % dim for stride in outer):
        tensor = tensor.contiguous()
        *outer, inner = tensor.stride()
    strides = tuple(stride // dim for stride in outer)
    num_rows = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=False))
    return bits_of(tensor.as_strided((num_rows, dim), (dim, 1))), strides  # type: ignore[return-value]
