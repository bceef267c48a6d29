"""Tiny random models of every family that the engine is tested with, and the reference they must equal."""

import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

torch.set_num_threads(1)  # tiny models: a second thread would only wait in OpenMP's barriers

VOCAB = 128

_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
_TOP_2 = {"num_experts_per_tok": 2}
_LOCAL = {"num_local_experts": 4, **_TOP_2}
_PLAIN = {"num_experts": 4, **_TOP_2, "moe_intermediate_size": 24}
_GROUPED = {"n_routed_experts": 4, **_TOP_2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1}
_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}

FAMILIES: dict[str, dict[str, object]] = {
    "mixtral": _LOCAL,
    "qwen2_moe": {**_PLAIN, "shared_expert_intermediate_size": 24, "head_dim": None},
    "qwen3_moe": _PLAIN,
    "olmoe": {**_PLAIN, "head_dim": None},
    "phimoe": {**_LOCAL, "head_dim": None},
    "gpt_oss": {**_LOCAL, **_SLIDING},
    "glm4_moe": {**_GROUPED, "first_k_dense_replace": 1},
    "granitemoe": {**_LOCAL, "head_dim": None},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 1,
        "head_dim": None,
    },
    "minimax": {**_LOCAL, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "block_size": 16},
    "minimax_m2": {**_LOCAL, "rotary_dim": 4},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "dots1": {**_GROUPED, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "llama4_text": {
        **_LOCAL,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 8,
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
    },
    "jetmoe": {**_LOCAL, "kv_channels": 8, "num_attention_heads": None, "head_dim": None},
    "flex_olmo": {**_PLAIN, "head_dim": None},
    "afmoe": {**_PLAIN, **_SLIDING, "num_dense_layers": 1, "n_group": 1, "topk_group": 1},
    "exaone_moe": {
        **_PLAIN,
        **_SLIDING,
        "n_group": 1,
        "topk_group": 1,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "is_moe_layer": [False, True, True],
    },
    "solar_open": _GROUPED,
    "granitemoeshared": {**_LOCAL, "shared_intermediate_size": 24, "head_dim": None},
    "mimo_v2_flash": {**_GROUPED, **_SLIDING, "v_head_dim": 8},
    "doge": {**_PLAIN, "is_moe": True, "head_dim": None},
    "dbrx": {
        **dict.fromkeys(name for name in _BASE if name != "vocab_size"),
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 64,
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {**_GROUPED, **_LATENT},
    "deepseek_v3": {**_GROUPED, **_LATENT},
}


@functools.lru_cache(maxsize=4)
def make(family: str, eos: int | None = None, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model; wide weights, so that greedy tokens vary."""
    torch.manual_seed(seed)
    values = {**_BASE, **FAMILIES[family], **changes, "eos_token_id": eos, "pad_token_id": 0, "bos_token_id": 1}
    config = AutoConfig.for_model(family, **{k: v for k, v in values.items() if v is not None or "token_id" in k})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = 0
    return model


def make_prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = make_prompts(5, 9, 3, 7, 12, 4, 6)


def reference(
    model: PreTrainedModel, prompts: list[list[int]], micro_batch_size: int, new: int, seed: int | None = None, **kwargs
) -> list[list[int]]:
    """What plain `generate()` gives for each micro-batch alone, without what follows the end of a sequence.

    Prompts of similar length share a micro-batch, as in the engine: some families' tokens depend on their padding.
    """
    rows: dict[int, list[int]] = {}
    eos = model.generation_config.eos_token_id
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i])) if micro_batch_size > 1 else range(len(prompts))
    for j, first in enumerate(range(0, len(prompts), micro_batch_size)):
        numbers = order[first : first + micro_batch_size]
        batch = [prompts[i] for i in numbers]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        if seed is not None:
            torch.manual_seed(seed + j)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, **kwargs)
        made = [row[: row.index(eos) + 1] if eos in row else row for row in out[:, width:].tolist()]
        rows |= zip(numbers, made, strict=True)
    return [rows[i] for i in range(len(prompts))]


@functools.cache
def generated(family: str, micro_batch_size: int, new: int) -> list[list[int]]:
    """The reference of a family's usual model and the usual prompts: made once a process."""
    return reference(make(family), PROMPTS, micro_batch_size, new)
