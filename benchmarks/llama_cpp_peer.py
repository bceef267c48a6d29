"""llama.cpp on the weights of a random Transformers model: the model as a GGUF file in 32 bits, and greedy decode.

Needs the packages `gguf` and `llama-cpp-python`, which compiles llama.cpp with the compiler of the machine. The file
has no tokenizer: prompts are ids. Requests are sequences of one batch; each step decodes one token of every one.
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

ARCHITECTURES = {
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
}
F32 = 0
"""GGML_TYPE_F32 of ggml.h."""

ROOM_FOR_TOKENS = 256
"""llama.cpp gives each sequence a multiple of so many places."""


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """The model in llama.cpp's format."""
    config, arch = model.config, ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_expert_used_count(config.num_experts_per_tok)
    if arch is gguf.MODEL_ARCH.DEEPSEEK2:
        _add_latent_attention(writer, config)
    else:
        _add_usual_attention(writer, config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in _tensors(model):
        writer.add_tensor(_name_in_gguf(names, name), np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_usual_attention(writer, config) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    if config.model_type == "mixtral":
        writer.add_expert_count(config.num_local_experts)
    else:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_latent_attention(writer, config) -> None:
    """Keys and values of one head that all share, as llama.cpp computes them."""
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensors, those apart that llama.cpp keeps apart."""
    config = model.config
    for name, tensor in model.state_dict().items():
        layer, _, own = name.rpartition("self_attn.")
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", tensor
        elif own == "kv_b_proj.weight":
            of_heads = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
            keys, values = of_heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            yield f"{layer}self_attn.k_b_proj.weight", keys.transpose(1, 2)
            yield f"{layer}self_attn.v_b_proj.weight", values
        elif config.model_type == "mixtral" and own in ("q_proj.weight", "k_proj.weight"):
            yield name, _interleaved(tensor, config.hidden_size // config.num_attention_heads)
        else:
            yield name, tensor


def _interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The two halves of each head, which turn together, one row beside the other: so this architecture turns them."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _name_in_gguf(names, name: str) -> str:
    if name.endswith("e_score_correction_bias"):
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, f"{name}: GGUF has no name for it"
    return found


def open_llama_cpp(
    folder: Path, prompts: list[list[int]], steps: int, threads: int, *, flash: bool
) -> Callable[[], list[list[int]]]:
    """Opens the model of a folder; what comes back generates `steps` tokens for all prompts, which are of one length.

    With `flash` attention is as llama.cpp itself chooses it, which rounds to 16 bits on the way.
    """
    path = folder / f"{flash}.gguf"
    write_gguf(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), path)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, f"llama.cpp does not open {path}"
    context = llama_cpp.llama_init_from_model(model, _context_params(prompts, steps, threads, flash=flash))
    assert context, "llama.cpp makes no context"
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    return lambda: _generate(context, words, prompts, steps)


def _context_params(prompts: list[list[int]], steps: int, threads: int, *, flash: bool):
    count, width = len(prompts), len(prompts[0])
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = count * -(-(width + steps) // ROOM_FOR_TOKENS) * ROOM_FOR_TOKENS
    params.n_batch = params.n_ubatch = count * width
    params.n_seq_max = count
    params.n_threads = params.n_threads_batch = threads
    if not flash:
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = F32
    return params


def _generate(context, words: int, prompts: list[list[int]], steps: int) -> list[list[int]]:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    width = len(prompts[0])
    batch = llama_cpp.llama_batch_init(len(prompts) * width, 0, 1)
    try:
        new = [_decode(context, words, batch, prompts, 0)]
        for step in range(1, steps):
            new.append(_decode(context, words, batch, [[token] for token in new[-1]], width + step - 1))
    finally:
        llama_cpp.llama_batch_free(batch)
    return [list(row) for row in zip(*new, strict=True)]


def _decode(context, words: int, batch, rows: list[list[int]], position: int) -> list[int]:
    """The word that each sequence goes on with, after these tokens of it."""
    at = 0
    for sequence, row in enumerate(rows):
        for i, token in enumerate(row):
            batch.token[at], batch.pos[at] = token, position + i
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = i == len(row) - 1
            at += 1
    batch.n_tokens = at
    failed = llama_cpp.llama_decode(context, batch)
    assert failed == 0, f"llama_decode: {failed}"
    scores = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(scores, (len(rows), words)).argmax(axis=1).tolist()
