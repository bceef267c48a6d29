"""The widths that quantisers of checkpoints write into their configurations, kind by kind.

Sizes of the model are those of Qwen3-30B-A3B; expected bits are what each format stores: weights, scales, zero points.
"""

import pytest
from glm_air import GLM_AIR

from sim.problem import Model
from traces.errors import InputError

QWEN = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 8,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
GLM = {**GLM_AIR, "num_hidden_layers": 4}


def widths(quantisation, config=QWEN, name="quantization_config"):
    return Model.of_config({**config, name: quantisation}, "tiny", "tiny.json").widths


def group(bits, *targets, **weights):
    return {"targets": list(targets) or ["Linear"], "weights": {"num_bits": bits, **weights}}


NVFP4 = {"type": "float", "strategy": "tensor_group", "group_size": 16}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("quantisation", "experts", "attention", "embedding", "head"),
    [
        (GPTQ, 4.15625, 4.15625, 16, 16),
        ({**GPTQ, "lm_head": True}, 4.15625, 4.15625, 16, 4.15625),
        ({**GPTQ, "dynamic": {"-:.*self_attn.*": {}}}, 4.15625, 16, 16, 16),
        ({**GPTQ, "dynamic": {"+:.*self_attn.*": {"bits": 8}}}, 4.15625, 8.1875, 16, 16),
        ({"quant_method": "awq", "bits": 4, "group_size": -1}, 4, 4, 16, 16),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "modules_to_not_convert": ["self_attn"]},
            4.3125,
            16,
            16,
            16,
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
            8 + 2**-9,
            8 + 2**-9,
            16,
            16,
        ),
        (
            {"quant_method": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4", "weight_block_size": [128, 128]},
            4.25,
            8 + 2**-11,
            16,
            16,
        ),
        ({"quant_method": "mxfp8"}, 8.25, 8.25, 16, 16),
        ({"quant_method": "mxfp4"}, 4.25, 16, 16, 16),
        ({"quant_method": "nvfp4"}, 4.5, 4.5, 16, 16),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["model.layers.*.self_attn"]}, 8, 16, 16, 16),
        ({"quant_method": "eetq", "weights": "int8"}, 8, 8, 16, 16),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5, 4.5, 16, 16),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            4.126953125,
            4.126953125,
            16,
            16,
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["self_attn"]}, 8, 16, 16, 16),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
            4.5,
            4.5,
            16,
            16,
        ),
        ({"quant_method": "quanto", "weights": "int4"}, 4, 4, 16, 16),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "data_type": "int"}, 4.15625, 4.15625, 16, 16),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "mx_fp"}, 4.25, 4.25, 16, 16),
        (
            {"quant_method": "intel/auto-round", "bits": 4, "extra_config": {".*self_attn.*": {"bits": 16}}},
            4.15625,
            16,
            16,
            16,
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 64}}},
            },
            4.5,
            4.5,
            16,
            16,
        ),
        (
            {"quant_method": "torchao", "quant_type": "int8_weight_only", "include_input_output_embeddings": True},
            8,
            8,
            8,
            8,
        ),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Float8DynamicActivationFloat8WeightConfig"}},
            },
            8,
            8,
            16,
            16,
        ),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {
                    "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
                },
                "exclude": ["re:.*self_attn.*", "lm_head"],
            },
            4.25,
            16,
            16,
            16,
        ),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
                "layer_quant_config": {"*self_attn*": {"weight": None}},
                "exclude": ["lm_head"],
            },
            8,
            16,
            16,
            16,
        ),
        (MODELOPT, 4.5, 4.5, 16, 4.5),
        ({**MODELOPT, "ignore": ["lm_head", "model.layers.*.self_attn*"]}, 4.5, 16, 16, 16),
        ({**MODELOPT, "quant_algo": "FP8", "exclude_modules": ["lm_head"]}, 8, 8, 16, 16),
        ({**MODELOPT, "quant_algo": "W4A16_AWQ", "group_size": 128, "ignore": ["lm_head"]}, 4.125, 4.125, 16, 16),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {
                    f"model.layers.{i}.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in range(8)
                },
            },
            4.5,
            16,
            16,
            16,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "ignore": ["lm_head"],
                "config_groups": {"NVFP4": group(4, **NVFP4)},
            },
            4.5,
            4.5,
            16,
            16,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "ignore": ["lm_head"],
                "config_groups": {"a": group(8, "re:.*self_attn.*"), "b": group(4, "re:.*mlp.experts.*", **NVFP4)},
            },
            4.5,
            8,
            16,
            16,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "ignore": ["lm_head"],
                "config_groups": {"a": group(8), "b": group(4, "re:.*mlp.experts.*", **NVFP4)},
            },
            4.5,
            8,
            16,
            16,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "ignore": ["lm_head"],
                "config_groups": {"a": group(4, type="int", strategy="group", group_size=32, symmetric=False)},
            },
            4.625,
            4.625,
            16,
            16,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": group(8, type="float", strategy="block", block_structure=[128, 128])},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            8 + 2**-9,
            16,
            16,
            16,
        ),
    ],
)
def test_each_format_has_its_weights_and_scales(quantisation, experts, attention, embedding, head):
    found = widths(quantisation)
    assert found.experts == experts
    assert found.attention == pytest.approx(attention, rel=2e-4), "norms of heads stay"
    assert (found.embedding, found.head, found.router) == (embedding, head, 16)


