"""The nouns Attention, Layer and Model, and the presets.

Oracles: what the models' authors published, the sizes MoE-Lightning states (arXiv 2411.11217), sums made by hand.
"""

import itertools
import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, strategies as st

from sim.problem import Layer, Model, Widths
from sim.problem.model.attention import (
    CompressedAttention,
    HeadAttention,
    Indexer,
    Keeping,
    LatentAttention,
    NoAttention,
    Recurrent,
    SeveralAttentions,
)
from sim.problem.model.feed_forward import FeedForward
from sim.problem.presets import MODELS
from traces.errors import InputError


def preset_config(name):
    return json.loads(MODELS.path(name).read_text())


def moe_layer(**changes):
    attention = HeadAttention(hidden_size=8, num_query_heads=2, num_kv_heads=1, head_dim=4, value_head_dim=4)
    layer = Layer(attention, 4, 2, expert=FeedForward(8, 16), router_params=32, norm_params=16)
    return replace(layer, **changes)


HEADS = HeadAttention(8, 2, 1, 4, 4)
WIDER = moe_layer(attention=replace(moe_layer().attention, hidden_size=16))


def tiny_model(**changes):
    return Model("tiny", 10, (moe_layer(),) * 3, **changes)


# --- presets against what was published ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Model.presets())
def test_preset_has_the_published_number_of_parameters(name):
    assert Model.load(name).total_params == pytest.approx(preset_config(name)["_published_params"], rel=0.01)


def test_every_promised_preset_is_there():
    promised = "mixtral-8x7b mixtral-8x22b dbrx qwen3-30b-a3b qwen3-235b-a22b olmoe-1b-7b gpt-oss-20b gpt-oss-120b"
    assert set(Model.presets()) >= set(f"{promised} deepseek-v2-lite deepseek-v3 phi-3.5-moe".split())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mixtral-8x7b", 12.9e9),
        ("mixtral-8x22b", 39e9),
        ("dbrx", 36e9),
        ("qwen3-30b-a3b", 3.3e9),
        ("qwen3-235b-a22b", 22e9),
        ("olmoe-1b-7b", 1.3e9),
        ("deepseek-v3", 37e9),
        ("phi-3.5-moe", 6.6e9),
    ],
)
def test_active_parameters_are_those_published(name, published):
    assert Model.load(name).active_params == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("name", "published"), [("gpt-oss-20b", 3.61e9), ("gpt-oss-120b", 5.13e9), ("deepseek-v2-lite", 2.4e9)]
)
def test_active_parameters_without_the_input_embedding_where_the_authors_leave_it_out(name, published):
    model = Model.load(name)
    assert model.active_params - model.embedding_params == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_native_bytes_of_gpt_oss_are_those_of_its_checkpoint(name, gib):
    """arXiv 2508.10925, table 1."""
    model = Model.load(name)
    assert (model.experts_bytes() + model.resident_bytes()) / 2**30 == pytest.approx(gib, rel=0.005)


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "expert_width", "experts_bytes"),
    [
        ("mixtral-8x7b", 32, 4096, 14336, 2.819e9),
        ("mixtral-8x22b", 56, 6144, 16384, 4.832e9),
        ("dbrx", 40, 6144, 10752, 6.342e9),
    ],
)
def test_layers_have_the_sizes_that_moe_lightning_states(name, layers, hidden, expert_width, experts_bytes):
    model = Model.load(name)
    layer = model.layers[0]
    assert (model.num_layers, model.hidden_size, layer.expert.intermediate_size) == (layers, hidden, expert_width)
    assert layer.experts_bytes(16) == pytest.approx(experts_bytes, rel=2e-4)
    assert layer.kv_bytes_per_token(16) == 4096


def test_mixtral_moves_what_moe_lightning_states_per_token():
    layer = Model.load("mixtral-8x7b").layers[0]
    assert layer.qkv_bytes_per_token(16) == 12288
    assert layer.hidden_bytes_per_token(16) == 8192
    assert layer.attention_output_bytes_per_token(16) == 8192


# --- a layer's work --------------------------------------------------------------------------------------------------


def test_flops_of_a_mixtral_layer_add_up_by_hand():
    layer, tokens = Model.load("mixtral-8x7b").layers[0], 3
    assert layer.pre_attn_flops(tokens) == 2 * tokens * 4096 * (4096 + 2 * 1024)
    assert layer.out_proj_flops(tokens) == 2 * tokens * 4096 * 4096
    assert layer.ffn_flops(tokens) == 2 * tokens * (4096 * 8 + 2 * 3 * 4096 * 14336)
    assert layer.attention.decode_flops(tokens * 512, tokens) == 4 * tokens * 512 * 32 * 128


