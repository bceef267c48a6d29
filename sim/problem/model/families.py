"""What the code of a model family fixes, and its `config.json` therefore leaves out.

Read off the modelling files of transformers 5; a test compares each with the parameters of a real model.
"""

from dataclasses import dataclass

from sim.problem.model.layer import FUSED, Held


@dataclass(frozen=True, slots=True)
class Family:
    """What the code of a family fixes."""

    qk_norm: str = "as configured"
    """Normalises queries and keys over each "head", over the whole "width", or not at all: "none"."""
    norms_per_layer: int = 2
    norm_bias: bool = False
    qkv_bias: bool = False
    output_bias_as_qkv: bool = True
    output_gate: bool = False
    sinks: bool = False
    router_bias: bool = False
    """A bias of the router, or a correction that balances the choice of experts: one number an expert either way."""
    expert_bias: bool = False
    expert_held: Held = FUSED
    computes_all_experts: bool = False
    shared_experts: int = 0
    shared_gate: bool = False
    routed_heads: bool = False
    tie_embeddings: bool = False
    full_every: int = 0


FAMILIES = {
    "afmoe": Family(qk_norm="head", norms_per_layer=4, output_gate=True, router_bias=True, full_every=4),
    "deepseek_v3": Family(router_bias=True),
    "dots1": Family(qk_norm="head", router_bias=True),
    "ernie4_5_moe": Family(router_bias=True, tie_embeddings=True),
    "exaone_moe": Family(qk_norm="head", router_bias=True, full_every=4),
    "flex_olmo": Family(qk_norm="width"),
    "glm4_moe": Family(output_bias_as_qkv=False, router_bias=True),
    "glm4_moe_lite": Family(router_bias=True),
    "gpt_oss": Family(
        sinks=True, router_bias=True, expert_bias=True, expert_held=((1, 9), (5, 0)), qkv_bias=True, full_every=2
    ),
    "hunyuan_v1_moe": Family(qk_norm="head", shared_experts=1),
    "jetmoe": Family(routed_heads=True, expert_held=((1, 4), (4, 3)), tie_embeddings=True),
    "llama4": Family(qk_norm="none", shared_experts=1, computes_all_experts=True, expert_held=((1, 4), (2, 3))),
    "minimax_m2": Family(qk_norm="width", router_bias=True),
    "olmoe": Family(qk_norm="width"),
    "phimoe": Family(norm_bias=True),
    "qwen2_moe": Family(qkv_bias=True, output_bias_as_qkv=False, shared_gate=True),
    "qwen3_moe": Family(qk_norm="head"),
    "solar_open": Family(output_bias_as_qkv=False, router_bias=True),
}

REFUSED_FIELDS = {
    "attn_layer_period": "Mamba layers",
    "mamba_d_state": "Mamba layers",
    "mamba_num_heads": "Mamba layers",
    "full_attention_interval": "linear attention layers",
    "linear_num_value_heads": "linear attention layers",
    "linear_attn_config": "linear attention layers",
    "full_attn_idxs": "convolution layers",
    "conv_L_cache": "convolution layers",
    "index_topk": "attention over an index of chosen tokens",
    "swa_num_key_value_heads": "layers that differ in their heads",
    "zero_expert_num": "experts that compute nothing",
}
REFUSED_TYPES = {
    "doge": "experts that are single neurons",
    "longcat_flash": "two attentions a layer",
    "mimo_v2_flash": "layers that differ in their heads",
    "minimax": "linear attention layers",
}
