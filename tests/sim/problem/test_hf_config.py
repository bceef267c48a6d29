"""Reading Hugging Face configurations.

The oracle for parameter counts is the real model that transformers builds without memory (meta device).
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from sim.problem import Model
from sim.problem.model.layer import FeedForward
from sim.problem.presets import MODELS
from traces.errors import InputError

CONFIG = {
    "model_type": "mixtral",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
}


def read(**changes):
    """The model of CONFIG with changes; a field that is None is taken away."""
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    return Model.of_config(config, "tiny", "tiny.json")


# --- families and presets against real models ------------------------------------------------------------------------

TINY = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 4}
TINY_HEADS = {**TINY, "num_attention_heads": 6, "num_key_value_heads": 2}
TINY_ROUTED = {**TINY_HEADS, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
TINY_MLA = {
    **TINY_ROUTED,
    "num_key_value_heads": 6,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
TINY_LINEAR = {
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 10,
    "linear_conv_kernel_dim": 4,
}
LOCAL = {**TINY_HEADS, "num_local_experts": 5, "num_experts_per_tok": 2}
NUMBERED = {**TINY_HEADS, "num_experts": 5, "num_experts_per_tok": 2}

FAMILIES = [
    ("mixtral", LOCAL),
    ("mixtral", {**LOCAL, "head_dim": 12, "tie_word_embeddings": True}),
    ("qwen2_moe", {**NUMBERED, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 56}),
    ("qwen3_moe", {**NUMBERED, "moe_intermediate_size": 24, "head_dim": 12, "mlp_only_layers": [1]}),
    ("qwen3_moe", {**NUMBERED, "moe_intermediate_size": 24, "decoder_sparse_step": 2, "attention_bias": True}),
    ("qwen3_next", {**NUMBERED, **TINY_LINEAR, "moe_intermediate_size": 24, "head_dim": 12}),
    ("qwen3_5_moe_text", {**NUMBERED, **TINY_LINEAR, "moe_intermediate_size": 24, "head_dim": 12}),
    ("olmoe", NUMBERED),
    ("flex_olmo", {**NUMBERED, "pad_token_id": None}),
    ("phimoe", LOCAL),
    ("phimoe", {**LOCAL, "attention_bias": True, "lm_head_bias": True}),
    ("gpt_oss", {**LOCAL, "head_dim": 12}),
    ("glm4_moe", {**TINY_ROUTED, "head_dim": 12, "use_qk_norm": True, "attention_bias": True}),
    ("glm4_moe_lite", {**TINY_MLA, "q_lora_rank": 20}),
    ("granitemoe", LOCAL),
    ("granitemoeshared", {**LOCAL, "shared_intermediate_size": 32}),
    ("ernie4_5_moe", {**TINY_HEADS, "moe_num_experts": 5, "moe_k": 2, "moe_intermediate_size": 24}),
    ("dots1", {**TINY_ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1}),
    ("hunyuan_v1_moe", {**TINY_HEADS, "num_experts": 5, "moe_topk": 2, "head_dim": 8}),
    ("minimax_m2", {**LOCAL, "head_dim": 12}),
    ("deepseek_v2", {**TINY_MLA, "first_k_dense_replace": 1, "q_lora_rank": None}),
    ("deepseek_v2", {**TINY_MLA, "q_lora_rank": 20, "attention_bias": True}),
    ("deepseek_v3", {**TINY_MLA, "first_k_dense_replace": 2, "q_lora_rank": 20, "n_group": 2, "topk_group": 1}),
    (
        "dbrx",
        {
            "vocab_size": 97,
            "d_model": 48,
            "n_heads": 6,
            "n_layers": 3,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 5, "moe_top_k": 2},
        },
    ),
    ("jetmoe", {**LOCAL, "kv_channels": 12}),
    ("afmoe", {**NUMBERED, "moe_intermediate_size": 24, "head_dim": 12}),
    ("exaone_moe", {**NUMBERED, "moe_intermediate_size": 24}),
    ("solar_open", {**TINY_ROUTED, "head_dim": 12}),
    ("llama4_text", {**LOCAL, "intermediate_size_mlp": 60, "head_dim": 12, "interleave_moe_layer_step": 2}),
]


def real_model(model_type, options):
    """The library's model without memory behind it, and its configuration as it would be saved."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **options)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model, json.loads(json.dumps(config.to_dict(), default=str))


