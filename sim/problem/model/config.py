"""From a Hugging Face `config.json` to a `Model`.

Mixture-of-Experts families give the same dimensions different names; `families` lists them, and what the code of each
family fixes. A family that it does not list is read by the names alone. What the nouns of `sim.problem.model` cannot
model_fields is refused, not guessed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sim.problem.model.delta_net import delta_net, is_linear
from sim.problem.model.families import FAMILIES, REFUSED_FIELDS, REFUSED_TYPES, Family
from sim.problem.model.fields import Fields
from sim.problem.model.layer import Attention, FeedForward, Latent, Layer
from sim.problem.model.modules import modules_of
from sim.problem.widths import native_widths, plain_bits
from traces.errors import InputError, error_prefix, shown

MOST_LAYERS = 1000
"""The deepest models have about 130."""

MOST_EXPERTS = 4096
"""Of a layer: the widest model, Switch-C, has 2,048."""


def model_fields(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields of the `Model` that a configuration describes; `source` stands first in every error."""
    fields = Fields(config)
    with error_prefix(f"{source}: "):
        _refuse(fields)
        family = FAMILIES.get(fields.text("model_type").removesuffix("_text"), Family())
        num_layers = fields.count("num_hidden_layers", most=MOST_LAYERS)
        layers = tuple(_layer(fields, family, index) for index in range(num_layers))
        if not any(layer.num_experts for layer in layers):
            raise InputError("no layer has experts: mlp_only_layers, first_k_dense_replace and their like leave none")
        vocab_size, tied = fields.count("vocab_size"), fields.flag("tie_word_embeddings", family.tie_embeddings)
        dtype = fields.text("dtype", "bfloat16")
        return dict[str, Any](
            vocab_size=vocab_size,
            layers=layers,
            tie_embeddings=tied,
            widths=native_widths(fields.values, dtype, modules_of(layers, vocab_size, tied=tied)),
            activation_bits=max(plain_bits(dtype), 16.0),
            final_norm_params=_norm_params(fields, family),
            head_bias=fields.flag("lm_head_bias"),
        )


def _refuse(fields: Fields) -> None:
    if not fields.count("num_local_experts", default=0, minimum=0):
        looked = ", ".join(fields.names("num_local_experts"))
        raise InputError(f"has no experts (looked for {looked}); only Mixture-of-Experts models are handled")
    if fields.flag("is_encoder_decoder"):
        raise InputError("is an encoder-decoder; only decoders are handled")
    model_type = fields.text("model_type")
    refused = (contents for field, contents in REFUSED_FIELDS.items() if field in fields)
    what = REFUSED_TYPES.get(model_type) or next(refused, None)
    if what:
        raise InputError(f"model type {model_type or '(not given)'} is not modelled: it has {what}")


def _layer(fields: Fields, family: Family, index: int) -> Layer:
    attention = _attention(fields, family, index)
    hidden, norms = attention.hidden_size, family.norms_per_layer * _norm_params(fields, family)
    if not _is_sparse(fields, index):
        dense = FeedForward(hidden, fields.count("intermediate_size_mlp", layer=index), family.expert_bias)
        return Layer(attention, dense=dense, norm_params=norms)
    num_experts = fields.count("num_local_experts", layer=index, most=MOST_EXPERTS)
    top_k = fields.count("num_experts_per_tok", layer=index)
    if top_k > num_experts:
        chosen, there = (fields.find(name)[0] for name in ("num_experts_per_tok", "num_local_experts"))
        raise InputError(
            f"{chosen} = {top_k} exceeds {there} = {num_experts}: a token cannot use more experts than there are"
        )
    shared = _shared(fields, family, hidden, index)
    router = num_experts * (hidden + family.router_bias)
    if family.routed_heads:  # JetMoE: a second router, for heads, and a bias on the sum of both kinds of experts
        router += num_experts * hidden + 2 * hidden
    if family.shared_gate and shared:
        router += hidden
    width = fields.count("moe_intermediate_size", layer=index)
    expert = FeedForward(hidden, width, family.expert_bias, held=family.expert_held)
    routed = Layer(attention, num_experts, top_k, expert, shared, router_params=router, norm_params=norms)
    computed = family.computes_all_experts, family.computes_experts_in_turn
    return replace(routed, computes_all_experts=computed[0], computes_experts_in_turn=computed[1])


def _shared(fields: Fields, family: Family, hidden: int, index: int) -> FeedForward | None:
    number = fields.count("n_shared_experts", default=family.shared_experts, minimum=0, layer=index)
    width = fields.count("shared_expert_intermediate_size", default=0, minimum=0, layer=index)
    if not width and number:
        width = number * fields.count("moe_intermediate_size", layer=index)
    return FeedForward(hidden, width) if width else None


