"""From the fields of a GGUF file to those of a Hugging Face `config.json`, architecture by architecture.

The names are in `sim/presets/gguf_keys.toml`. Sizes that a file does not say are read off its tensors.
"""

from collections.abc import Mapping
from typing import Any

from sim.problem.presets import FOLDER
from traces.errors import InputError, check_count, nearest, shown
from traces.files import read_toml

_TABLES = read_toml(FOLDER / "gguf_keys.toml")
_FIELDS: Mapping[str, str] = _TABLES["fields"]
_ARCHITECTURES: Mapping[str, Mapping[str, Any]] = _TABLES["architectures"]

Shapes = Mapping[str, tuple[int, ...]]
"""Of each tensor, the length of its rows first."""


def config_of(fields: Mapping[str, Any], shapes: Shapes, source: str) -> dict[str, Any]:
    """The configuration that a file's fields describe. Raises InputError for an architecture that is not known."""
    architecture = str(fields.get("general.architecture", ""))
    if architecture not in _ARCHITECTURES:
        hint = f"{nearest(architecture, _ARCHITECTURES)}; known are {', '.join(_ARCHITECTURES)}"
        raise InputError(f"{source}: is of architecture {shown(architecture)}, which is not read{hint}")
    known = _ARCHITECTURES[architecture]
    own = {key.removeprefix(f"{architecture}."): value for key, value in fields.items()}
    names = {**_FIELDS, **known.get("keys", {})}
    config = {**known.get("fixed", {}), **{names[key]: value for key, value in own.items() if key in names}}
    config["model_type"] = known["model_type"]
    _count_layers(config, own, source)
    _read_latent(config, own)
    _read_kinds_of_layers(config, own, known)
    _read_linear(config)
    return {**config, **_seen(config, shapes, source)}


def _count_layers(config: dict[str, Any], own: Mapping[str, Any], source: str) -> None:
    """Blocks that predict further tokens are counted with the others in a file."""
    layers = check_count(f"{source}: block_count", config.get("num_hidden_layers"))
    config["num_hidden_layers"] = layers - check_count(
        f"{source}: nextn_predict_layers", own.get("nextn_predict_layers", 0), least=0, most=layers - 1
    )


def _read_latent(config: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Heads of latent attention: a key has a part that rotates; files that keep the latent cache tell heads apart."""
    if "kv_lora_rank" not in config:
        if config.get("v_head_dim") == config.get("head_dim"):
            config.pop("v_head_dim", None)
        return
    key = own.get("attention.key_length_mla", config.pop("head_dim", 0))
    config.pop("head_dim", None)
    config["v_head_dim"] = own.get("attention.value_length_mla", config.get("v_head_dim"))
    config["qk_rope_head_dim"] = own.get("rope.dimension_count", 0)
    config["qk_nope_head_dim"] = key - config["qk_rope_head_dim"]
    config["num_key_value_heads"] = config.get("num_attention_heads")


def _read_kinds_of_layers(config: dict[str, Any], own: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """A window for all layers or for those that a pattern names; layers without heads of keys have no attention."""
    layers = config["num_hidden_layers"]
    pattern = own.get("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= layers:
        kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern[:layers]]
        config["layer_types"] = kinds
    elif isinstance(pattern, int):
        config["sliding_window_pattern"] = pattern
    if fixed := known.get("pattern"):
        every = fixed["full_every"]
        kinds = [fixed["others"] if (layer + 1) % every else "full_attention" for layer in range(layers)]
        config["layer_types"] = kinds
    heads = config.get("num_key_value_heads")
    if isinstance(heads, list):
        kinds_of = known.get("layer_types")
        if kinds_of:
            config["layer_types"] = [kinds_of["with_heads" if one else "without_heads"] for one in heads[:layers]]
        different = {one for one in heads[:layers] if one}
        if len(different) == 1:
            config["num_key_value_heads"] = different.pop()


def _read_linear(config: dict[str, Any]) -> None:
    """Linear layers tell the width of all value heads together."""
    inner = config.pop("linear_inner_size", None)
    if inner is not None:
        config["linear_value_head_dim"] = inner // max(1, config.get("linear_num_value_heads", 1))


def _seen(config: Mapping[str, Any], shapes: Shapes, source: str) -> dict[str, Any]:
    """What the tensors themselves say."""
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise InputError(f"{source}: has no embedding (token_embd.weight): it is no whole language model")
    found: dict[str, Any] = {
        "vocab_size": embedding[1],
        "tie_word_embeddings": "output.weight" not in shapes,
        "dtype": "float16",
    }
    ends = {name.partition(".")[2].partition(".")[2] for name in shapes if name.startswith("blk.")}
    if config["model_type"] == "deepseek_v3" and "exp_probs_b.bias" not in ends:
        found["model_type"] = "deepseek_v2"
    if "attn_q.bias" in ends or "attn_qkv.bias" in ends:
        found["attention_bias"] = True
    if "output.bias" in shapes:
        found["lm_head_bias"] = True
    if "attn_q_norm.weight" in ends:
        found["use_qk_norm"] = True
    return found