def real_params(model):
    """Parameters, and the routers' corrections that most families keep as buffers: they are in the checkpoint."""
    corrections = (buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias"))
    return sum(tensor.numel() for tensor in (*model.parameters(), *corrections))


@pytest.mark.parametrize(
    ("model_type", "options"), FAMILIES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(FAMILIES)]
)
def test_parameters_of_every_family_are_those_of_a_real_model(model_type, options):
    model, config = real_model(model_type, options)
    assert Model.of_config(config, model_type, "config").total_params == real_params(model)


@pytest.mark.parametrize("name", Model.presets())
def test_parameters_of_every_preset_are_those_of_a_real_model(name):
    options = {
        key: value for key, value in json.loads(MODELS.path(name).read_text()).items() if not key.startswith("_")
    }
    options.pop("quantization_config", None)
    model, _ = real_model(options.pop("model_type"), options)
    assert Model.load(name).total_params == real_params(model)


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 4),
    experts=st.integers(2, 9).map(lambda half: 2 * half),
    shared=st.integers(1, 3),
    ranks=st.tuples(st.sampled_from([None, 12, 20]), st.integers(4, 24)),
    head_dims=st.tuples(st.integers(1, 9), st.sampled_from([2, 4, 8]), st.integers(1, 9)),
)
def test_latent_attention_of_any_shape_has_the_parameters_of_a_real_model(heads, experts, shared, ranks, head_dims):
    options = {
        **{**TINY_MLA, "num_hidden_layers": 3, "num_attention_heads": heads, "num_key_value_heads": heads},
        **{"n_routed_experts": experts, "n_shared_experts": shared, "first_k_dense_replace": 1, "n_group": 1},
        **dict(zip(("q_lora_rank", "kv_lora_rank"), ranks, strict=True)),
        **dict(zip(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), head_dims, strict=True)),
    }
    model, config = real_model("deepseek_v3", options)
    assert Model.of_config(config, "v3", "config").total_params == real_params(model)


def test_jetmoe_computes_only_the_heads_a_token_is_routed_to():
    layer = read(model_type="jetmoe", num_attention_heads=4, num_key_value_heads=2, kv_channels=12).layers[0]
    assert layer.pre_attn_flops(1) == 2 * 48 * 12 * (4 + 2 + 2)
    assert layer.attention.pre_params == 48 * 12 * (5 * 2 + 2 + 2)
    assert layer.total_params - layer.active_params == 3 * layer.expert_params + 48 * 12 * (10 - 4) * 2


# --- reading configurations ------------------------------------------------------------------------------------------


def test_a_file_and_its_folder_read_the_same(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    assert Model.load(folder) == Model.load(str(folder / "config.json")) == replace(read(), name="my-model")


def test_a_file_of_another_name_gives_the_model_its_name(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    assert Model.load(path) == read()


def test_a_preset_is_found_in_any_case():
    assert Model.load("Mixtral-8x7B") == Model.load("mixtral-8x7b")


def test_a_nested_language_model_is_read_with_what_surrounds_it():
    config = {"model_type": "some_vl", "text_config": CONFIG, "tie_word_embeddings": True, "vision_config": {}}
    assert Model.of_config(config, "tiny", "tiny.json") == read(tie_word_embeddings=True)


def test_a_family_that_is_not_known_is_read_by_the_usual_names():
    assert read(model_type="brand_new").total_params == read().total_params
    assert read(model_type=None, num_local_experts=None, moe_num_experts=5) == read()


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({}, [1, 1, 1, 1]),
        ({"first_k_dense_replace": 2}, [0, 0, 1, 1]),
        ({"num_dense_layers": 1}, [0, 1, 1, 1]),
        ({"mlp_only_layers": [0, 3]}, [0, 1, 1, 0]),
        ({"decoder_sparse_step": 2}, [0, 1, 0, 1]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, [0, 0, 0, 1]),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, [0, 0, 1, 0]),
        ({"moe_layer_freq": [0, 1, 1, 0]}, [0, 1, 1, 0]),
        ({"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}, [0, 1, 0, 1]),
        ({"moe_layers": [2]}, [0, 0, 1, 0]),
        ({"moe_layer_end_index": 0}, [1, 0, 0, 0]),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1}, [0, 1, 1, 0]),
    ],
)
def test_layers_without_experts_are_where_the_configuration_puts_them(fields, sparse):
    assert [min(layer.num_experts, 1) for layer in read(**fields).layers] == sparse


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({}, [None] * 4),
        ({"sliding_window": 9}, [9] * 4),
        ({"sliding_window": 9, "use_sliding_window": False}, [None] * 4),
        ({"sliding_window": 0}, [None] * 4),
        ({"sliding_window": 9, "max_window_layers": 3}, [None, None, None, 9]),
        ({"sliding_window": 9, "sliding_window_pattern": 3}, [9, 9, None, 9]),
        ({"sliding_window": 9, "sliding_window_pattern": "LG"}, [9, None, 9, None]),
        ({"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"] * 2}, [None, 9, None, 9]),
        ({"attention_chunk_size": 7, "layer_types": ["chunked_attention", "full_attention"] * 2}, [7, None, 7, None]),
    ],
)
def test_windows_are_where_the_configuration_puts_them(fields, windows):
    assert [layer.attention.window for layer in read(**fields).layers] == windows


