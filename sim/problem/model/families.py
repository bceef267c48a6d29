"""What the code of a model family fixes, and its `config.json` therefore leaves out.

The tables are in `sim/presets/config_json.toml`; a test compares each family with the parameters of a real model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.problem.model.layer import FUSED, Held
from sim.problem.presets import FOLDER
from traces.files import read_toml


@dataclass(frozen=True, slots=True)
class Family:
    """What the code of a family fixes."""

    qk_norm: str = "as configured"
    """Normalises queries and keys over each "head", over the whole "width", or not at all: "none"."""
    norms_per_layer: int = 2
    norm_bias: bool = False
    qkv_bias: bool = False
    output_bias_as_qkv: bool = True
    output_gate: bool = False
    sinks: bool = False
    router_bias: bool = False
    """A bias of the router, or a correction that balances the choice of experts: one number an expert either way."""
    expert_bias: bool = False
    expert_held: Held = FUSED
    computes_all_experts: bool = False
    computes_experts_in_turn: bool = False
    shared_experts: int = 0
    shared_gate: bool = False
    routed_heads: bool = False
    tie_embeddings: bool = False
    full_every: int = 0


_TABLES = read_toml(FOLDER / "config_json.toml")

NAMES: Mapping[str, Sequence[str]] = _TABLES["names"]
"""By the usual name of a field, its other names."""
FAMILIES = {
    name: Family(**{**fixed, "expert_held": tuple(tuple(moment) for moment in fixed.get("expert_held", FUSED))})
    for name, fixed in _TABLES["families"].items()
}
REFUSED_FIELDS: Mapping[str, str] = _TABLES["refused_fields"]
REFUSED_TYPES: Mapping[str, str] = _TABLES["refused_types"]
