"""Every family that Transformers has, against its own classes, and checkpoints against what is published of them.

The oracle for parameters is the model that transformers builds without memory (meta device).
"""

import importlib
import json
import re

import pytest

from sim.problem import Model
from sim.problem.model.reading.families import FAMILIES
from traces.errors import InputError

KEPT_APART = ("correction_bias", "expert_bias", "balancing_biases")
"""Routers' corrections are buffers in most classes; they are in the checkpoint."""

NOT_STORED = {"longcat_flash": r"experts\.gate_up_proj$"}
"""LongCat's class has gates for experts that compute nothing, which no checkpoint fills and nothing reads."""

REFUSED = {
    "deepseek_ocr2": "num_experts_per_tok is missing",
    "deepseek_ocr2_text": "num_experts_per_tok is missing",
    "deepseek_v2": "num_experts_per_tok is missing",
    "diffusion_gemma": "it has many tokens that are made at once",
    "diffusion_gemma_text": "it has many tokens that are made at once",
    "doge": "it has experts that are single neurons",
    "dots1": "has no experts",
    "dots3_note_vision_encoder": "vocab_size is missing",
    "ernie4_5_vl_moe": "it has a second set of experts",
    "ernie4_5_vl_moe_text": "it has a second set of experts",
    "gemma4": "has no experts (enable_moe_block is false)",
    "gemma4_text": "has no experts (enable_moe_block is false)",
    "nllb-moe": "is an encoder-decoder",
    "openai_privacy_filter": "it has no decoder",
    "qwen3_omni_moe_talker_text": "is not known, and these fields of its configuration with a size are not read: ",
    "qwen4_exp": "index_n_heads is missing",
    "qwen4_exp_text": "index_n_heads is missing",
    "switch_transformers": "is an encoder-decoder",
    "unlimited_ocr": "it has windows that slide over what was generated alone",
    "unlimited_ocr_text": "it has windows that slide over what was generated alone",
    "vitpose": "has no experts",
    "vitpose_backbone": "moe_intermediate_size is missing",
}
"""Configurations by default that are no model that can be told, and why."""

BUILDS = 56
"""Of all that mention experts, those that build a causal model from their defaults, in transformers 5.23."""


def mapping():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING


def saved(config):
    """A configuration as it would be in a file."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def mentions_experts(values):
    if not isinstance(values, dict):
        return False
    return any(re.search("expert|moe", str(name).lower()) or mentions_experts(one) for name, one in values.items())


def causal_model(config):
    """The library's model without memory behind it; None where it has none for this configuration."""
    import torch
    import transformers

    try:
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, AttributeError):
        return None


def stored(model, model_type=""):
    """Numbers that a checkpoint of the model has."""
    buffers = (buffer for name, buffer in model.named_buffers() if name.endswith(KEPT_APART))
    found = sum(tensor.numel() for tensor in (*model.parameters(), *buffers))
    pattern = NOT_STORED.get(model_type)
    for name, tensor in model.named_parameters() if pattern else ():
        if re.search(pattern, name):
            found -= tensor[0].numel() * model.config.zero_expert_num
    return found


def verdict(name, values, model):
    """What is wrong with one entry; None if it is equal to its class, or refused with the reason that is meant."""
    try:
        ours = Model.of_config(values, name, name).total_params
    except InputError as refused:
        said = REFUSED.get(name)
        return None if said and said in str(refused) else f"{name}: {refused}"
    if name in REFUSED:
        return f"{name} was to be refused, and has {ours:,}"
    if model is not None and ours != stored(model, name):
        return f"{name}: {ours:,} parameters in place of {stored(model, name):,}"
    return None


