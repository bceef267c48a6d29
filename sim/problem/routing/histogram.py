"""A routing histogram: how many tokens of a run used each expert of each layer, and the file that holds it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from sim.problem.model import Model
from traces.cli import SCHEMA, write_json
from traces.errors import InputError, check_count, check_keys, check_text, error_prefix, shown
from traces.files import read_object

MEND = "record one with `python -m engine run --record-routing FILE`"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How many of `tokens` tokens used each expert."""

    tokens: int
    used: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerHistogram:
    """What the tokens of prompts and the generated ones used of a layer's routed experts, each its top k.

    Raises InputError for counts that no tokens can have made.
    """

    top_k: int
    prefill: TokenCounts
    decode: TokenCounts

    def __post_init__(self) -> None:
        check_count("top_k", self.top_k)
        for name, counts in (("prefill", self.prefill), ("decode", self.decode)):
            for number, used in enumerate(counts.used):
                if check_count(f"{name}.used[{number}]", used, 0) > counts.tokens:
                    raise InputError(f"{name}.used[{number}]: {used} is more than all {counts.tokens} tokens")
            total = check_count(f"{name}.tokens", counts.tokens, 0) * self.top_k
            if sum(counts.used) != total:
                given = f"{name}.used: adds up to {sum(counts.used)}"
                raise InputError(f"{given}, but {counts.tokens} tokens use {self.top_k} experts each, together {total}")
        if len(self.prefill.used) != len(self.decode.used):
            numbers = f"{len(self.prefill.used)} and {len(self.decode.used)}"
            raise InputError(f"used: prefill and decode hold {numbers} experts; they are of one layer")

    @property
    def num_experts(self) -> int:
        return len(self.prefill.used)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Of every layer of a model in order, None for one without routed experts. `source` names it in messages."""

    model: str
    layers: tuple[LayerHistogram | None, ...]
    source: str = ""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file. Raises InputError with the path and the field."""
        table = read_object(Path(path))
        with error_prefix(f"routing histogram {path}: "):
            check_keys(table, ("schema", "model", "layers"), ("schema", "model", "layers"), hint=MEND)
            if table["schema"] != SCHEMA:
                raise InputError(f"schema: {shown(table['schema'])} is not known; this version reads {SCHEMA}")
            if not isinstance(table["layers"], list) or not table["layers"]:
                raise InputError(f"layers: not a list of one object (or null) per layer; {MEND}")
            layers = tuple(_layer(layer, f"layers[{at}]") for at, layer in enumerate(table["layers"]))
            return cls(check_text("model", table["model"]), layers, str(path))

    def write(self, path: str | Path) -> None:
        """Write a file for `read`. Raises InputError if it cannot be written."""
        write_json(path, {"model": self.model, "layers": [layer and asdict(layer) for layer in self.layers]})

    def check_fits(self, model: Model) -> None:
        """Raise InputError if it is of a model of another form: layers, experts or top k."""
        given = [(layer.num_experts, layer.top_k) if layer else (0, 0) for layer in self.layers]
        wanted = [(layer.num_experts, layer.top_k if layer.num_experts else 0) for layer in model.layers]
        if given == wanted:
            return
        where = f"routing histogram {self.source}: is of {self.model}"
        mend = f"for {model.name}, give one of that model"
        if len(given) != len(wanted):
            raise InputError(f"{where} with {len(given)} layers, not {len(wanted)}; {mend}")
        at = next(at for at, pair in enumerate(given) if pair != wanted[at])
        (experts, top_k), (model_experts, model_top_k) = given[at], wanted[at]
        raise InputError(
            f"{where}, whose layer {at} uses {top_k} of {experts} experts, not {model_top_k} of {model_experts}; {mend}"
        )


def _layer(table: Any, field: str) -> LayerHistogram | None:
    if table is None:
        return None
    with error_prefix(f"{field}."):
        _check_object(table, "top_k", "prefill", "decode")
        return LayerHistogram(table["top_k"], _counts(table, "prefill"), _counts(table, "decode"))


def _counts(layer: Mapping[str, Any], name: str) -> TokenCounts:
    with error_prefix(f"{name}."):
        _check_object(layer[name], "tokens", "used")
        if not isinstance(layer[name]["used"], list):
            raise InputError("used: not a list of a number for each expert")
        return TokenCounts(check_count("tokens", layer[name]["tokens"], 0), tuple(layer[name]["used"]))


def _check_object(table: Any, *keys: str) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{keys[0]}: missing; {shown(table)} is no object with {', '.join(keys)}")
    check_keys(table, keys, keys)