def _is_sparse(fields: Fields, index: int) -> bool:
    """Whether a layer has experts. The rules of all families hold together: a field that is absent does not speak."""
    kind = fields.per_layer("mlp_layer_types", index)
    if kind is not None:
        return kind != "dense"
    sparse_layers = fields.entries("moe_layers")
    if sparse_layers is not None:
        return index in sparse_layers
    chosen = fields.per_layer("moe_layer_freq", index)
    if chosen is not None:
        return bool(chosen)
    last = fields.count("moe_layer_end_index", default=-1, minimum=-1)
    return (
        index >= fields.count("first_k_dense_replace", default=0, minimum=0)
        and (last < 0 or index <= last)
        and index not in (fields.entries("mlp_only_layers") or ())
        and (index + 1) % fields.count("decoder_sparse_step", default=1) == 0
        and index % fields.count("moe_layer_freq", default=1) == 0
    )


def _norm_params(fields: Fields, family: Family) -> int:
    return fields.count("hidden_size") * (1 + family.norm_bias)


def _attention(fields: Fields, family: Family, index: int) -> Attention:
    if "linear_num_value_heads" in fields and is_linear(fields, index):
        return delta_net(fields)
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    latent = None
    if "kv_lora_rank" in fields:
        query_rank = fields.count("q_lora_rank", default=0, minimum=0) or None
        latent = Latent(fields.count("kv_lora_rank"), fields.count("qk_rope_head_dim"), query_rank)
        kv_heads = heads
        head_dim = fields.count("qk_nope_head_dim") + latent.rope_head_dim
        norms = latent.kv_rank + (latent.query_rank or 0)
    else:
        kv_heads = fields.count("num_key_value_heads", default=heads)
        head_dim = _head_dim(fields, hidden, heads)
        configured = "head" if fields.flag("use_qk_norm") else "none"
        qk_norm = configured if family.qk_norm == "as configured" else family.qk_norm
        norms = {"width": (heads + kv_heads) * head_dim, "head": 2 * head_dim, "none": 0}[qk_norm]
    qkv_bias = fields.flag("qkv_bias", family.qkv_bias)
    stored_heads = kv_heads * fields.count("num_local_experts") if family.routed_heads else None
    return Attention(
        hidden_size=hidden,
        num_query_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=fields.count("v_head_dim", default=head_dim),
        window=_window(fields, family, index),
        latent=latent,
        qkv_bias=qkv_bias,
        output_bias=qkv_bias and family.output_bias_as_qkv,
        output_gate=family.output_gate,
        stored_query_heads=stored_heads,
        sinks=family.sinks,
        extra_params=norms + (heads if family.sinks else 0),
    )


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    head_dim = fields.count("head_dim", default=0)
    if not head_dim and hidden % heads:
        width, number = (fields.find(name)[0] for name in ("hidden_size", "num_attention_heads"))
        raise InputError(f"{width} = {hidden} is no multiple of {number} = {heads}; add head_dim if that is meant")
    return head_dim or hidden // heads


def _window(fields: Fields, family: Family, index: int) -> int | None:
    """Tokens that a layer looks back on. Llama 4's chunks count as windows of their size, the most they reach."""
    kind = fields.per_layer("layer_types", index)
    if kind == "chunked_attention":
        return fields.count("attention_chunk_size")
    size = fields.count("sliding_window", default=0, minimum=0) or None
    if kind is None:
        return size if _slides(fields, family, index) else None
    if kind == "sliding_attention" and size is None:
        raise InputError("layer_types has sliding_attention, but sliding_window is missing")
    if kind not in ("full_attention", "sliding_attention"):
        modelled = "full_attention, sliding_attention and chunked_attention"
        raise InputError(f"layer_types has {shown(kind)}; modelled are {modelled}")
    return size if kind == "sliding_attention" else None


def _slides(fields: Fields, family: Family, index: int) -> bool:
    """Whether a layer uses the window, where no list says so: Qwen and dots1 by number, others by a pattern."""
    if not fields.flag("use_sliding_window", default=True):
        return False
    pattern = fields.find("sliding_window_pattern")[1]
    if isinstance(pattern, str) and pattern:
        return pattern[index % len(pattern)] == "L"
    full_every = fields.count("sliding_window_pattern", default=family.full_every, minimum=0)
    if full_every:
        return (index + 1) % full_every != 0
    return index >= fields.count("max_window_layers", default=0, minimum=0)