def sweep(names):
    """The verdicts that find a fault, and how many entries build a model and how many of these are exact."""
    faults, built, exact = [], 0, 0
    for name in names:
        try:
            config = mapping()[name]()
        except (ValueError, TypeError, AttributeError, ImportError):
            continue
        values = saved(config)
        if not mentions_experts(values):
            continue
        model = causal_model(config)
        fault = verdict(name, values, model)
        faults += [fault] if fault else []
        built += model is not None
        exact += model is not None and fault is None and name not in REFUSED
    return faults, built, exact


def test_every_family_that_is_known_is_equal_to_its_class_or_refused_with_the_reason():
    faults, built, exact = sweep(name for name in mapping() if name.removesuffix("_text") in FAMILIES)
    assert faults == []
    assert exact >= 50, f"of {built}"


@pytest.mark.exhaustive
def test_every_configuration_that_mentions_experts_is_equal_to_its_class_or_refused_with_the_reason():
    faults, built, exact = sweep(mapping())
    assert faults == []
    assert (built >= BUILDS, exact >= 50) == (True, True), (built, exact)


PARTS = {
    "glm4v_moe_text": "Glm4vMoeTextModel",
    "glm5_next_text": "Glm5NextTextModel",
    "mistral4": "Mistral4Model",
    "mistral_large4_text": "MistralLarge4TextModel",
    "muse_spark_text": "MuseSparkTextModel",
    "qwen3_omni_moe_text": "Qwen3OmniMoeThinkerTextModel",
    "qwen3_vl_moe_text": "Qwen3VLMoeTextModel",
    "step3p5": "Step3p7TextModel",
}
"""Language models inside larger ones, which have a class without a head."""


@pytest.mark.parametrize("name", PARTS)
def test_a_language_model_inside_a_larger_one_is_equal_to_its_class_and_a_head(name):
    import torch

    if name not in mapping():
        pytest.skip(f"this transformers has no {name}")
    config = mapping()[name]()
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    with torch.device("meta"):
        body = getattr(module, PARTS[name])(config)
    values = saved(config)
    head = 0 if values.get("tie_word_embeddings") else config.vocab_size * config.hidden_size
    assert Model.of_config(values, name, name).total_params == stored(body) + head


# --- configurations as their checkpoints have them --------------------------------------------------------------------

SMALL = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ROUTED = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
INDEX = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 32}
EVEN = {"num_attention_heads": 4, "num_key_value_heads": 4}

WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""Within a small vocabulary."""

AS_RELEASED = {
    "kimi_linear": {
        **{**SMALL, **EVEN, **LATENT, "q_lora_rank": None},
        "num_experts": 8,
        "num_experts_per_token": 2,
        "moe_intermediate_size": 24,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "linear_attn_config": {
            "full_attn_layers": [4],
            "kda_layers": [1, 2, 3],
            "head_dim": 16,
            "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
    },
    "nemotron_h": {
        **SMALL,
        **HEADS,
        **ROUTED,
        "head_dim": 16,
        "hybrid_override_pattern": "ME*-",
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "chunk_size": 128,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 4,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 40,
        "moe_latent_size": 32,
    },
    "granitemoehybrid": {
        **SMALL,
        **HEADS,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 40,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "mamba_d_conv": 4,
    },
    "jamba": {
        **SMALL,
        **HEADS,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_dt_rank": "auto",
    },
    "lfm2_moe": {
        **SMALL,
        **HEADS,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "conv_L_cache": 3,
        "tie_embedding": True,
    },
    "minimax": {
        **SMALL,
        **HEADS,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "block_size": 16,
    },
    "mimo_v2_flash": {
        **{**SMALL, **HEADS, **ROUTED, "head_dim": 24, "v_head_dim": 16, "sliding_window_size": 8},
        "n_shared_experts": None,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "gemma4_text": {
        **{**SMALL, **HEADS, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1},
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "sliding_window": 8,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "deepseek_v32": {
        **SMALL,
        **EVEN,
        **ROUTED,
        **LATENT,
        **INDEX,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "glm_moe_dsa": {
        **{**SMALL, **EVEN, **ROUTED, **LATENT, **INDEX},
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "indexer_types": ["full", "full", "shared", "shared"],
    },
    "deepseek_v4": {
        **{**SMALL, **ROUTED, **INDEX, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16},
        "intermediate_size": None,
        "q_lora_rank": 20,
        "o_groups": 2,
        "o_lora_rank": 12,
        "sliding_window": 8,
        "compress_ratios": [0, 4, 128, 4],
        "num_hash_layers": 1,
        "hc_mult": 2,
    },
    "longcat_flash": {
        **{
            **SMALL,
            **LATENT,
            "num_attention_heads": 4,
            "num_hidden_layers": None,
            "num_layers": 2,
            "ffn_hidden_size": 80,
        },
        "n_routed_experts": 8,
        "zero_expert_num": 4,
        "moe_topk": 3,
        "expert_ffn_hidden_size": 24,
    },
    "bailing_hybrid": {
        **{**SMALL, **EVEN, **LATENT, "q_lora_rank": None, "head_dim": 16, "layer_group_size": 2},
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "minimax_m3_vl_text": {
        **{**SMALL, **HEADS, "head_dim": 16, "dense_intermediate_size": 96, "shared_intermediate_size": 24},
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "moe_layer_freq": [0, 1, 1, 1],
        "sparse_attention_config": {
            "sparse_num_index_heads": 2,
            "sparse_index_dim": 16,
            "sparse_block_size": 8,
            "sparse_topk_blocks": 2,
            "sparse_attention_freq": [0, 1, 1, 1],
        },
    },
    "dots3_note_text": {
        **{**SMALL, **EVEN, **ROUTED, **LATENT, **INDEX, "sliding_window_size": 8},
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_kv_lora_rank": 24,
        "swa_q_lora_rank": 20,
        "swa_head_dim": 20,
        "swa_qk_nope_head_dim": 12,
        "swa_v_head_dim": 10,
        "moe_shared_expert_intermediate_size": 32,
    },
    "hy_v4": {**SMALL, **EVEN, **ROUTED, **LATENT, **INDEX, "n_shared_experts": 1, "hc_mult": 2},
    "cohere2_moe": {
        **SMALL,
        **HEADS,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "num_shared_experts": 1,
        "sliding_window": 8,
    },
    "laguna": {
        **SMALL,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_attention_heads_per_layer": [4, 6, 4, 6],
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
}
"""Small models in the words of the released checkpoints, which are seldom those that transformers saves."""


@pytest.mark.parametrize("name", AS_RELEASED)
def test_a_configuration_in_the_words_of_its_checkpoint_is_read_as_transformers_reads_it(name):
    if name not in mapping():
        pytest.skip(f"this transformers has no {name}")
    given = {field: value for field, value in AS_RELEASED[name].items() if value is not None}
    config = mapping()[name](**json.loads(json.dumps({**given, **WORDS})))
    model = causal_model(config)
    read = Model.of_config({"model_type": name, **given}, name, name)
    resaved = Model.of_config(saved(config), name, name)
    assert read.total_params == stored(model, name)
    assert [layer.attention for layer in read.layers] == [layer.attention for layer in resaved.layers]


# --- known checkpoints ------------------------------------------------------------------------------------------------

QWEN3_5 = {
    "model_type": "qwen3_5_moe",
    "text_config": {
        "vocab_size": 248320,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "full_attention_interval": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
}
GRANITE_4 = {
    "model_type": "granitemoehybrid",
    "vocab_size": 100352,
    "hidden_size": 4096,
    "layer_types": [("attention" if index in (5, 15, 25, 35) else "mamba") for index in range(40)],
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 72,
    "num_experts_per_tok": 10,
    "intermediate_size": 768,
    "shared_intermediate_size": 1536,
    "mamba_n_heads": 128,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "tie_word_embeddings": True,
}
NEMOTRON_3 = {
    "model_type": "nemotron_h",
    "vocab_size": 131072,
    "hidden_size": 2688,
    "num_hidden_layers": 52,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 1856,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "n_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 3712,
}
DEEPSEEK_V3_2 = {
    "model_type": "deepseek_v32",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "intermediate_size": 18432,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    **{"q_lora_rank": 1536, "kv_lora_rank": 512},
    **{"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    **{"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048},
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "num_nextn_predict_layers": 1,
}
GLM_5_1 = {
    **DEEPSEEK_V3_2,
    "model_type": "glm_moe_dsa",
    "vocab_size": 154880,
    "hidden_size": 6144,
    "num_hidden_layers": 78,
    "intermediate_size": 12288,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    **{"q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "index_n_heads": 32},
}
GEMMA_4 = {
    "model_type": "gemma4",
    "text_config": {
        "vocab_size": 262144,
        "hidden_size": 2816,
        "num_hidden_layers": 30,
        "intermediate_size": 2112,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "sliding_window": 1024,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "tie_word_embeddings": True,
    },
}
STEP_3_5 = {
    "model_type": "step3p5",
    "vocab_size": 128896,
    "hidden_size": 4096,
    "num_hidden_layers": 45,
    "intermediate_size": 11264,
    "num_attention_heads": 64,
    "num_attention_groups": 8,
    "head_dim": 128,
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 96,
        "num_attention_groups": 8,
        "head_dim": 128,
    },
    "use_head_wise_attn_gate": True,
    "moe_num_experts": 288,
    "moe_top_k": 8,
    "moe_intermediate_size": 1280,
    "share_expert_dim": 1280,
    "moe_layers_enum": ",".join(map(str, range(3, 45))),
    "sliding_window": 512,
    "layer_types": [("sliding_attention" if index % 4 else "full_attention") for index in range(45)],
}
MINIMAX_M1 = {
    "model_type": "minimax_m1",
    "vocab_size": 200064,
    "hidden_size": 6144,
    "num_hidden_layers": 80,
    "attn_type_list": ([0] * 7 + [1]) * 10,
    "intermediate_size": 9216,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
}
MINIMAX_M3 = {
    "model_type": "minimax_m3",
    "vocab_size": 200064,
    "hidden_size": 6144,
    "num_hidden_layers": 60,
    "intermediate_size": 3072,
    "dense_intermediate_size": 12288,
    "shared_intermediate_size": 3072,
    "n_shared_experts": 1,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "use_qk_norm": True,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "moe_layer_freq": [0] * 3 + [1] * 57,
    "sparse_attention_config": {
        "sparse_num_index_heads": 4,
        "sparse_index_dim": 128,
        "sparse_block_size": 128,
        "sparse_topk_blocks": 16,
        "sparse_attention_freq": [0] * 3 + [1] * 57,
    },
}

CHECKPOINTS = {
    "Qwen3.5-35B-A3B": (QWEN3_5, 34.661e9, 20_480),
    "Granite-4.0-H-Small": (GRANITE_4, 32.207e9, 16_384),
    "Nemotron-3-Nano-30B": (NEMOTRON_3, 31.578e9, 6_144),
    "DeepSeek-V3.2": (DEEPSEEK_V3_2, 671.878e9, 70_272),
    "GLM-5.1": (GLM_5_1, 743.911e9, 89_856),
    "Gemma-4-26B-A4B": (GEMMA_4, 25.233e9, 225_280),
    "Step-3.5-Flash": (STEP_3_5, 196.96e9, 184_320),
    "MiniMax-M1": (MINIMAX_M1, 456e9, 40_960),
    "MiniMax-M3": (MINIMAX_M3, 426.17e9, 122_880),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_has_the_parameters_and_the_cache_that_are_known_of_it(name):
    config, params, kv_bytes = CHECKPOINTS[name]
    model = Model.of_config(config, name, name)
    assert model.total_params == pytest.approx(params, rel=5e-4)
    assert model.kv_bytes_per_token(16) == kv_bytes


def test_active_parameters_of_minimax_m1_are_those_published_without_the_ends():
    model = Model.of_config(MINIMAX_M1, "m1", "m1")
    assert model.active_params - 2 * model.embedding_params == pytest.approx(45.9e9, rel=5e-3)


def test_an_index_keeps_a_key_of_each_token_beside_the_latent():
    layer = Model.of_config(DEEPSEEK_V3_2, "v3.2", "v3.2").layers[5]
    assert (layer.kv_bytes_per_token(16), layer.index_bytes_per_token(16)) == (1152, 256)
    assert layer.attended(100_000) == 2048


def test_experts_that_compute_nothing_leave_a_token_fewer_that_do():
    """LongCat-Flash: of 12 choices among 512 experts and 256 that pass their input on, 8 are experts on average."""
    config = AS_RELEASED["longcat_flash"]
    given = {**config, "model_type": "longcat_flash", "n_routed_experts": 512, "zero_expert_num": 256, "moe_topk": 12}
    layer = Model.of_config(given, "longcat", "longcat").layers[0]
    assert (layer.num_experts, layer.top_k) == (512, 8)


def test_layers_that_predict_further_are_said_and_not_counted():
    model = Model.of_config(DEEPSEEK_V3_2, "v3.2", "v3.2")
    assert model.mtp_layers == 1
    assert "1 further layer (MTP) not run" in str(model)


# --- sizes that nobody read -------------------------------------------------------------------------------------------

PLAIN = {**SMALL, **HEADS, "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"expert_hidden_width": 32}, "expert_hidden_width"),
        ({"linear_ranks": [8, 16]}, "linear_ranks"),
        ({"mixers": ["a", "b"]}, "mixers"),
        ({"gates": {"width": 12, "dropout": 0.1}}, "gates.width"),
        ({"special_layers": "1,2,3"}, "special_layers"),
        ({"text_config": {**PLAIN, "inner_width": 7}}, "inner_width"),
    ],
)
def test_a_size_that_is_not_read_is_refused_in_a_family_that_is_not_known(more, named):
    with pytest.raises(InputError, match=rf"model type brand_new is not known, and these fields .* not read: {named}$"):
        Model.of_config({**PLAIN, "model_type": "brand_new", **more}, "new", "new.json")


@pytest.mark.parametrize(
    "more",
    [
        {"bos_token_id": 5, "eos_token_id": [6, 7], "max_position_embeddings": 4096, "rope_theta": 10000},
        {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 4096}, "attention_dropout": 0.1},
        {"vision_config": {"hidden_size": 1280, "depth": 32}, "text_config": PLAIN, "image_token_id": 9},
        {"use_cache": True, "num_things": 1, "layer_norm_eps": 1e-5, "router_aux_loss_coef": 0.01},
        {"id2label": {"0": "a", "1": "b"}, "transformers_version": "5.1.0", "num_nextn_predict_layers": 2},
    ],
)
def test_fields_without_a_size_are_no_reason_to_refuse_a_family_that_is_not_known(more):
    read = Model.of_config({**PLAIN, "model_type": "brand_new", **more}, "new", "new.json")
    assert read.total_params == Model.of_config(PLAIN, "old", "old.json").total_params


def test_many_sizes_that_are_not_read_are_told_in_one_short_line():
    more = {f"odd_width_{number}": 8 for number in range(20)}
    with pytest.raises(InputError) as caught:
        Model.of_config({**PLAIN, **more}, "new", "new.json")
    assert str(caught.value).endswith("and 14 more")


def test_parameters_of_mistral_are_read_in_its_own_words():
    given = {
        "dim": 64,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "hidden_dim": 80,
        "vocab_size": 97,
    }
    read = Model.of_config({**given, "moe": {"num_experts": 8, "num_experts_per_tok": 2}}, "m", "params.json")
    assert read.total_params == Model.of_config(PLAIN, "old", "old.json").total_params