@pytest.mark.parametrize(
    ("quantisation", "experts", "embedding"),
    [
        ({"group_size": 64, "bits": 4}, 4.5, 4.5),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, 4.25, 4.25),
        ({"group_size": 64, "bits": 4, "model.embed_tokens": {"group_size": 64, "bits": 8}}, 4.5, 8.5),
        ({"group_size": 64, "bits": 4, "model.embed_tokens": False}, 4.5, 16),
    ],
)
@pytest.mark.parametrize("name", ["quantization", "quantization_config"])
def test_mlx_narrows_the_embedding_too(quantisation, experts, embedding, name):
    found = widths(quantisation, name=name)
    assert (found.experts, found.embedding, found.router) == (experts, embedding, 16)


@pytest.mark.parametrize(
    ("ignored", "shared", "dense"),
    [
        ([], 4.5, 4.5),
        (["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"], 4.5, 16),
        (["re:.*shared_experts.*"], 16, 4.5),
        (["*shared_experts*"], 16, 4.5),
        (["model.layers.0", "model.layers.0.mlp*"], 4.5, 16),
        (["re:model\\.language_model\\.layers\\.0\\..*"], 4.5, 16),
    ],
)
def test_lists_of_exceptions_leave_kinds_and_layers_wide(ignored, shared, dense):
    found = widths({**MODELOPT, "ignore": ["lm_head", *ignored]}, GLM)
    assert (found.experts, found.shared, found.dense) == (4.5, shared, dense)


def test_a_layer_that_stays_wide_counts_with_its_share():
    """Of eight layers with experts alike two stay wide: (6 x 4.5 + 2 x 16) / 8 bits on average."""
    found = widths({**MODELOPT, "ignore": ["lm_head", "model.layers.0.*", "model.layers.7.mlp.experts*"]})
    assert found.experts == pytest.approx(7.375)
    assert found.attention == pytest.approx((7 * 4.5 + 16) / 8, rel=2e-4)


@pytest.mark.parametrize(
    ("quantisation", "says"),
    [
        ({"quant_method": "magic"}, "quant_method 'magic' is not known; known are auto-round"),
        ({"quant_method": "gtpq"}, "did you mean gptq"),
        ({}, "quant_method None is not known"),
        ("awq", "'awq' is not a table of fields"),
        ({"quant_method": "modelopt", "quant_algo": "FP3"}, "quant_algo: 'FP3' is not allowed"),
        ({"quant_method": "compressed-tensors"}, "config_groups is missing or names no group"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {}}}}, "num_bits is missing"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": "many"}}}},
            "num_bits: 'many'",
        ),
        ({"quant_method": "torchao", "quant_type": "magic"}, "quant_type: 'magic' is not known"),
        ({"quant_method": "gptq", "bits": 0}, "bits: 0 is not allowed"),
        ({"quant_method": "hqq"}, "quant_config is missing"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": "yes"}, "load_in_8bit: 'yes' is not allowed"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(quantisation, says):
    with pytest.raises(InputError) as caught:
        widths(quantisation)
    assert says in str(caught.value)
    assert str(caught.value).startswith("tiny.json: quantization_config: ")
    assert "\n" not in str(caught.value)
