"""Random models whose experts, not their tables, decide what memory a run needs, and a run as the engine cuts it."""

import torch
from engine_models import make

from sim.problem import Batch, MicroBatch

ALIGNED_BYTES = 16 * 1024
"""What rounding takes: each parameter and each buffer begins on a line of the cache."""

COARSE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 16,
    "intermediate_size": 256,
}
FINE = {**COARSE, "intermediate_size": 48}
FUSED = {"num_local_experts": 8}
FAMILIES = {
    "mixtral": FUSED,
    "qwen2_moe": {"num_experts": 8, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 128},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 48},
    "phimoe": {**FUSED, "head_dim": None},
    "granitemoe": {**FUSED, "head_dim": None},
    "gpt_oss": {**FUSED, "layer_types": ["full_attention"] * 4},
    "jetmoe": {**FUSED, "head_dim": None, "num_attention_heads": None},
    "llama4_text": {**FUSED, "layer_types": ["full_attention"] * 4},
    "dbrx": {
        **dict.fromkeys(COARSE),
        "d_model": 128,
        "n_heads": 8,
        "n_layers": 4,
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 8, "moe_top_k": 4},
        "attn_config": {"kv_n_heads": 8, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v3": {"n_routed_experts": 8, "moe_intermediate_size": 48, "num_key_value_heads": 8, "head_dim": 8},
}


WINDOWED = {
    "mixtral": {**FUSED, "sliding_window": 16},
    "gpt_oss": {**FUSED, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "llama4_text": {**FUSED, "attention_chunk_size": 16, "layer_types": ["chunked_attention", "full_attention"] * 2},
    "exaone_moe": {
        "num_experts": 8,
        "moe_intermediate_size": 48,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "is_moe_layer": [False, True, True, True],
    },
}
"""All layers slide; every other one, with sinks; in chunks; most of them, with our kernel."""


def wide(family, *, windowed=False, **changes):
    """A model whose experts, not its tables, decide what it needs."""
    fields = (WINDOWED if windowed else FAMILIES)[family]
    return make.__wrapped__(family, dtype=torch.float32, **{**COARSE, **fields, **changes})


def as_run(lengths, size, new, **others):
    """The batch as the engine cuts it up: the longest first, each micro-batch padded to its longest prompt."""
    lengths = sorted(lengths, reverse=True)
    parts = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    return Batch(tuple(map(MicroBatch.padded, parts)), 0, new, **others)
