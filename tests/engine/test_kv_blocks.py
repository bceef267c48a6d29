"""The KV cache in blocks: what requests write they read, whoever was there before, and what they leave is free."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from mixtral_sizes import KV_BYTES

from engine.device import EmulatedDevice, Ledger
from engine.memory import HostBlocks, KVBlocks
from engine.model import KeysValues
from sim.admission import BLOCK_TOKENS
from sim.problem import Model
from traces.errors import InputError

LIKE = {0: (2, 8, 8, torch.float32), 3: (1, 4, 6, torch.bfloat16)}
"""Layers that keep keys and values: heads, width of keys and of values, type."""


def of_layer(layer, requests, tokens, seed=0):
    heads, key_dim, value_dim, dtype = LIKE[layer]
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        torch.randn(requests, heads, tokens, dim, generator=generator).to(dtype) for dim in (key_dim, value_dim)
    )
    return KeysValues(keys, values)


def pool(num_blocks, block_tokens=4, device=None, **options):
    host = HostBlocks(device or EmulatedDevice(None, None, 1 << 20), Ledger("host memory", None))
    like = {layer: of_layer(layer, 1, 1) for layer in LIKE}
    return KVBlocks(like, num_blocks, host, block_tokens=block_tokens, **options)


def read(blocks, layer, request):
    return KeysValues(*(torch.cat(parts, 2)[0] for parts in zip(*blocks.pieces(layer, request), strict=True)))


class Company:
    """Requests in blocks, and beside them what each has written."""

    def __init__(self, num_blocks, block_tokens):
        self.blocks = pool(num_blocks, block_tokens)
        self.written = {}
        self.seed = 0

    def add(self, tokens, width):
        """So many tokens more of each of these requests, with padding before them up to a width."""
        requests, self.seed = list(tokens), self.seed + 1
        try:
            table = self.blocks.extend(requests, list(tokens.values()))
        except InputError:  # there are not blocks for all
            return
        for layer in LIKE:
            new = of_layer(layer, len(requests), width, self.seed)
            self.blocks.write(layer, table, new, list(tokens.values()))
            for row, (request, count) in enumerate(tokens.items()):
                kept = self.written.setdefault((request, layer), [])
                kept.append(KeysValues(*(one[row, :, width - count :] for one in new)))

    def leave(self, request):
        self.blocks.release(request)
        for layer in LIKE:
            del self.written[request, layer]

    @property
    def requests(self):
        return sorted({request for request, _ in self.written})

    def check(self):
        held = 0
        for (request, layer), parts in self.written.items():
            found = read(self.blocks, layer, request)
            for whole, *ours in zip(found, *parts, strict=True):
                assert torch.equal(whole, torch.cat(ours, 1))
            held += self.blocks.blocks_for(found.num_tokens) if layer == 0 else 0
        assert sum(self.blocks.held_blocks.values()) == held
        assert self.blocks.free_blocks == self.blocks.num_blocks - held


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whoever_comes_and_goes_each_reads_what_it_wrote(data):
    company = Company(data.draw(st.integers(1, 12)), data.draw(st.sampled_from([1, 2, 4, 16])))
    for number in range(data.draw(st.integers(1, 12))):
        there = company.requests
        match data.draw(st.sampled_from(["enter", "step", "leave"])):
            case "enter":
                company.add({number: data.draw(st.integers(1, 20))}, 20)
            case "step" if there:
                company.add(dict.fromkeys(data.draw(st.permutations(there)), 1), 1)
            case "leave" if there:
                company.leave(data.draw(st.sampled_from(there)))
        company.check()
    for request in company.requests:
        company.leave(request)
    company.check()
    assert company.blocks.held_blocks == {}


def test_a_batch_of_padded_prompts_is_written_whole():
    blocks = pool(8)
    table = blocks.extend([5, 6], [3, 6])
    new = of_layer(0, 2, 6)
    blocks.write(0, table, new)
    assert torch.equal(read(blocks, 0, 5).keys, new.keys[0, :, 3:])
    assert torch.equal(read(blocks, 0, 6).values, new.values[1])


def test_padding_before_a_chunk_leaves_what_the_request_has():
    company = Company(8, 4)
    company.add({1: 5}, 5)
    company.add({1: 2}, 6)
    company.check()
    assert company.blocks.table([1]).tokens.tolist() == [7]


def test_pieces_are_views_of_the_room():
    blocks = pool(4)
    blocks.extend([1], [5])
    for piece in blocks.pieces(3, 1):
        for tensor in piece:
            tensor.fill_(7)
    assert [piece.num_tokens for piece in blocks.pieces(3, 1)] == [4, 1]
    assert sum(int((tensor == 7).sum()) for tensor in blocks.room(3)) == 5 * (4 + 6)


def test_without_blocks_for_all_nothing_changes():
    blocks = pool(4)
    blocks.extend([1], [7])
    with pytest.raises(
        InputError, match=r"request 3 needs 2 more blocks of 4 tokens of the KV cache, but 1 of 4 are left"
    ):
        blocks.extend([1, 2, 3], [1, 4, 8])
    assert blocks.free_blocks == 2
    assert blocks.table([1]).tokens.tolist() == [7]
    assert blocks.held_blocks == {1: 2}
    with pytest.raises(KeyError):
        blocks.table([2])


@pytest.mark.parametrize(("requests", "tokens"), [([1, 1], [1, 1]), ([1], [0]), ([1, 2], [1, -1])])
def test_what_cannot_be_meant_is_refused(requests, tokens):
    blocks = pool(4)
    with pytest.raises(ValueError, match="each once, with at least one token"):
        blocks.extend(requests, tokens)
    assert blocks.free_blocks == 4


@pytest.mark.parametrize("block_tokens", [0, -4, 12])
def test_blocks_of_other_sizes_are_refused(block_tokens):
    with pytest.raises(InputError, match=r"block_tokens = .* power of two"):
        pool(4, block_tokens)


def test_its_accounts_are_those_of_the_memory_plan():
    layers = Model.load("mixtral-8x7b").distinct_layers
    attention = layers[0].attention
    like = torch.empty(1, attention.num_kv_heads, 0, attention.head_dim, dtype=torch.bfloat16)
    host = HostBlocks(EmulatedDevice(None, None, 1 << 20), Ledger("host memory", None))
    blocks = KVBlocks({0: KeysValues(like, like)}, 10, host)
    assert blocks.block_bytes == BLOCK_TOKENS * layers[0].kv_bytes_per_token(16) == BLOCK_TOKENS * KV_BYTES
    blocks.extend([1, 2], [BLOCK_TOKENS, 3 * BLOCK_TOKENS])
    assert blocks.held_blocks == {1: 1, 2: 3}
    assert host.bytes_by_part() == {"kv cache": {"locked": 0, "pageable": 10 * BLOCK_TOKENS * KV_BYTES}}


def test_a_request_leaves_once():
    blocks = pool(4)
    blocks.extend([1], [1])
    blocks.release(1)
    with pytest.raises(KeyError):
        blocks.release(1)


def test_rooms_are_page_locked_where_that_is_asked_for():
    with EmulatedDevice(None, None, 1 << 20) as device:
        blocks = pool(4, device=device, locked=[3])
        assert blocks.locked_layers == {3}
        assert device.pinned.usage.current_bytes == sum(tensor.nbytes for tensor in blocks.room(3))