def test_a_dense_layer_has_its_network_and_no_experts():
    dense, sparse = Model.load("deepseek-v3").layers[2:4]
    assert dense.dense_ffn_params == 3 * 7168 * 18432
    assert dense.ffn_flops(1) == 2 * 3 * 7168 * 18432
    assert (dense.num_experts, dense.expert_params, dense.experts_bytes(16), dense.experts_touched(100)) == (0, 0, 0, 0)
    assert (sparse.num_experts, sparse.dense_ffn_params) == (256, 0)
    assert sparse.expert_params == sparse.shared_expert_params == 3 * 7168 * 2048
    assert sparse.ffn_flops(1) == 2 * (256 * 7168 + 256 + 9 * 3 * 7168 * 2048)


def test_latent_attention_caches_one_compressed_vector_and_its_rotary_key():
    """DeepSeek-V3: 512 + 64 numbers a token and layer, whatever the 128 heads."""
    layer = Model.load("deepseek-v3").layers[0]
    assert layer.kv_bytes_per_token(16) == 2 * (512 + 64)
    assert layer.qkv_bytes_per_token(16) == 2 * (128 * (512 + 64) + (512 + 64))
    assert layer.attention_output_bytes_per_token(16) == 2 * 128 * 512


def test_latent_attention_works_on_the_cache_or_on_expanded_heads():
    attention = Model.load("deepseek-v3").layers[0].attention
    assert attention.decode_flops(10, 1) == 2 * 10 * 128 * ((512 + 64) + 512)
    assert attention.prompt_flops(5, 25) == 2 * 25 / 2 * 128 * ((128 + 64) + 128)


def test_a_pair_of_tokens_costs_the_same_in_prompts_and_in_decode_without_latent_attention():
    attention = Model.load("mixtral-8x7b").layers[0].attention
    assert attention.prompt_flops(4, 20) == attention.decode_flops(10, 1)


def test_attention_output_is_not_the_hidden_state_where_heads_are_wider():
    layer = Model.load("qwen3-30b-a3b").layers[0]
    assert layer.hidden_bytes_per_token(16) == 2 * 2048
    assert layer.attention_output_bytes_per_token(16) == 2 * 32 * 128


def test_experts_touched_is_the_mean_over_all_routings():
    """Four experts, two a token, two tokens: all 36 pairs of choices, counted."""
    choices = list(itertools.combinations(range(4), 2))
    touched = [len({*first, *second}) for first in choices for second in choices]
    assert moe_layer().experts_touched(2) == pytest.approx(sum(touched) / len(touched))


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 500))
def test_experts_touched_grows_from_top_k_to_all(num_experts, top_k, tokens):
    layer = moe_layer(num_experts=num_experts, top_k=min(top_k, num_experts))
    assert layer.experts_touched(0) == 0
    assert layer.experts_touched(1) == pytest.approx(layer.top_k)
    assert layer.experts_touched(tokens) <= layer.experts_touched(tokens + 1) <= num_experts


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_window_bounds_what_is_attended(context, window):
    layer = moe_layer()
    assert layer.attended(context) == context
    limited = replace(layer, attention=replace(layer.attention, window=window))
    assert limited.attended(context) == min(context, window)


@given(st.sampled_from([2, 4, 4.25, 8, 16, 32]))
def test_bytes_of_the_parts_are_the_bytes_of_the_whole(bits):
    model = Model.load("gpt-oss-20b")
    weight_bytes = model.experts_bytes(Widths.alike(bits)) + model.resident_bytes(Widths.alike(bits))
    assert weight_bytes == pytest.approx(model.total_params * bits / 8, abs=2 * model.num_layers + 1)


def test_bytes_are_rounded_up():
    layer = moe_layer(expert=FeedForward(1, 1))  # an expert of three weights
    assert (layer.expert_bytes(4), layer.experts_bytes(4)) == (2, 6)


# --- kinds of attention ----------------------------------------------------------------------------------------------


@given(
    context=st.integers(0, 5000),
    requests=st.integers(1, 9),
    window=st.none() | st.integers(1, 300),
    stride=st.none() | st.integers(2, 60),
    top_k=st.none() | st.integers(1, 200),
)
def test_what_is_attended_to_is_kept_and_what_is_kept_never_shrinks(context, requests, window, stride, top_k):
    keeping = Keeping(window, stride, top_k)
    kept = keeping.kept(context, requests)
    assert keeping.attended(context, requests) <= kept <= keeping.kept(context + 1, requests)
    assert keeping.indexed(context, requests) <= kept
    assert keeping.pairs(context, context**2) <= context**2 / 2 * (1 + 1 / (stride or context + 1)) + 1


