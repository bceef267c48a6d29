"""What the code of a model family fixes, and its `config.json` therefore leaves out.

The tables are in `sim/presets/config_json.toml`; a test compares each family with the parameters of a real model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.problem.model.feed_forward import FUSED, Held
from sim.problem.presets import FOLDER
from traces.files import read_toml


@dataclass(frozen=True, slots=True)
class Family:
    """What the code of a family fixes."""

    name: str = ""
    """Empty where the family is not known."""
    layer_types: Sequence[str] = ()
    """Kinds of layers, over and over, where the configuration says nothing."""
    full_every: int = 0
    """Every so many layers attend to everything, the others in the window."""
    linear: str = ""
    """What "linear attention" is: delta, kimi, mamba, mamba2, lightning or convolution."""
    indexes: bool = False
    """Layers that attend to everything do so through an index."""
    index_every: int = 1
    """Every so many layers have an index of their own, whose choice the others take over."""
    dense_first: int = 0
    """Layers without experts at the start."""
    qk_norm: str = "as configured"
    """Normalises queries and keys over each "head", over the whole "width", or not at all: "none"."""
    norms_per_layer: int = 2
    norms_with_experts: int = 0
    """Further norms of a layer with experts."""
    norm_bias: bool = False
    qkv_bias: bool = False
    output_bias_as_qkv: bool = True
    gate: str = ""
    """What attention returns is multiplied by a projection as wide as itself ("channel") or as its heads ("head")."""
    sinks: Sequence[str] = ()
    """The kinds of layers whose heads have a weight of their own in the softmax."""
    router_bias: bool = False
    """A bias of the router, or a correction that balances the choice of experts: one number an expert either way."""
    expert_bias: bool = False
    expert_held: Held = FUSED
    gated: bool = True
    """Whether networks have a gate; without one they are two matrices."""
    computes_all_experts: bool = False
    computes_experts_in_turn: bool = False
    shared_experts: int = 0
    shared_gate: bool = False
    routed_heads: bool = False
    floors_head_dim: bool = False
    """A head's size is rounded down where it is not given and heads do not divide the hidden size."""
    tie_embeddings: bool = False
    attends_twice: bool = False
    """Each layer has two attentions and two dense networks, one after the other (LongCat)."""
    dense_beside_experts: bool = False
    """Layers with experts have a dense network too."""
    one_part: bool = False
    """A layer has a mixer, experts or a dense network, and only that (Nemotron-H)."""
    zero_experts: int = 0
    """Experts that compute nothing and may be chosen."""
    unrotated_every: int = 0
    """Every so many layers do not rotate queries and keys, whose heads then keep their size (Mistral Large 4)."""
    end_norms: int = 1
    """Norms, and other vectors as wide, before the first layer and behind the last one."""
    residual_head: bool = False
    """Whether the streams of the residual are summed up by weights of their own behind the last layer."""
    residual_rows: str = ""
    """How many rows mix the streams of the residual, where there are several: "full" (DeepSeek-V4) or "half"."""


_TABLES = read_toml(FOLDER / "config_json.toml")

NAMES: Mapping[str, Sequence[str]] = _TABLES["names"]
"""By the usual name of a field, its other names."""
REFUSED_TYPES: Mapping[str, str] = _TABLES["refused_types"]
REFUSED_FIELDS: Mapping[str, str] = _TABLES["refused_fields"]
HARMLESS: Sequence[str] = _TABLES["unread"]["without_size"]
"""Patterns of names that say nothing about what a model stores or computes."""


def _family(name: str, fixed: Mapping[str, Any]) -> Family:
    like = {**_TABLES["families"][fixed["like"]], **fixed} if "like" in fixed else dict(fixed)
    like.pop("like", None)
    held = tuple(tuple(moment) for moment in like.pop("expert_held", FUSED))
    return Family(name, **like, expert_held=held)


FAMILIES = {name: _family(name, fixed) for name, fixed in _TABLES["families"].items()}


def family_of(model_type: str) -> Family:
    """The family of a model type, whatever of a larger model it is a part of; one without a name if none is known."""
    return FAMILIES.get(model_type) or FAMILIES.get(model_type.removesuffix("_text"), Family())
