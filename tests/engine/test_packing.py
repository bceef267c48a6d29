"""Experts' weights in 4 and 8 bits: how many bytes, how close, and the same bytes whoever packs them when."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from engine.model import GROUP, NUMBER_BITS, PackedFormat
from sim.problem import packed_bytes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def formats(draw):
    bits, dtype, input_first = (draw(st.sampled_from(one)) for one in (sorted(NUMBER_BITS), DTYPES, (False, True)))
    inputs, outputs = GROUP * draw(st.integers(1, 4)), draw(st.integers(1, 70))
    matrix = (inputs, outputs) if input_first else (outputs, inputs)
    shape = draw(st.sampled_from((matrix, (inputs,))))
    return bits, PackedFormat(NUMBER_BITS[bits], shape, dtype, input_first)


def random(form, seed, scale=1.0, experts=3):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(experts, *form.shape, generator=generator) * scale).to(form.dtype)


def packed(form, matrices):
    made = torch.full((len(matrices), form.num_bytes), 255, dtype=torch.uint8)
    form.pack(matrices, made)
    return made


def unpacked(form, content):
    made = torch.full((len(content), *form.shape), math.nan, dtype=form.dtype)
    form.unpack(content, made)
    return made


def along_input(form, matrices):
    """Groups of weights that share a scale, in the last dimension."""
    last = matrices.transpose(-1, -2) if form.input_first and len(form.shape) > 1 else matrices
    return last.reshape(len(matrices), -1, GROUP).float()


@settings(max_examples=60)
@given(formats(), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 300.0]))
def test_a_weight_is_off_by_half_a_step_at_most(given_, seed, scale):
    bits, form = given_
    matrices = random(form, seed, scale)
    assert form.num_bytes == packed_bytes(math.prod(form.shape), bits)
    before, after = (along_input(form, one) for one in (matrices, unpacked(form, packed(form, matrices))))
    step = before.abs().amax(-1, keepdim=True) / (1 << form.bits - 1)
    off = (after - before).abs()
    highest = before * before.abs().amax(-1, keepdim=True).sign() >= step * ((1 << form.bits - 1) - 1)
    rounding = 4 * torch.finfo(torch.bfloat16 if form.dtype is torch.bfloat16 else torch.float16).eps * before.abs()
    limit = torch.where(highest | (before.abs() >= step * ((1 << form.bits - 1) - 1.5)), step, step / 2)
    assert bool((off <= 1.001 * limit + rounding).all())


@settings(max_examples=60)
@given(formats(), st.integers(0, 99))
def test_what_was_unpacked_packs_to_the_same_again(given_, seed):
    _, form = given_
    once = unpacked(form, packed(form, random(form, seed)))
    assert torch.equal(unpacked(form, packed(form, once)), once)


@given(formats(), st.integers(0, 99))
def test_an_expert_is_a_range_of_bytes_of_its_own(given_, seed):
    _, form = given_
    matrices = random(form, seed)
    together = packed(form, matrices)
    assert torch.equal(together[1:2], packed(form, matrices[1:2]))
    assert torch.equal(unpacked(form, together)[2:], unpacked(form, together[2:]))


@pytest.mark.parametrize("bits", NUMBER_BITS)
def test_where_numbers_and_scales_lie(bits):
    """One group of the numbers 0, -1, -2 … in halves: the furthest from zero is the lowest number."""
    form = PackedFormat(NUMBER_BITS[bits], (1, GROUP), torch.float32)
    lowest = 1 << form.bits - 1
    numbers = torch.arange(GROUP).remainder(lowest) - lowest
    content = packed(form, (numbers * 0.5).view(1, 1, GROUP))[0]
    assert content[-2:].view(torch.float16).item() == 0.5
    if bits == 4.5:
        assert content[:16].tolist() == [at % 8 + 16 * (at % 8) for at in range(16)]
    else:
        assert content[:32].view(torch.int8).tolist() == numbers.tolist()


@pytest.mark.parametrize("bits", NUMBER_BITS.values())
@pytest.mark.parametrize("values", [[0.0] * GROUP, [1e-9] * GROUP, [*[0.0] * 31, -3.0], [*[0.0] * 31, 1e30]])
def test_groups_that_are_empty_or_beyond_a_scale(bits, values):
    form = PackedFormat(bits, (1, GROUP), torch.float32)
    after = unpacked(form, packed(form, torch.tensor([[values]])))
    assert bool(after.isfinite().all())
    assert after.abs().max() <= max(map(abs, values))
    if values[-1] == -3.0:
        assert after.flatten().tolist() == values


def test_a_large_matrix_is_unpacked_in_pieces_like_a_small_one():
    form = PackedFormat(4, (700, 2 * GROUP), torch.bfloat16)
    large = PackedFormat(4, (7000, 2 * GROUP), torch.bfloat16)
    matrices = random(large, 3, experts=1)
    parts = [unpacked(form, packed(form, part)) for part in matrices.split(700, dim=1)]
    assert torch.equal(unpacked(large, packed(large, matrices)), torch.cat(parts, dim=1))