def test_far_entries_stand_for_several_tokens_each_and_an_index_chooses_among_them():
    """DeepSeek-V4: 128 near tokens one by one, the others by fours, of which 512 are looked at."""
    keeping = Keeping(window=128, stride=4, top_k=512)
    assert keeping.kept(10_000, 1) == 128 + 2500
    assert keeping.attended(10_000, 1) == 128 + 512
    assert keeping.indexed(10_000, 1) == 2500
    assert replace_top(keeping, None).attended(10_000, 1) == 128 + 2500


def replace_top(keeping, top_k):
    return keeping._replace(top_k=top_k)


def test_an_index_scores_all_keys_and_attention_sees_the_best_alone():
    plain = HeadAttention(8, 2, 1, 4, 4)
    indexed = replace(plain, indexer=Indexer(3, 5, 100, 8, 8, extra_params=10))
    assert indexed.decode_flops(1000, 1) == 2 * (100 * 2 * (4 + 4) + 1000 * 3 * 5)
    assert indexed.pre_params - plain.pre_params == 3 * 5 * 8 + 5 * 8 + 3 * 8 + 10
    assert (indexed.index_key_dim, indexed.new_width - plain.new_width) == (5, 5)
    assert indexed.cached_width == plain.cached_width, "keys and values are kept all the same"
    pooled = replace(plain, indexer=Indexer(3, 5, 100, 8, 8, pool=4))
    assert pooled.decode_flops(1000, 1) == 2 * (100 * 2 * (4 + 4) + 250 * 3 * 5)


def test_a_state_costs_the_same_whatever_came_before():
    state = Recurrent(8, "state", 6, 12, 6, in_weights=100, state_numbers=36, passes=3, convolved=10, kernel=4)
    assert state.decode_flops(10, 2) == state.decode_flops(10_000, 2) == 2 * 2 * (3 * 36 + 10 * 4)
    assert state.state_bytes == 36 * 4 + 2 * 10 * 3
    assert (state.cached_width, state.keeping.kept(50, 1) * state.cached_width) == (0, 0)
    chunked = replace(state, chunk=64)
    assert chunked.prompt_flops(5, 25) - state.prompt_flops(5, 25) == 2 * 5 * 32 * 12


def test_several_attentions_add_up():
    both = SeveralAttentions((HEADS, HEADS))
    assert both.pre_params == 2 * HEADS.pre_params
    assert both.cached_width == 2 * HEADS.cached_width
    assert both.decode_flops(30, 1) == 2 * HEADS.decode_flops(30, 1)


def test_a_layer_without_attention_keeps_and_computes_nothing_between_tokens():
    layer = moe_layer(attention=NoAttention(8))
    assert (layer.kv_bytes_per_token(16), layer.attention.decode_flops(100, 1), layer.qkv_bytes_per_token(16)) == (
        0,
        0,
        0,
    )
    assert layer.non_expert_params == 32 + 16


def test_compressed_attention_has_what_one_layer_of_deepseek_v4_has():
    """By hand from the shapes of its modules: 64 heads of 512 over one head of keys that are values."""
    layer = CompressedAttention(4096, 64, 512, 1024, 128, 128, 512, 8, 1024)
    queries, keys, compressor = 1024 * (4096 + 64 * 512), 4096 * 512, 2 * 4096 * 512
    assert layer.pre_weights == queries + keys + compressor
    assert layer.post_weights == 8192 * 4096 + 4096 * 8192
    assert layer.decode_flops(128, 1) == 2 * 2 * 64 * 512 * (128 + 1)


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Model.presets())
def test_layer_kinds_name_the_distinct_layers(name):
    model = Model.load(name)
    assert tuple(model.distinct_layers[kind] for kind in model.layer_kinds) == model.layers
    assert len(set(model.distinct_layers)) == len(model.distinct_layers) == max(model.layer_kinds) + 1


def test_windows_alternate_in_gpt_oss():
    model = Model.load("gpt-oss-20b")
    assert model.layer_kinds == (0, 1) * 12
    assert [layer.attended(1000) for layer in model.layers[:4]] == [128, 1000, 128, 1000]


