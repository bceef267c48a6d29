"""Layers with a state in place of a cache: linear attention, state spaces, short convolutions."""

from collections.abc import Callable, Mapping

from sim.problem.model.attention import Recurrent
from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from traces.errors import InputError

DELTA_CHUNK = 64
"""Tokens of a prompt that the kernels of the delta rule take together (flash-linear-attention)."""


def recurrent(fields: Fields, family: Family) -> Recurrent:
    """Raises InputError where nothing says which kind of state a model has."""
    name = family.linear or next((name for name, field in TOLD_BY.items() if field in fields), "")
    if not name:
        raise InputError("has linear attention layers, and nothing tells what their state is")
    return READERS[name](fields)


def gated_delta(fields: Fields) -> Recurrent:
    """Qwen3-Next and 3.5: a matrix of key by value of each value head; heads of keys are shared by several of those."""
    keys, values = fields.count("linear_num_key_heads"), fields.count("linear_num_value_heads")
    if values % keys:
        raise InputError(f"linear_num_value_heads = {values} must be a multiple of linear_num_key_heads = {keys}")
    key_dim, value_dim = fields.count("linear_key_head_dim"), fields.count("linear_value_head_dim")
    hidden, query, output = fields.count("hidden_size"), keys * key_dim, values * value_dim
    mixed, kernel = 2 * query + output, fields.count("linear_conv_kernel_dim")
    return Recurrent(
        hidden_size=hidden,
        kind_name="gated delta net",
        query_width=query,
        memory_width=query + output + 2 * values,
        output_width=output,
        in_weights=hidden * (mixed + output + 2 * values),
        state_numbers=values * key_dim * value_dim,
        passes=3,
        convolved=mixed,
        kernel=kernel,
        chunk=DELTA_CHUNK,
        extra_params=2 * values + mixed * kernel + value_dim,
    )


def kimi_delta(fields: Fields, low_rank: bool = True) -> Recurrent:
    """Kimi's delta attention: a decay of its own for each channel of a key. Bailing projects decay and gate at once."""
    inside, hidden = fields.section("linear_attn_config"), fields.count("hidden_size")
    heads = fields.count("linear_num_heads", default=inside.count("num_heads", default=0, minimum=0), minimum=0)
    dim = fields.count("linear_head_dim", default=inside.count("head_dim", default=0, minimum=0), minimum=0)
    kernel = fields.count("linear_conv_kernel_dim", default=inside.count("short_conv_kernel_size", default=4))
    heads, dim = heads or fields.count("num_attention_heads"), dim or fields.count("head_dim")
    width = heads * dim
    projected = dim * (hidden + width) if low_rank else hidden * width
    return Recurrent(
        hidden_size=hidden,
        kind_name="Kimi delta attention",
        query_width=width,
        memory_width=3 * width + heads,
        output_width=width,
        in_weights=3 * hidden * width + hidden * heads + 2 * projected,
        state_numbers=heads * dim * dim,
        passes=3,
        convolved=3 * width,
        kernel=kernel,
        chunk=DELTA_CHUNK,
        extra_params=3 * width * kernel + heads + width + dim,
    )


def mamba2(fields: Fields) -> Recurrent:
    """State spaces of several heads, whose B and C are shared by groups of them."""
    hidden, heads = fields.count("hidden_size"), fields.count("mamba_num_heads")
    inner = heads * _head_dim(fields, hidden, heads)
    groups, size = fields.count("mamba_n_groups", default=1), fields.count("ssm_state_size")
    mixed, kernel = inner + 2 * groups * size, fields.count("mamba_d_conv")
    projected = inner + mixed + heads
    biased = fields.flag("mamba_proj_bias")
    return Recurrent(
        hidden_size=hidden,
        kind_name="Mamba 2",
        query_width=groups * size,
        memory_width=inner + groups * size + heads,
        output_width=inner,
        in_weights=hidden * projected,
        state_numbers=inner * size,
        convolved=mixed,
        kernel=kernel,
        chunk=fields.count("mamba_chunk_size", default=256),
        extra_params=mixed * (kernel + fields.flag("mamba_conv_bias", default=True))
        + 3 * heads
        + inner
        + (projected if biased else 0),
        out_params=hidden if biased else 0,
    )


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    given = fields.find("mamba_head_dim")[1]
    return (
        fields.count("mamba_expand", default=2) * hidden // heads
        if given in (None, "auto")
        else fields.count("mamba_head_dim")
    )


def mamba(fields: Fields) -> Recurrent:
    """The first Mamba: a state for each channel, whose step, B and C come from a narrow projection."""
    hidden = fields.count("hidden_size")
    inner, size = fields.count("mamba_expand", default=2) * hidden, fields.count("ssm_state_size")
    rank = -(-hidden // 16) if fields.find("mamba_dt_rank")[1] in (None, "auto") else fields.count("mamba_dt_rank")
    kernel, biased = fields.count("mamba_d_conv"), fields.flag("mamba_proj_bias")
    convolution = inner * (kernel + fields.flag("mamba_conv_bias", default=True))
    return Recurrent(
        hidden_size=hidden,
        kind_name="Mamba",
        query_width=size,
        memory_width=2 * inner + size,
        output_width=inner,
        in_weights=hidden * 2 * inner + inner * (rank + 2 * size) + rank * inner,
        state_numbers=inner * size,
        convolved=inner,
        kernel=kernel,
        extra_params=convolution + inner + inner * size + inner + rank + 2 * size + (2 * inner if biased else 0),
        out_params=hidden if biased else 0,
    )


def lightning(fields: Fields) -> Recurrent:
    """Lightning attention (MiniMax-01): keys and values of each head add up in a matrix that decays by a fixed rate."""
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    dim = fields.count("head_dim", default=hidden // heads)
    width = heads * dim
    return Recurrent(
        hidden_size=hidden,
        kind_name="lightning attention",
        query_width=width,
        memory_width=2 * width,
        output_width=width,
        in_weights=4 * hidden * width,
        state_numbers=heads * dim * dim,
        chunk=fields.count("block_size", default=256),
        extra_params=width,
    )


def convolution(fields: Fields) -> Recurrent:
    """Short gated convolutions (LFM2): the last tokens are all that is kept."""
    hidden, kernel = fields.count("hidden_size"), fields.count("conv_L_cache")
    biased = fields.flag("conv_bias")
    return Recurrent(
        hidden_size=hidden,
        kind_name="convolution",
        query_width=hidden,
        memory_width=hidden,
        output_width=hidden,
        in_weights=3 * hidden * hidden,
        convolved=hidden,
        kernel=kernel,
        extra_params=hidden * kernel + (4 * hidden if biased else 0),
        out_params=hidden if biased else 0,
    )


READERS: Mapping[str, Callable[[Fields], Recurrent]] = {
    "delta": gated_delta,
    "kimi": kimi_delta,
    "kimi, at once": lambda fields: kimi_delta(fields, low_rank=False),
    "mamba2": mamba2,
    "mamba": mamba,
    "lightning": lightning,
    "convolution": convolution,
}
TOLD_BY: Mapping[str, str] = {
    "delta": "linear_num_value_heads",
    "mamba2": "mamba_num_heads",
    "lightning": "layernorm_linear_attention_alpha",
    "convolution": "conv_L_cache",
}
"""Of a family that is not known, the field that tells which kind it has."""
