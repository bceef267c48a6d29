"""What llama.cpp's names of files say: Q4_K_M and the like give each kind of tensor a type of its own.

The rules and where they come from are in `sim/presets/gguf_widths.toml`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim.problem.presets import FOLDER
from sim.problem.widths.modules import Module, mean_widths
from sim.problem.widths.widths import Widths
from traces.files import read_toml

_TABLES = read_toml(FOLDER / "gguf_widths.toml")

TYPE_BITS: Mapping[str, float] = _TABLES["bits"]
"""Bits of a weight by the type of its tensor."""
_FILES: Mapping[str, Mapping[str, Any]] = _TABLES["files"]
_BLOCK = {name: int(size) for size, names in _TABLES["blocks"].items() for name in names}

FILE_NAMES = tuple(_FILES)
"""The names of files that llama.cpp's quantiser writes."""

PLAIN_BITS = 32.0
"""Routers, norms and biases stay as wide as they are computed."""
EIGHT = 8
GROUPED = 4


def file_name(text: str) -> str | None:
    """The name as llama.cpp writes it; None if it is none."""
    name = text.upper().replace("-", "_")
    name = _TABLES["other_names"].get(name, name)
    return name if name in _FILES else None


def gguf_widths(
    name: str, modules: Sequence[Module], num_layers: int, num_experts: int, heads_a_group: float, *, tied: bool
) -> Widths:
    """The widths that a model of these modules has in a file of that name."""
    rules = _FILES[name]
    facts = {"eight": num_experts == EIGHT, "grouped": heads_a_group >= GROUPED}

    def bits(module: Module) -> float:
        if not module.part:
            return PLAIN_BITS
        if module.kind == "head" or (module.kind == "embedding" and tied):
            return TYPE_BITS[_of_head(rules, module)]
        if module.kind == "embedding":
            return TYPE_BITS[_fitting(rules.get("embedding", rules["type"]), module.inputs)]
        own = rules.get(module.kind) or rules.get(module.part, {})
        return TYPE_BITS[_fitting(_chosen(own, rules["type"], module.layer or 0, num_layers, facts), module.inputs)]

    return mean_widths(((module, bits(module)) for module in modules), PLAIN_BITS)


def _of_head(rules: Mapping[str, Any], module: Module) -> str:
    usual: str = rules["type"]
    return str(rules.get("head", "Q6_K")) if module.inputs % _BLOCK.get(usual, 32) == 0 else "Q8_0"


def _chosen(own: Mapping[str, str], usual: str, layer: int, num_layers: int, facts: Mapping[str, bool]) -> str:
    """The type of a tensor by the rules of its part: the last one that holds."""
    found = usual
    for when, name in own.items():
        if all(facts[one] if one in facts else _LAYERS[one](layer, num_layers) for one in when.split()):
            found = name
    return found


def _has_more_bits(layer: int, count: int) -> bool:
    return layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2


_LAYERS: Mapping[str, Callable[[int, int], bool]] = {
    "all": lambda _layer, _count: True,
    "two": lambda layer, _count: layer < 2,
    "four": lambda layer, _count: layer < 4,
    "eighth": lambda layer, count: layer < count // 8,
    "sixteenth": lambda layer, count: layer < count // 16,
    "middle": lambda layer, count: count // 8 <= layer < 7 * count // 8,
    "more": _has_more_bits,
}


def _fitting(name: str, inputs: int) -> str:
    """The type, or what stands in for it where rows are no multiple of its block."""
    if inputs % _BLOCK.get(name, 32) == 0:
        return name
    other = _TABLES["instead"].get(name, "F16")
    return other if inputs % _BLOCK.get(other, 32) == 0 else "F16"