def test_tied_embeddings_are_stored_once_and_still_computed():
    untied, tied = tiny_model(), tiny_model(tie_embeddings=True)
    assert untied.total_params - tied.total_params == tied.embedding_params == 10 * 8
    assert tied.head_params == 0
    assert tied.head_flops(5) == untied.head_flops(5) == 2 * 5 * 10 * 8
    assert tied.head_bytes(Widths.alike(4)) == 10 * 8 / 2
    assert tied.head_bytes() == tied.head_bytes(Widths.alike(16)) == 2 * 10 * 8


def test_total_is_ends_and_layers():
    model = tiny_model(final_norm_params=8, head_bias=True)
    attention, expert = 8 * (8 + 2 * 4) + 8 * 8, 3 * 8 * 16
    assert model.total_params == 3 * (attention + 4 * expert + 32 + 16) + 2 * 10 * 8 + 10 + 8
    assert model.total_params - model.active_params == 3 * 2 * expert
    assert model.kv_bytes_per_token(16) == 3 * 2 * (4 + 4)


def test_biases_and_gates_are_counted_where_they_are():
    plain = moe_layer().attention
    full = replace(plain, qkv_bias=True, output_bias=True, gate_width=8, extra_params=5)
    assert full.pre_params - plain.pre_params == (8 + 2 * 4) + 8 * 8 + 5
    assert full.post_params - plain.post_params == 8
    assert full.pre_weights - plain.pre_weights == 8 * 8
    latent = LatentAttention(8, 2, 2, 2, 4, 6, query_rank=4)
    assert replace(latent, gate_weights=64).pre_weights - latent.pre_weights == 8 * 8
    assert FeedForward(8, 16, bias=True).params - FeedForward(8, 16).params == 2 * 16 + 8


def test_a_summary_fits_on_one_line():
    assert str(Model.load("mixtral-8x7b")) == (
        "mixtral-8x7b: 46.7 B parameters, 12.9 B active, 32 layers, 2 of 8 experts"
    )
    assert "6 of 64 experts + shared" in str(Model.load("deepseek-v2-lite"))
    assert "experts, weights: experts 4.25" in str(Model.load("gpt-oss-20b"))
    assert str(Widths(experts=4.25)) == "experts 4.25, rest 16 bits"
    assert str(Widths.alike(8.5)) == "8.5 bits"


def test_nouns_are_frozen():
    model = tiny_model()
    with pytest.raises(FrozenInstanceError):
        model.vocab_size = 1
    with pytest.raises(FrozenInstanceError):
        model.layers[0].top_k = 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: moe_layer(top_k=5), r"Layer.top_k must be between 1 and num_experts = 4, got 5"),
        (lambda: moe_layer(top_k=0), r"Layer.top_k must be between 1"),
        (lambda: moe_layer(num_experts=0, top_k=0), r"Layer.expert and num_experts must agree"),
        (lambda: moe_layer(norm_params=-1), r"Layer.norm_params must be at least 0, got -1"),
        (lambda: FeedForward(8, 0), r"FeedForward.intermediate_size must be at least 1, got 0"),
        (lambda: LatentAttention(8, 2, 4, 4, 4, 0), r"LatentAttention.kv_rank must be at least 1, got 0"),
        (lambda: LatentAttention(8, 2, 0, 4, 4, 8), r"LatentAttention.nope_head_dim must be at least 1, got 0"),
        (lambda: HeadAttention(8, 2, 1, 4, 4, window=0), r"HeadAttention.window must be at least 1, got 0"),
        (lambda: HeadAttention(8, 2, 1, 4, 4, stored_query_heads=1), r"stored_query_heads must be at least 2, got 1"),
        (lambda: Recurrent(8, "state", 4, 8, 4, in_weights=-1), r"Recurrent.in_weights must be at least 0, got -1"),
        (lambda: Indexer(2, 4, 0, 8, 8), r"Indexer.top_k must be at least 1, got 0"),
        (lambda: SeveralAttentions((NoAttention(8),)), r"SeveralAttentions.parts must be two or more"),
        (lambda: SeveralAttentions((HEADS, replace(HEADS, window=3))), r"keep their caches in different ways"),
        (lambda: Model("m", 10, (moe_layer(), WIDER)), r"layers of 'm' differ in hidden_size"),
        (lambda: Model("m", 10, ()), r"'m' hold no experts"),
        (lambda: Model("m", 0, (moe_layer(),)), r"Model.vocab_size must be at least 1, got 0"),
        (lambda: Widths(experts=0), r"Widths.experts must be at least 1 bit, got 0"),
    ],
)
def test_a_noun_that_cannot_be_is_refused_and_names_the_field(make, says):
    with pytest.raises(InputError, match=says):
        make()
