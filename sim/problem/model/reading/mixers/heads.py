"""Attention whose cache has a key and a value of each head."""

from collections.abc import Mapping
from typing import Any

from sim.problem.model.attention import HeadAttention, Indexer
from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from sim.problem.model.reading.kinds import Kind
from traces.errors import InputError


def head_attention(fields: Fields, family: Family, kind: Kind, index: int) -> HeadAttention:
    """Raises InputError where a size is missing or impossible."""
    fields = fields.with_(_own_sizes(fields, family, kind))
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    heads = fields.count("num_attention_heads_per_layer", default=heads, layer=index)
    kv_heads = fields.count("num_key_value_heads", default=heads, layer=index)
    head_dim = _head_dim(fields, family, hidden, heads)
    value_dim = fields.count("v_head_dim", default=head_dim)
    qkv_bias, has_sinks = fields.flag("qkv_bias", family.qkv_bias), kind in family.sinks
    gate = {"channel": heads * value_dim, "head": heads}.get(_gate(fields, family), 0)
    return HeadAttention(
        hidden_size=hidden,
        num_query_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=value_dim,
        window=read_window(fields, family, kind),
        qkv_bias=qkv_bias,
        output_bias=qkv_bias and family.output_bias_as_qkv,
        gate_width=gate,
        values_are_keys=kind is Kind.FULL and fields.flag("attention_k_eq_v"),
        stored_query_heads=kv_heads * fields.count("num_local_experts") if family.routed_heads else None,
        sinks=has_sinks,
        indexer=_indexer(fields, hidden) if kind is Kind.INDEXED else None,
        extra_params=_norms(fields, family, heads + kv_heads, head_dim) + (heads if has_sinks else 0),
    )


def read_window(fields: Fields, family: Family, kind: Kind) -> int | None:
    """Tokens that a layer looks back on. Llama 4's chunks count as windows of their size, the most they reach."""
    if kind is Kind.CHUNKED:
        return fields.count("attention_chunk_size")
    if kind is not Kind.SLIDING:
        return None
    size = fields.count("sliding_window", default=0, minimum=0) or None
    if size is None:
        raise InputError("layer_types has sliding_attention, but sliding_window is missing")
    before = family.name == "mimo_v2_flash" and fields.find("sliding_window")[0] == "sliding_window_size"
    return size + before  # MiMo counts the tokens before the one that looks back


def _own_sizes(fields: Fields, family: Family, kind: Kind) -> Mapping[str, Any]:
    """What layers in a window, or those without one, have of their own, beside a list by layer."""
    if kind is Kind.FULL and family.name == "gemma4" and "per_layer_config" not in fields:
        shares = fields.flag("attention_k_eq_v")
        number = fields.count("num_global_key_value_heads", default=0, minimum=0) if shares else 0
        return {"head_dim": fields.count("global_head_dim", default=512), "num_key_value_heads": number or None}
    if kind is not Kind.SLIDING:
        return {}
    other = fields.section("attention_other_setting")
    if other.text("attention_type") == "sliding_attention":
        return {name: other.find(name)[1] for name in (*SIZES, "num_attention_groups")}
    own = {name: fields.find("swa_" + name)[1] for name in SIZES}
    heads = fields.find("num_sliding_attention_heads")[1]
    if own["num_key_value_heads"] is None and family.name == "mimo_v2_flash":
        own["num_key_value_heads"] = 2 * fields.count("num_key_value_heads")
    return own if heads is None else {**own, "num_attention_heads": heads}


SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")


def _head_dim(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    head_dim = fields.count("head_dim", default=0, minimum=0)
    if not head_dim and hidden % heads and not family.floors_head_dim:
        width, number = (fields.find(name)[0] for name in ("hidden_size", "num_attention_heads"))
        raise InputError(f"{width} = {hidden} is no multiple of {number} = {heads}; add head_dim if that is meant")
    return head_dim or hidden // heads


def _gate(fields: Fields, family: Family) -> str:
    """Laguna and Step say in their configuration whether there is one, and of what width."""
    given = fields.find("gating")[1]
    if isinstance(given, str):
        return {"per-head": "head", "per-element": "channel"}.get(given, given)
    if family.gate == "as configured":
        return "head" if fields.flag("use_head_wise_attn_gate", default=True) else ""
    return family.gate


def _norms(fields: Fields, family: Family, heads: int, head_dim: int) -> int:
    configured = "head" if fields.flag("use_qk_norm") else "none"
    qk_norm = configured if family.qk_norm == "as configured" else family.qk_norm
    return {"width": heads * head_dim, "head": 2 * head_dim, "none": 0}[qk_norm]


def _indexer(fields: Fields, hidden: int) -> Indexer:
    """MiniMax-M3 chooses blocks of tokens, Qwen4 by keys that a few tokens share."""
    inside = fields.section("sparse_attention_config")
    heads = fields.count(
        "index_n_heads", default=inside.count("sparse_num_index_heads", default=0, minimum=0), minimum=0
    )
    if not heads:
        raise InputError("index_n_heads is missing: nothing says how wide the index of its layers is")
    key_dim = fields.count("index_head_dim", default=inside.count("sparse_index_dim", default=0, minimum=0))
    size = fields.count("index_block_size", default=inside.count("sparse_block_size", default=1))
    blocks = fields.count(
        "index_topk_blocks", default=inside.count("sparse_topk_blocks", default=0, minimum=0), minimum=0
    )
    top_k = blocks * size or fields.count("index_topk")
    pool = fields.count("indexer_compress_ratio", default=1)
    return Indexer(heads, key_dim, top_k, hidden, hidden, pool=pool, weighs_heads=False, extra_params=2 * key_dim)
