"""Attention over a latent, and over compressed entries: what DeepSeek's models and their kin do."""

from collections.abc import Mapping
from typing import Any

from sim.problem.model.attention import CompressedAttention, Indexer, LatentAttention
from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from sim.problem.model.reading.kinds import Kind
from sim.problem.model.reading.mixers.heads import read_window
from traces.errors import InputError


def latent_attention(fields: Fields, family: Family, kind: Kind, index: int) -> LatentAttention:
    """Multi-head latent attention, with an index or without."""
    fields = fields.with_(_of_window(fields)) if kind is Kind.SLIDING else fields
    if fields.per_layer("kv_source_layers", index) not in (None, index):
        raise InputError(f"kv_source_layers: layer {index} shares the KV cache of another one, which is not modelled")
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    nope, rope = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim", minimum=0)
    if not _rotates(fields, family, index):
        nope, rope = nope + rope, 0
    value_dim = fields.count("v_head_dim", default=nope + rope)
    query_rank = fields.count("q_lora_rank", default=0, minimum=0) or None
    rank, bias = fields.count("kv_lora_rank"), fields.flag("qkv_bias", family.qkv_bias)
    norms = rank + (query_rank or 0) + (rope if family.name == "dots3_note" else 0)
    has_sinks, doubled = kind in family.sinks, family.name == "axk2" and query_rank is not None
    indexed = kind is Kind.INDEXED
    shared = indexed and index_is_shared(fields, family, index)
    return LatentAttention(
        hidden_size=hidden,
        num_heads=heads,
        nope_head_dim=nope,
        rope_head_dim=rope,
        value_head_dim=value_dim,
        kv_rank=rank,
        query_rank=query_rank,
        query_input=2 * query_rank if doubled and query_rank else None,
        window=read_window(fields, family, kind),
        qkv_bias=bias,
        output_bias=bias and family.output_bias_as_qkv,
        gate_weights=_gate(family, hidden, heads, value_dim, query_rank),
        sinks=has_sinks,
        reads_index=fields.count("index_topk") if shared else None,
        indexer=_indexer(fields, hidden, query_rank or hidden) if indexed and not shared else None,
        extra_params=norms + (heads if has_sinks else 0),
    )


def _rotates(fields: Fields, family: Family, index: int) -> bool:
    """Whether a layer's queries and keys know their positions; elsewhere a flag of this name changes no size."""
    if not family.unrotated_every:
        return True
    flag = fields.per_layer("no_rope_layers", index)
    every = fields.count("no_rope_layer_interval", default=family.unrotated_every)
    return bool(flag) if flag is not None else (index + 1) % every != 0


def _of_window(fields: Fields) -> Mapping[str, Any]:
    """What layers in a window have of their own."""
    names = ("num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    own = {name: fields.find("swa_" + name)[1] for name in names}
    whole = fields.find("swa_head_dim")[1]
    if own["qk_rope_head_dim"] is None and isinstance(whole, int) and isinstance(own["qk_nope_head_dim"], int):
        own["qk_rope_head_dim"] = whole - own["qk_nope_head_dim"]
    return own


def _gate(family: Family, hidden: int, heads: int, value_dim: int, query_rank: int | None) -> int:
    if family.name == "axk2":  # projected together with the query, from the same bottleneck
        return 2 * (query_rank or 0) * heads * value_dim
    return hidden * {"channel": heads * value_dim, "head": heads}.get(family.gate, 0)


def index_is_shared(fields: Fields, family: Family, index: int) -> bool:
    """Whether a layer takes over what the index of an earlier one chose."""
    kind = fields.per_layer("indexer_types", index)
    if kind is not None:
        return kind == "shared"
    pattern = fields.find("index_topk_pattern")[1]
    if isinstance(pattern, str | list) and pattern:
        return index < len(pattern) and pattern[index] in ("S", "shared")
    every = fields.count("index_topk_freq", default=family.index_every)
    return max(index - fields.count("index_skip_topk_offset", default=2, minimum=0) + 1, 0) % every != 0


def _indexer(fields: Fields, hidden: int, query_input: int) -> Indexer:
    heads, key_dim = fields.count("index_n_heads"), fields.count("index_head_dim")
    pool = fields.count("index_kpool", default=1)
    gates = hidden * key_dim if pool > 1 else 0
    extra = 2 * key_dim + (pool * key_dim if pool > 1 else 0)
    return Indexer(
        heads, key_dim, fields.count("index_topk"), query_input, hidden, pool, extra_params=extra, extra_weights=gates
    )


def compressed_attention(fields: Fields, index: int) -> CompressedAttention:
    """DeepSeek-V4's: near tokens one by one, far ones by entries of several, all of them or those an index finds."""
    hidden, heads, head_dim = fields.count("hidden_size"), fields.count("num_attention_heads"), fields.count("head_dim")
    rank, stride = fields.count("q_lora_rank"), _stride(fields, index)
    indexed = stride is not None and stride == _rate(fields, "compressed_sparse_attention", 4)
    overlap = 2 if indexed else 1
    width = overlap * head_dim if stride else 0
    indexer, index_width, biases = None, 0, (stride or 0) * width
    if indexed and stride:
        num, key_dim = fields.count("index_n_heads"), fields.count("index_head_dim")
        index_width = overlap * key_dim
        indexer = Indexer(num, key_dim, fields.count("index_topk"), rank, hidden, projects_keys=False)
        biases += stride * index_width + key_dim
    norms = rank + head_dim + (head_dim if stride else 0)
    return CompressedAttention(
        hidden_size=hidden,
        num_heads=heads,
        head_dim=head_dim,
        query_rank=rank,
        window=fields.count("sliding_window"),
        stride=stride,
        compressed_width=width,
        output_groups=fields.count("o_groups"),
        output_rank=fields.count("o_lora_rank"),
        indexer=indexer,
        index_width=index_width,
        extra_params=norms + heads + biases,
    )


def _stride(fields: Fields, index: int) -> int | None:
    """Tokens that an entry stands for in this layer; None where it has the window alone."""
    kind = fields.per_layer("layer_types", index)
    if isinstance(kind, str):
        return None if kind == "sliding_attention" else _rate(fields, kind, 4 if "sparse" in kind else 128)
    ratio = fields.per_layer("compress_ratios", index)
    if isinstance(ratio, int):
        return ratio or None
    return _rate(fields, "compressed_sparse_attention", 4) if index % 2 and index > 1 else _rate(fields, "heavily", 128)


def _rate(fields: Fields, kind: str, usual: int) -> int:
    """How many tokens an entry of such layers stands for."""
    short = "compress_rate_csa" if "sparse" in kind else "compress_rate_hca"
    long = "compressed_sparse_attention" if "sparse" in kind else "heavily_compressed_attention"
    rate = fields.count(f"compress_rates.{long}", default=fields.count(short, default=usual))
    if rate < 2:
        raise InputError(f"compress_rates.{long}: {rate} is not allowed; give at least 2")
    return rate