@pytest.mark.parametrize(
    "which",
    [{"full_attention_interval": 2}, {"layer_types": ["linear_attention", "full_attention"] * 2}],
)
def test_the_cache_of_a_linear_layer_is_its_state_however_long_the_context(which):
    linear, full = (layer.attention for layer in read(**TINY_LINEAR, **which).layers[:2])
    state, convolution = 6 * 8 * 10, (2 * 3 * 8 + 6 * 10) * 3
    assert linear.state_bytes == 4 * state + 2 * convolution, "the state in 32 bits, the last tokens in 16"
    assert linear.cached_width == full.state_bytes == 0
    assert full.window is None
    assert full.cached_width == 2 * 2 * 8


def test_a_linear_layer_holds_what_qwen3_next_holds_of_a_request():
    layer = Model.load("qwen3-next-80b-a3b").layers[0]
    assert layer.attention.state_bytes == 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2
    assert layer.attended(10**6) * layer.kv_bytes_per_token(16) == 0


def test_a_value_may_be_a_list_with_an_entry_per_layer():
    model = read(num_local_experts=[5, 5, 6, 5], num_experts_per_tok=[1, 2, 2, 2], num_shared_expert=[0, 1, 1, 1])
    assert [(layer.num_experts, layer.top_k) for layer in model.layers] == [(5, 1), (5, 2), (6, 2), (5, 2)]
    assert [layer.shared_expert_params for layer in model.layers] == [0] + [3 * 48 * 40] * 3


def test_every_expert_may_be_used_by_every_token():
    assert read(num_experts_per_tok=5).layers[0].top_k == 5


def test_a_shared_network_of_width_zero_is_none():
    assert read(shared_intermediate_size=0).layers[0].shared is None


def test_several_shared_experts_are_one_wide_network():
    layer = read(n_shared_experts=2, moe_intermediate_size=24).layers[0]
    assert layer.shared == FeedForward(48, 48)


