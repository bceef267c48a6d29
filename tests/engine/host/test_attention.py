"""Decode attention on the host: right to float32's last digits, whatever the shape, and only where it fits."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numba import njit
from other_processors import OTHER_PROCESSORS, made_for
from plain_attention import random, reference
from transformers import DeepseekV3Config, DynamicCache, GptOssConfig, MixtralConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, eager_attention_forward

from engine.host import BITS, HostAttention, turns, unsupported, vectors
from engine.host.attention import decode, kernel, tiles
from engine.host.bits import bits_of
from engine.host.vectors import narrow

GROUPS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 16)
DIMS = (1, 5, 8, 16, 24, 33, 48, 64, 80, 96, 128)


@st.composite
def problems(draw):
    requests, kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    dim, tokens = draw(st.sampled_from([1, 8, 16, 24, 80, 128])), draw(st.integers(1, 70))
    starts = draw(st.lists(st.integers(0, tokens - 1), min_size=requests, max_size=requests))
    seed = draw(st.integers(0, 99))
    query = random(requests, kv_heads * group, dim, seed=seed)
    keys, values = (random(requests, kv_heads, tokens, dim, seed=seed + n) for n in (1, 2))
    return query, keys, values, torch.tensor(starts)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_equals_float64_for_any_shape_and_any_padding(problem):
    query, keys, values, starts = problem
    found = HostAttention()(query, keys, values, starts)
    torch.testing.assert_close(found.double(), reference(query, keys, values, starts), rtol=2e-6, atol=2e-6)


def check_groups_and_dims(dtype, groups, dims):
    """Float32 queries, so that the result is not rounded; and as many tokens as there are tiles, more or less."""
    for group in groups:
        for dim in dims:
            tokens = 17 + (group * dim) % 19
            query = random(3, 2 * group, dim, seed=dim)
            keys, values = (random(3, 2, tokens, dim, dtype=dtype, seed=group + n) for n in (1, 2))
            starts = torch.tensor([0, tokens - 1, group])
            out = torch.empty_like(query)
            HostAttention()(query, keys, values, starts, out=out)
            expected = reference(query, keys, values, starts)
            torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", BITS)
def test_every_group_and_width_equals_float64(dtype):
    check_groups_and_dims(dtype, GROUPS, DIMS)


@pytest.mark.parametrize(
    ("features", "registers"),
    [
        ({"sse2": True, "avx": True, "avx512f": True}, (16, 16)),
        ({"sse2": True, "avx": True, "avx512f": False}, (8, 8)),
        ({"sse2": True}, (4, 8)),
        ({"neon": True}, (4, 16)),
        ({}, (4, 16)),
    ],
)
def test_a_tile_fits_the_registers_of_the_processor(features, registers):
    assert vectors.registers(features) == registers


@pytest.mark.parametrize("features", OTHER_PROCESSORS)
def test_with_the_registers_of_other_processors_it_is_the_same(features, monkeypatch):
    _, _, made = made_for(features, (vectors, tiles, kernel), monkeypatch)
    assert vectors.registers(features)[0] == made.LANES
    monkeypatch.setattr(decode, "attend_in_turns", made.attend_in_turns)
    monkeypatch.setattr(decode, "scratch_for", made.scratch_for)
    check_groups_and_dims(torch.bfloat16, (1, 3, 8, 12), (8, 24, 80, 128))


def test_what_is_kept_of_the_kernel_is_renewed_with_its_vectors():
    sources = b"".join(Path(module.__file__).read_bytes() for module in (vectors, tiles, turns))
    for function in (kernel.attend, kernel.attend_in_turns):
        cells = [cell.cell_contents for cell in function.py_func.__closure__]
        assert hashlib.sha256(sources).hexdigest() in cells


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    query = random(3, 8, 64)  # float32, so that the result is not rounded
    keys, values = random(3, 2, 300, 64, dtype=dtype, seed=1), random(3, 2, 300, 64, dtype=dtype, seed=2)
    starts = torch.tensor([0, 17, 299])
    found = HostAttention()(query, keys, values, starts)
    torch.testing.assert_close(found.double(), reference(query, keys, values, starts), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_has_the_type_of_the_query_and_is_rounded_once(dtype):
    query, keys, values = (random(*s, dtype=dtype) for s in ((2, 4, 32), (2, 2, 50, 32), (2, 2, 50, 32)))
    found = HostAttention()(query, keys, values)
    assert found.dtype == dtype
    exact = reference(query, keys, values, torch.zeros(2))
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_read_exactly(dtype):
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(64, 2, 1, 512)
    found = HostAttention()(torch.zeros(64, 2, 512), torch.zeros_like(values), values)  # one token has all the weight
    torch.testing.assert_close(found, values[:, :, 0].float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "heads apart"])
def test_the_result_is_written_where_it_is_wanted_and_nowhere_else(dtype, layout):
    query, keys, values = (random(*s, dtype=dtype) for s in ((3, 4, 16), (3, 2, 50, 16), (3, 2, 50, 16)))
    room = torch.full((5, 4, 32 if layout == "heads apart" else 16), 7.0, dtype=dtype)
    out = room[1:4, :, :16]
    found = HostAttention()(query, keys, values, out=out)
    assert found is out
    assert torch.equal(out, HostAttention()(query, keys, values))
    out[:] = 7
    assert (room == 7).all()


@pytest.mark.parametrize("out", [torch.empty(2, 4, 8), torch.empty(2, 4, 16).half()])
def test_a_result_that_does_not_fit_is_refused(out):
    with pytest.raises(ValueError, match="out is"):
        HostAttention()(random(2, 4, 16), random(2, 2, 5, 16), random(2, 2, 5, 16), out=out)


@njit
def rounded(numbers, out):
    for i in range(len(out)):
        out[i] = narrow(numbers[i], out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_any_float32_is_rounded_as_torch_rounds_it(dtype):
    bits = torch.randint(-(2**31), 2**31, (1 << 16,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    tie, nan_of_ones = 0x3F808000, 0x7FFFFFFF
    bits[:4] = torch.tensor([tie, tie + 0x10000, nan_of_ones, 0x7F7FFFFF])
    values, found = bits.view(torch.float32), torch.empty(len(bits), dtype=dtype)
    rounded(values.numpy(), bits_of(found))
    torch.testing.assert_close(found, values.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_the_highest_score_is_a_request_s_own():
    query, keys, values = random(2, 8, 16), random(2, 1, 48, 16, seed=1), random(2, 1, 48, 16, seed=2)
    query[1], keys[1] = query[1].abs() + 1, keys[1] - 50  # every score is far below 0, and below any share
    starts = torch.tensor([0, 5])  # 43 tokens: neither whole tiles nor whole vectors
    found = HostAttention()(query, keys, values, starts)
    torch.testing.assert_close(found[1].double(), reference(query, keys, values, starts)[1], rtol=1e-3, atol=1e-3)


def test_padding_is_not_read():
    query, keys, values = random(2, 4, 16), random(2, 2, 40, 16, seed=1), random(2, 2, 40, 16, seed=2)
    starts = torch.tensor([0, 23])
    expected = HostAttention()(query, keys, values, starts)
    for tensor in (keys, values):
        tensor[1, :, :23] = torch.nan
    assert torch.equal(HostAttention()(query, keys, values, starts), expected)


def test_what_lies_behind_the_last_token_is_not_read():
    query, keys, values = random(2, 4, 16), random(2, 2, 40, 16, seed=1), random(2, 2, 40, 16, seed=2)
    expected = HostAttention()(query, keys[:, :, :33].contiguous(), values[:, :, :33].contiguous())
    for tensor in (keys, values):
        tensor[:, :, 33:] = torch.nan
    assert torch.equal(HostAttention()(query, keys[:, :, :33], values[:, :, :33]), expected)


@pytest.mark.parametrize("layout", ["token first", "every other dim", "offset", "expanded"])
def test_any_layout_gives_the_same(layout):
    query, keys, values = random(3, 4, 16), random(3, 2, 40, 16, seed=1), random(3, 2, 40, 16, seed=2)
    if layout == "expanded":
        keys, values = keys[:1].expand(3, -1, -1, -1), values[:1].expand(3, -1, -1, -1)
    expected = HostAttention()(query, keys.contiguous(), values.contiguous())

    def laid_out(tensor):
        if layout == "token first":
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "every other dim":
            return tensor.repeat_interleave(2, -1)[..., ::2]
        if layout == "offset":
            return torch.cat([random(7), tensor.flatten()])[7:].view(tensor.shape)
        return tensor

    assert torch.equal(HostAttention()(query, laid_out(keys), laid_out(values)), expected)


def test_nan_and_infinity_reach_their_head_and_no_other():
    query, keys, values = random(3, 4, 16), random(3, 2, 40, 16, seed=1), random(3, 2, 40, 16, seed=2)
    keys[0, 1, 5, 3] = torch.nan
    values[1, 0, 39, 2] = torch.inf
    found = HostAttention()(query, keys, values)
    expected_nan = torch.zeros(3, 4, 16, dtype=torch.bool)
    expected_nan[0, 2:] = True
    assert torch.equal(found.isnan(), expected_nan)
    assert (found[1, :2, 2] == torch.inf).all()
    assert found[2].isfinite().all()


@pytest.mark.parametrize("scale", [1e-20, 100.0, 1e4])
def test_extreme_scores_do_not_overflow(scale):
    query, keys, values = random(2, 4, 16, scale=scale), random(2, 2, 40, 16, seed=1), random(2, 2, 40, 16, seed=2)
    expected = reference(query, keys, values, torch.zeros(2))
    torch.testing.assert_close(
        HostAttention()(query, keys, values).double(), expected, rtol=1e-5 * max(1, scale), atol=1e-5
    )


def test_shares_far_apart_keep_their_precision():
    keys = torch.zeros(1, 1, 3, 8)
    keys[0, 0, :, 0] = torch.tensor([0.0, -50.0, -86.0])
    values = torch.diag(torch.tensor([0.0, 1.0, 1.0]))[None, None].repeat(1, 1, 1, 3)[..., :8]
    query = torch.zeros(1, 1, 8)
    query[0, 0, 0] = 1.0
    found = HostAttention()(query, keys, values, scaling=1.0)
    np.testing.assert_allclose(found[0, 0, 1:3], np.exp([-50.0, -86.0]), rtol=5e-6)


def test_a_long_context_keeps_its_precision():
    query, keys = torch.zeros(1, 1, 8), random(1, 1, 20_000, 8)
    values = random(1, 1, 20_000, 8, seed=3) + 3
    found = HostAttention()(query, keys, values)
    torch.testing.assert_close(found[0, 0].double(), values[0, 0].double().mean(0), rtol=5e-6, atol=0)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_nothing(threads):
    query, keys, values = random(5, 6, 16), random(5, 3, 40, 16, seed=1), random(5, 3, 40, 16, seed=2)
    starts = torch.tensor([0, 3, 39, 20, 1])
    with HostAttention(threads) as attention:
        for _ in range(3):
            assert torch.equal(attention(query, keys, values, starts), HostAttention()(query, keys, values, starts))


@pytest.mark.parametrize("starts", [[0, 40], [-1, 0], [0], [0, 0, 0]])
def test_an_offset_outside_the_context_is_refused(starts):
    query, keys = random(2, 4, 16), random(2, 2, 40, 16)
    with pytest.raises(ValueError, match="first_seen"):
        HostAttention()(query, keys, keys, torch.tensor(starts))


@pytest.mark.parametrize(
    ("query", "keys", "values", "reason"),
    [
        (random(2, 4, 16), random(2, 2, 5, 16), random(2, 2, 5, 8), "differ in shape"),
        (random(2, 4, 16), random(2, 2, 5, 8), random(2, 2, 5, 8), "does not fit"),
        (random(3, 4, 16), random(2, 2, 5, 16), random(2, 2, 5, 16), "does not fit"),
        (random(2, 4, 16), random(2, 2, 0, 16), random(2, 2, 0, 16), "empty"),
        (random(2, 4, 16), random(2, 3, 5, 16), random(2, 3, 5, 16), "cannot be shared out"),
        (random(2, 4, 16), random(2, 2, 5, 16).double(), random(2, 2, 5, 16).double(), "types"),
        (random(2, 4, 16), random(2, 2, 5, 16), random(2, 2, 5, 16).half(), "types"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(query, keys, values, reason):
    with pytest.raises(ValueError, match=reason):
        HostAttention()(query, keys, values)


# beside the model's own attention ------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}


def decode_mask(padding, tokens):
    """The mask that a model gives its attention for the newest token."""
    config = MixtralConfig(**SMALL, attn_implementation="eager")
    visible = torch.ones(len(padding), tokens, dtype=torch.long)
    for row, pad in zip(visible, padding, strict=True):
        row[:pad] = 0

    cache = DynamicCache()
    cache.update(torch.zeros(len(padding), 2, tokens - 1, 8), torch.zeros(len(padding), 2, tokens - 1, 8), 0)
    position = torch.full((len(padding), 1), tokens - 1)
    newest = torch.zeros(len(padding), 1, 32)
    return create_causal_mask(
        config=config, inputs_embeds=newest, attention_mask=visible, past_key_values=cache, position_ids=position
    )


def test_equals_the_eager_attention_of_a_model_with_left_padding():
    module = MixtralAttention(MixtralConfig(**SMALL, head_dim=8), 0)
    padding = [0, 7, 19]
    query, keys, values = random(3, 4, 1, 8), random(3, 2, 20, 8, seed=1), random(3, 2, 20, 8, seed=2)
    mask = decode_mask(padding, 20)
    expected, _ = eager_attention_forward(module, query, keys, values, mask, scaling=module.scaling)
    found = HostAttention()(query[:, :, 0], keys, values, torch.tensor(padding), module.scaling)
    torch.testing.assert_close(found, expected[:, 0], rtol=2e-6, atol=2e-6)


def call(module, query_tokens=1, value_dim=8, **kwargs):
    query, keys = random(2, 4, query_tokens, 8), random(2, 2, 5, 8)
    return unsupported(module, query, keys, random(2, 2, 5, value_dim), kwargs)


def test_plain_grouped_attention_is_supported():
    module = MixtralAttention(MixtralConfig(**SMALL, head_dim=8), 0)
    assert call(module, scaling=0.3, dropout=0.0, sliding_window=None, position_ids=torch.zeros(2, 1)) == ""


def test_a_subclass_from_elsewhere_has_the_attention_of_its_class():
    class Mine(MixtralAttention):
        pass

    assert call(Mine(MixtralConfig(**SMALL, head_dim=8), 0)) == ""


def test_attention_with_sinks_is_left_to_the_model():
    module = GptOssAttention(GptOssConfig(**SMALL, head_dim=8, layer_types=["full_attention"]), 0)
    assert "function of its own" in call(module)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sliding_window": 4}, "sliding_window"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"softcap": 30.0}, "softcap"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"dropout": 0.1}, "dropout"),
        ({"output_attentions": True}, "weights"),
        ({"query_tokens": 2}, "one token"),
        ({"value_dim": 4}, "differ in shape"),
    ],
)
def test_what_the_kernel_lacks_is_named(given, reason):
    assert reason in call(MixtralAttention(MixtralConfig(**SMALL, head_dim=8), 0), **given)


def test_latent_attention_is_left_to_the_model():
    config = DeepseekV3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1)
    module = DeepseekV3Attention(config, 0)
    keys, values = random(2, 4, 5, module.qk_head_dim), random(2, 4, 5, module.v_head_dim)
    assert "differ in shape" in unsupported(module, random(2, 4, 1, module.qk_head_dim), keys, values, {})
