"""Attention over a KV cache in blocks gives the very numbers that it gives over one in one piece."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from plain_attention import random, reference

from engine.host import BITS, BlockTable, HostAttention, vectors
from engine.host.attention import kernel

DIMS = (1, 8, 24, 80, 128)


def in_blocks(tensor, lengths, block_tokens, numbers, layout="head first"):
    """[requests, heads, tokens, dim] as [blocks, heads, tokens of a block, dim]; what no token fills is NaN."""
    _, heads, _, dim = tensor.shape
    shape = (max(map(max, numbers)) + 1, heads, block_tokens, dim)
    room = torch.full(shape, torch.nan, dtype=tensor.dtype)
    if layout == "token first":
        room = room.transpose(1, 2).contiguous().transpose(1, 2)
    for one, length, mine in zip(tensor, lengths, numbers, strict=True):
        for start in range(0, length, block_tokens):
            piece = one[:, start : min(start + block_tokens, length)]
            room[mine[start // block_tokens], :, : piece.shape[1]] = piece
    return room


def blocks_of(lengths, block_tokens, seed=0):
    """Shuffled numbers of blocks for each request, and some that nobody has."""
    counts = [-(-length // block_tokens) for length in lengths]
    numbers = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
    return [[numbers.pop() for _ in range(count)] for count in counts]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_bit_is_that_of_each_request_alone_in_one_piece(data):
    kv_heads, group, dim = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), data.draw(st.sampled_from(DIMS))
    dtype, block_tokens = data.draw(st.sampled_from(list(BITS))), 2 ** data.draw(st.integers(0, 7))
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    starts = [data.draw(st.integers(0, length - 1)) for length in lengths]
    seed = data.draw(st.integers(0, 99))
    query = random(len(lengths), kv_heads * group, dim, seed=seed)
    keys, values = (random(len(lengths), kv_heads, max(lengths), dim, dtype=dtype, seed=seed + n) for n in (1, 2))
    numbers = blocks_of(lengths, block_tokens, seed)
    rooms = [in_blocks(tensor, lengths, block_tokens, numbers) for tensor in (keys, values)]
    table = BlockTable.of(numbers, lengths, block_tokens)
    found = HostAttention()(query, *rooms, torch.tensor(starts), table=table)
    for r, length in enumerate(lengths):
        mine = slice(r, r + 1)
        whole = keys[mine, :, :length], values[mine, :, :length]
        assert torch.equal(found[mine], HostAttention()(query[mine], *whole, torch.tensor(starts[mine])))


def test_a_sliding_window_sees_its_last_tokens_alone():
    lengths, numbers = [40, 70], blocks_of([40, 70], 16)
    query, keys, values = random(2, 4, 16), random(2, 2, 70, 16, seed=1), random(2, 2, 70, 16, seed=2)
    rooms = [in_blocks(tensor, lengths, 16, numbers) for tensor in (keys, values)]
    starts = torch.tensor([40 - 33, 70 - 33])
    found = HostAttention()(query, *rooms, starts, table=BlockTable.of(numbers, lengths, 16))
    expected = reference(query[1:], keys[1:], values[1:], starts[1:])
    torch.testing.assert_close(found[1:].double(), expected, rtol=2e-6, atol=2e-6)


def test_blocks_may_be_shared_and_laid_out_token_first():
    """As by requests with one prompt."""
    numbers, lengths = [[3, 0], [3, 2]], [20, 31]
    query, one = random(2, 4, 16), random(1, 2, 31, 16, seed=1)
    keys = torch.cat([one, one])
    found = HostAttention()(
        query, *[in_blocks(keys, lengths, 16, numbers, "token first")] * 2, table=BlockTable.of(numbers, lengths, 16)
    )
    for r, length in enumerate(lengths):
        whole = one[:, :, :length]
        assert torch.equal(found[r : r + 1], HostAttention()(query[r : r + 1], whole, whole))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    lengths, numbers = [5, 64, 17, 33, 90], blocks_of([5, 64, 17, 33, 90], 16)
    query, keys = random(5, 6, 16), random(5, 3, 90, 16, seed=1)
    room, table = in_blocks(keys, lengths, 16, numbers), BlockTable.of(numbers, lengths, 16)
    with HostAttention(threads) as attention:
        assert torch.equal(attention(query, room, room, table=table), HostAttention()(query, room, room, table=table))


def test_scores_have_room_behind_the_last_token():
    """A tile that begins at a request's last token writes as many scores as it sums up."""
    for tokens in range(1, 40):
        scores = kernel.scratch_for(3, 16, tokens, np.dtype(np.float32))[2]
        assert scores.shape[1] >= tokens - 1 + vectors.SUMS


def test_both_are_one_kernel():
    query, keys = random(2, 4, 16), random(2, 2, 16, 16, seed=1)
    HostAttention()(query, keys, keys)
    compiled = len(kernel.attend_in_turns.signatures)
    HostAttention()(query, keys, keys, table=BlockTable.of([[1], [0]], [16, 3], 16))
    assert len(kernel.attend_in_turns.signatures) == compiled


@pytest.mark.parametrize(
    ("blocks", "tokens"), [([[0]], [17]), ([[0]], [0]), ([[0], []], [3, 1]), ([[0]], [3, 4]), ([[-1]], [3])]
)
def test_a_table_without_blocks_for_its_tokens_is_refused(blocks, tokens):
    with pytest.raises(ValueError, match="block table: "):
        BlockTable.of(blocks, tokens, 16)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (BlockTable.of([[0]], [3], 16), "does not fit 1 requests"),
        (BlockTable.of([[0], [3]], [3, 4], 16), "a table of 4 blocks of 16 tokens"),
        (BlockTable.of([[0], [1]], [3, 4], 8), "a table of 2 blocks of 8 tokens"),
    ],
)
def test_a_table_of_another_cache_is_refused(table, reason):
    keys = random(3, 2, 16, 16)
    with pytest.raises(ValueError, match=reason):
        HostAttention()(random(2, 4, 16), keys, keys, table=table)