GROUPED = {"bits": 4, "group_size": 128}
COMPRESSED = {"config_groups": {"group_0": {"weights": {"num_bits": 8}}}, "ignore": ["re:.*self_attn.*", "lm_head"]}


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({}, (16, 16, 16)),
        ({"torch_dtype": "float32"}, (32, 32, 32)),
        ({"dtype": "bfloat16"}, (16, 16, 16)),
        (
            {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}},
            (4.25, 16, 16),
        ),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 4]}}, (9, 9, 16)),
        ({"quantization_config": {"quant_method": "fp8"}}, (8, 8, 16)),
        ({"quantization_config": {"quant_method": "gptq", **GROUPED}}, (4.15625, 4.15625, 16)),
        ({"quantization_config": {"quant_method": "awq", **GROUPED, "group_size": -1}}, (4, 4, 16)),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, (4.5, 4.5, 16)),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, (8, 8, 16)),
        ({"quantization_config": {"quant_method": "compressed-tensors", **COMPRESSED}}, (8, 16, 16)),
    ],
)
def test_native_widths_follow_dtype_and_quantisation(fields, bits):
    model = read(**fields)
    found = model.widths
    assert (found.experts, found.attention, found.embedding) == bits


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_local_experts": None}, "tiny.json: has no experts (looked for num_local_experts, num_experts"),
        ({"num_local_experts": 0}, "has no experts"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is missing (looked for num_experts_per_tok, "),
        ({"num_experts_per_tok": 6}, "num_experts_per_tok = 6 exceeds num_local_experts = 5"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok: 0 is not allowed; give a whole number of at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0 is not allowed; give a whole number of at least 1"),
        ({"num_attention_heads": 5}, "hidden_size = 48 is no multiple of num_attention_heads = 5"),
        ({"num_key_value_heads": 4}, "num_query_heads must be a multiple of num_kv_heads, got 6 and 4"),
        ({"hidden_size": -48}, "hidden_size: -48 is not allowed; give a whole number of at least 1"),
        ({"hidden_size": None}, "hidden_size is missing (looked for hidden_size, d_model"),
        ({"vocab_size": "97"}, "vocab_size: '97' is not allowed; give a whole number of at least 1"),
        ({"vocab_size": 97.5}, "vocab_size: 97.5 is not allowed"),
        ({"intermediate_size": True}, "intermediate_size: True is not allowed; give a whole number of at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is not allowed; give a whole number of at least 1"),
        ({"num_experts_per_tok": [2, 2]}, "num_experts_per_tok has 2 entries, too few for entry 2"),
        ({"first_k_dense_replace": 4}, "no layer has experts"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: 'yes' is not allowed; give true or false"),
        ({"model_type": 3}, "model_type: 3 is not a text"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window is missing"),
        ({"layer_types": ["linear_attention"] * 4}, "linear attention layers, and nothing tells what their state is"),
        (
            {"layer_types": ["spectral_attention"] * 4},
            "layer_types has 'spectral_attention'; modelled are full_attention",
        ),
        ({"hybrid_override_pattern": "**"}, "hybrid_override_pattern has 2 letters, too few for layer 2"),
        (
            {**TINY_LINEAR, "linear_num_value_heads": 4, "layer_types": ["linear_attention"] * 4},
            "linear_num_value_heads = 4 must be a multiple of linear_num_key_heads = 3",
        ),
        ({"model_type": "doge"}, "model type doge is not modelled: it has experts that are single neurons"),
        ({"model_type": "doge", "num_local_experts": None}, "it has experts that are single neurons"),
        ({"num_kv_shared_layers": 2}, "it has layers that share a KV cache"),
        ({"ple_layer_ids": [1]}, "it has embeddings of several words at once"),
        ({"enable_moe_block": False}, "has no experts (enable_moe_block is false)"),
        ({"layer_types": ["indexed_attention"] * 4}, "index_n_heads is missing"),
        ({"is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"torch_dtype": "int3"}, "dtype: 'int3' is not allowed; give float32 or float16"),
        ({"quantization_config": {"quant_method": "magic"}}, "quant_method 'magic' is not known; known are auto-round"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
            "quantization_config: weight_block_size has 1 numbers; a block has rows and columns",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: bits is missing"),
        ({"kv_lora_rank": 16, "qk_nope_head_dim": 4}, "qk_rope_head_dim is missing"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_in_one_line_that_names_the_field(changes, says):
    with pytest.raises(InputError) as caught:
        read(**changes)
    assert says in str(caught.value)
    assert str(caught.value).startswith("tiny.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not JSON"),
        (b"[1, 2]", "holds a list; it must be an object"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, says):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        Model.load(path)
    assert str(path) in str(caught.value)


def test_an_unknown_preset_is_answered_with_the_nearest_names():
    with pytest.raises(InputError, match=r"'mixtral-7x8b'; did you mean mixtral-8x7b"):
        Model.load("mixtral-7x8b")


@pytest.mark.parametrize("name", ["???", "", "x" * 5000, "nul\0", "no/such/config.json"])
def test_a_name_like_nothing_is_answered_with_an_input_error(name):
    with pytest.raises(InputError):
        Model.load(name)


def test_a_name_like_no_preset_is_answered_with_all_of_them():
    with pytest.raises(InputError, match="presets: dbrx, deepseek-v2-lite"):
        Model.load("???")


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no model: there is neither a config.json nor a GGUF file in it"):
        Model.load(tmp_path)
