"""The layers of the families as functions of arrays, each a program of XLA: shapes are static, so experts are dense.

Letters: R requests, T their tokens now, W tokens in the cache, H hidden, N heads, K heads of keys and values, D of a
head, E experts.
"""

from functools import partial

import jax
import jax.numpy as jnp

from engine.running.xla.model.family import XlaFamily
from engine.running.xla.model.parameters import LayerParameters

LOWEST = -1e30
"""The score of what is not attended to; a row of nothing else is of a padding token, whose output nobody reads."""

Arrays = tuple[jax.Array, ...]


def embed(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Hidden states of token ids."""
    return table[ids]


def pre_attn(
    family: XlaFamily,
    layer: LayerParameters,
    hidden: jax.Array,
    first: jax.Array,
    padding: jax.Array,
    inverse: jax.Array,
) -> Arrays:
    """Query [R, N, T, D], keys and values [R, K, T, D] of tokens whose first has the place `first`, padding counted."""
    normed = _norm(hidden, layer["input_layernorm.weight"], family.norm_epsilon)
    num_tokens = hidden.shape[1]
    places = first + jnp.arange(num_tokens)[None, :] - padding[:, None]
    angles = jnp.maximum(places, 0)[..., None].astype(jnp.float32) * inverse
    turned = jnp.concatenate([angles, angles], -1)[:, None]
    cos, sin = ((f(turned) * family.rotary_scaling).astype(hidden.dtype) for f in (jnp.cos, jnp.sin))

    def heads(part: str, count: int) -> jax.Array:
        out = _linear(layer, f"self_attn.{part}_proj", normed).reshape(*hidden.shape[:2], count, family.head_dim)
        own = f"self_attn.{part}_norm.weight"
        return (_norm(out, layer[own], family.norm_epsilon) if own in layer else out).swapaxes(1, 2)

    query, keys, values = heads("q", family.num_heads), heads("k", family.num_kv_heads), heads("v", family.num_kv_heads)
    return _rotated(query, cos, sin), _rotated(keys, cos, sin), values


def attend_prompt(
    family: XlaFamily, query: jax.Array, keys: jax.Array, values: jax.Array, padding: jax.Array
) -> jax.Array:
    """Causal attention among the tokens of the prompts themselves [R, T, N x D]."""
    places = jnp.arange(query.shape[2])
    seen = (places[None, :] <= places[:, None]) & (places >= padding[:, None])[:, None, :]
    return _attended(family, query, keys, values, seen)


def begin_cache(capacity: int, *new: jax.Array) -> Arrays:
    """Keys and values of the prompts, with room for all that will be generated."""
    return tuple(jnp.pad(one, ((0, 0), (0, 0), (0, capacity - one.shape[2]), (0, 0))) for one in new)


def attend_cached(
    family: XlaFamily,
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    at: jax.Array,
    padding: jax.Array,
    *cache: jax.Array,
) -> tuple[jax.Array, Arrays]:
    """Attention of one token a request to a cache of static length, into which its keys and values go at place `at`."""
    joined = tuple(
        jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=2)
        for old, new in zip(cache, (keys, values), strict=True)
    )
    places = jnp.arange(cache[0].shape[2])
    seen = ((places <= at) & (places >= padding[:, None]))[:, None, :]
    return _attended(family, query, joined[0], joined[1], seen), joined


def post_attn(family: XlaFamily, layer: LayerParameters, hidden: jax.Array, attended: jax.Array) -> jax.Array:
    """Output projection, and experts: hidden states that enter the next layer."""
    hidden = hidden + _linear(layer, "self_attn.o_proj", attended)
    normed = _norm(hidden, layer["post_attention_layernorm.weight"], family.norm_epsilon)
    return hidden + (_experts(family, layer, normed) if "mlp.gate.weight" in layer else _dense(layer, normed))


def head(
    family: XlaFamily, norm: jax.Array, weight: jax.Array, table: jax.Array, hidden: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The likeliest next token of each request, and its hidden state [R, 1, H]."""
    logits = _norm(hidden[:, -1], norm, family.norm_epsilon) @ weight.T
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return tokens, table[tokens][:, None]


def _attended(family: XlaFamily, query: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
    num_requests, _, num_tokens, width = query.shape
    grouped = query.reshape(num_requests, family.num_kv_heads, -1, num_tokens, width)
    scores = jnp.einsum("rkgtd,rkwd->rkgtw", grouped, keys).astype(jnp.float32) * family.scale
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, LOWEST), axis=-1).astype(query.dtype)
    out = jnp.einsum("rkgtw,rkwd->rtkgd", weights, values)
    return out.reshape(num_requests, num_tokens, -1)


def _experts(family: XlaFamily, layer: LayerParameters, tokens: jax.Array) -> jax.Array:
    """An expert that any token chose computes all of them, and counts with its gate.

    So its shape does not depend on how many chose it. As a branch it is nothing where none did, and what it cuts from
    the pages is gone before the next one begins.
    """
    logits = tokens @ layer["mlp.gate.weight"].T
    chosen, numbers = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), family.top_k)
    if family.gates_sum_to_one:
        chosen = chosen / chosen.sum(-1, keepdims=True)
    total = jnp.zeros_like(tokens)
    for expert in range(family.num_experts):
        gate = jnp.where(numbers == expert, chosen, 0).sum(-1, keepdims=True).astype(tokens.dtype)
        add = partial(_add_expert, layer, expert)
        total = jax.lax.cond((gate > 0).any(), add, lambda total, *_: total, total, tokens, gate)
    return total


def _add_expert(layer: LayerParameters, expert: int, total: jax.Array, tokens: jax.Array, gate: jax.Array) -> jax.Array:
    gated, up = jnp.split(tokens @ layer.of_expert("mlp.experts.gate_up_proj", expert).T, 2, axis=-1)
    down = layer.of_expert("mlp.experts.down_proj", expert)
    return total + ((jax.nn.silu(gated) * up) @ down.T) * gate


def _dense(layer: LayerParameters, tokens: jax.Array) -> jax.Array:
    gated, up = (tokens @ layer[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return (jax.nn.silu(gated) * up) @ layer["mlp.down_proj.weight"].T


def _linear(layer: LayerParameters, name: str, entering: jax.Array) -> jax.Array:
    out = entering @ layer[f"{name}.weight"].T
    return out + layer[f"{name}.bias"] if f"{name}.bias" in layer else out


def _norm(entering: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    wide = entering.astype(jnp.float32)
    scaled = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return weight * scaled.astype(entering.dtype)


def _rotated(entering: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(entering, 2, axis=-1)
    return entering * cos + jnp.concatenate([-second, first], -1) * sin
