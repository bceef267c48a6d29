"""GGUF files of tiny models, written by the gguf package: fields and tensors as llama.cpp's converter gives them."""

import re

import gguf
import numpy as np

ARCHITECTURES = {
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "qwen3_next": gguf.MODEL_ARCH.QWEN3NEXT,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "phimoe": gguf.MODEL_ARCH.PHIMOE,
    "granitemoeshared": gguf.MODEL_ARCH.GRANITE_MOE,
    "ernie4_5_moe": gguf.MODEL_ARCH.ERNIE4_5_MOE,
    "dots1": gguf.MODEL_ARCH.DOTS1,
    "hunyuan_v1_moe": gguf.MODEL_ARCH.HUNYUAN_MOE,
    "minimax_m2": gguf.MODEL_ARCH.MINIMAXM2,
    "afmoe": gguf.MODEL_ARCH.AFMOE,
    "exaone_moe": gguf.MODEL_ARCH.EXAONE_MOE,
    "llama4_text": gguf.MODEL_ARCH.LLAMA4,
}

FIELDS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "n_routed_experts": "expert_count",
    "moe_num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_topk": "expert_used_count",
    "moe_k": "expert_used_count",
    "n_shared_experts": "expert_shared_count",
    "num_shared_experts": "expert_shared_count",
    "moe_num_shared_experts": "expert_shared_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "num_dense_layers": "leading_dense_block_count",
    "moe_layer_start_index": "leading_dense_block_count",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "shared_intermediate_size": "expert_shared_feed_forward_length",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
    "moe_layer_interval": "interleave_moe_layer_step",
    "sliding_window": "attention.sliding_window",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
}


def fields_of(config):
    """The fields of a configuration, without the name of the architecture before them."""
    found = {FIELDS[name]: value for name, value in config.items() if name in FIELDS and value is not None}
    if "sliding_attention" not in (config.get("layer_types") or ()):
        found.pop("attention.sliding_window", None)
    if config["model_type"] == "llama4_text":
        found |= {"feed_forward_length": config["intermediate_size_mlp"]}
        found |= {"expert_feed_forward_length": config["intermediate_size"]}
    if "linear_num_value_heads" in config:
        found["ssm.inner_size"] = config["linear_num_value_heads"] * config["linear_value_head_dim"]
    if config.get("kv_lora_rank"):
        rope = config["qk_rope_head_dim"]
        found |= {"attention.head_count_kv": 1, "attention.key_length": config["kv_lora_rank"] + rope}
        found |= {"attention.value_length": config["kv_lora_rank"]}
        found |= {"attention.key_length_mla": config["qk_nope_head_dim"] + rope}
        found |= {"attention.value_length_mla": config["v_head_dim"]}
    elif "attention.key_length" in found:
        found["attention.value_length"] = found["attention.key_length"]
    return found


FUSED = {
    "experts.gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "experts.gate_up_proj_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
    "shared_mlp.input_linear.weight": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
}
OTHERS = {
    "experts.down_proj": "ffn_down_exps.weight",
    "experts.down_proj_bias": "ffn_down_exps.bias",
    "shared_mlp.output_linear.weight": "ffn_down_shexp.weight",
    "block_sparse_moe.router.weight": "ffn_gate_inp.weight",
    "e_score_correction_bias": "exp_probs_b.bias",
    "linear_attn.dt_bias": "ssm_dt.bias",
}
"""Tensors of transformers 5 that the package's own table does not know, by the end of their names."""


def tensors_of(model_type, shapes, num_layers):
    """(name, shape) of the tensors that llama.cpp makes of those of a model."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[model_type], num_layers)
    for name, shape in shapes.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        block = f"blk.{layer[1]}." if layer else ""
        fused = next((parts for end, parts in FUSED.items() if name.endswith(end)), ())
        other = next((one for end, one in OTHERS.items() if name.endswith(end)), None)
        if fused:
            at_end = name.endswith("bias") or (len(shape) == 3 and model_type in ("gpt_oss", "llama4_text"))
            halves = (*shape[:-1], shape[-1] // 2) if at_end else (*shape[:-2], shape[-2] // 2, shape[-1])
            yield from ((block + part, halves) for part in fused)
        elif other is not None:
            yield block + other, shape[-1:] if other == "exp_probs_b.bias" else shape
        else:
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert found is not None, f"{name} has no name in a GGUF file"
            yield found, shape


def write_gguf(path, architecture, fields, tensors, types=None, **options):
    """A file with these fields and zeros in these tensors, in 16 bits or as `types` say by the end of their names."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture], **options)
    writer.add_token_list([f"word {i}" for i in range(5000)])
    for name, value in fields.items():
        key = f"{writer.arch}.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    for name, shape in tensors:
        kind = next((kind for ending, kind in (types or {}).items() if name.endswith(ending)), None)
        if kind is None:
            data = np.zeros(shape, np.float16 if len(shape) > 1 else np.float32)
            writer.add_tensor(name, data)
        else:
            size = gguf.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor(name, np.zeros(size, np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
