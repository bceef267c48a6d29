"""Which layer is of which kind: what mixes its tokens, and whether it has experts."""

from collections.abc import Mapping
from enum import StrEnum

from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from traces.errors import InputError, shown


class Kind(StrEnum):
    """What mixes the tokens of a layer."""

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    INDEXED = "indexed"
    LINEAR = "linear"
    COMPRESSED = "compressed"
    NONE = "none"


KINDS: Mapping[object, Kind] = {
    "full_attention": Kind.FULL,
    "attention": Kind.FULL,
    "hybrid": Kind.FULL,
    "sliding_attention": Kind.SLIDING,
    "hybrid_sliding": Kind.SLIDING,
    "chunked_attention": Kind.CHUNKED,
    "indexed_attention": Kind.INDEXED,
    "deepseek_sparse_attention": Kind.INDEXED,
    "qwen_sparse_attention": Kind.INDEXED,
    "minimax_m3_sparse": Kind.INDEXED,
    "linear_attention": Kind.LINEAR,
    "mamba": Kind.LINEAR,
    "conv": Kind.LINEAR,
    "compressed_sparse_attention": Kind.COMPRESSED,
    "heavily_compressed_attention": Kind.COMPRESSED,
    "moe": Kind.NONE,
    "mlp": Kind.NONE,
}
LETTERS: Mapping[str, str] = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
"""Nemotron-H's pattern, a letter a layer."""


def kind_of(fields: Fields, family: Family, index: int) -> Kind:
    """What mixes the tokens of a layer."""
    name = type_of(fields, family, index)
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None and name is not None:
        *others, last = [one for one in KINDS if one not in ("moe", "mlp")]
        raise InputError(f"layer_types has {shown(name)}; modelled are {', '.join(map(str, others))} and {last}")
    if kind is None:
        kind = Kind.SLIDING if _slides(fields, family, index) else Kind.FULL
    indexes = family.indexes or (not family.name and "index_topk" in fields)
    return Kind.INDEXED if kind is Kind.FULL and indexes else kind


def type_of(fields: Fields, family: Family, index: int) -> object:
    """What the configuration calls the layer, or the family where that says nothing; None where neither does."""
    for told in (_listed, _numbered, _by_period):
        found = told(fields, index)
        if found is not None:
            return found
    return family.layer_types[index % len(family.layer_types)] if family.layer_types else None


def _listed(fields: Fields, index: int) -> object:
    """By a list of names, or a letter a layer."""
    listed = fields.per_layer("layer_types", index)
    if listed is not None:
        return listed
    pattern = fields.text("hybrid_override_pattern").replace("|", "")
    if pattern:
        if index >= len(pattern):
            raise InputError(f"hybrid_override_pattern has {len(pattern)} letters, too few for layer {index}")
        return LETTERS.get(pattern[index], pattern[index])
    return None


def _numbered(fields: Fields, index: int) -> str | None:
    """By a number a layer, or the numbers of some layers."""
    for name, names in FLAGS.items():
        flag = fields.per_layer(name, index)
        if flag is not None:
            return names[min(int(flag), 1)] if isinstance(flag, int) else str(flag)
    ratio = fields.per_layer("compress_ratios", index)
    if isinstance(ratio, int):
        return "sliding_attention" if ratio == 0 else "compressed_sparse_attention"
    for name, first in NUMBERS.items():
        numbers = fields.entries(name)
        if numbers is not None:
            there, elsewhere = NUMBERED[name]
            return there if index + first in numbers else elsewhere
    return None


FLAGS: Mapping[str, tuple[str, str]] = {
    "attn_type_list": ("linear_attention", "full_attention"),
    "hybrid_layer_pattern": ("full_attention", "sliding_attention"),
    "sparse_attention_config.sparse_attention_freq": ("full_attention", "indexed_attention"),
}
"""Lists with a flag for each layer, and what it is without and with it."""
NUMBERS: Mapping[str, int] = {"linear_attn_config.full_attn_layers": 1, "full_attn_idxs": 0, "local_layer_ids": 0}
"""Lists of layers, and what the first layer is called."""
NUMBERED: Mapping[str, tuple[str, str]] = {
    "linear_attn_config.full_attn_layers": ("full_attention", "linear_attention"),
    "full_attn_idxs": ("full_attention", "linear_attention"),
    "local_layer_ids": ("hybrid_sliding", "hybrid"),
}


def _by_period(fields: Fields, index: int) -> str | None:
    """By how often a kind comes again."""
    if "attn_layer_period" in fields:
        offset = fields.count("attn_layer_offset", default=0, minimum=0)
        return "attention" if index % fields.count("attn_layer_period") == offset else "mamba"
    for name in ("full_attention_interval", "layer_group_size"):
        if name in fields:
            return "linear_attention" if (index + 1) % fields.count(name) else "full_attention"
    if "attention_chunk_size" in fields and "no_rope_layers" in fields:
        return "chunked_attention" if fields.per_layer("no_rope_layers", index) else "full_attention"
    return None


def _slides(fields: Fields, family: Family, index: int) -> bool:
    """Whether a layer uses the window, where no list says so: Qwen and dots1 by number, others by a pattern."""
    if not fields.count("sliding_window", default=0, minimum=0):
        return False
    if not fields.flag("use_sliding_window", default=True):
        return False
    pattern = fields.find("sliding_window_pattern")[1]
    if isinstance(pattern, str) and pattern:
        return pattern[index % len(pattern)] == "L"
    full_every = fields.count("sliding_window_pattern", default=family.full_every, minimum=0)
    if full_every:
        return (index + 1) % full_every != 0
    return index >= fields.count("max_window_layers", default=0, minimum=0)


def has_experts(fields: Fields, family: Family, index: int) -> bool:
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
    period = fields.count("expert_layer_period", default=1)
    return (
        index >= fields.count("first_k_dense_replace", default=family.dense_first, minimum=0)
        and (last < 0 or index <= last)
        and index not in (fields.entries("mlp_only_layers") or ())
        and (index + 1) % fields.count("decoder_sparse_step", default=1) == 0
        and index % fields.count("moe_layer_freq", default=1) == 0
        and index % period == fields.count("expert_layer_offset", default=0, minimum=0) % period
    )
