"""The parts of a model that quantisers name: matrices with their kind, and how checkpoints spell them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sim.problem.presets import FOLDER
from sim.problem.widths.widths import KINDS, Widths
from traces.files import read_toml

_SPELLINGS: Mapping[str, Mapping[str, list[str]]] = read_toml(FOLDER / "module_names.toml")


@dataclass(frozen=True, slots=True)
class Module:
    """One matrix of a model; of experts, those of a layer together."""

    kind: str
    """Of `Widths`."""
    part: str
    """q, k, v, o, gate, up, down and the like; empty for biases and norms, which stay as they are trained."""
    params: int
    inputs: int = 1
    """Numbers of a row."""
    layer: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All that checkpoints call it."""
        spelt = _SPELLINGS.get(self.kind, {}).get(self.part, [])
        return tuple(spelt if self.layer is None else [f"model.layers.{self.layer}.{one}" for one in spelt])


def mean_widths(found: Iterable[tuple[Module, float]], router: float) -> Widths:
    """The width of each kind over its modules of so many bits; of a kind that a model lacks, that of the embedding."""
    numbers, bits = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0)
    last = dict[str, float]()
    for module, width in found:
        numbers[module.kind] += module.params
        bits[module.kind] += module.params * width
        same = last.setdefault(module.kind, width) == width
        last[module.kind] = width if same else 0.0
    mean = {kind: last[kind] or bits[kind] / count for kind, count in numbers.items() if count}
    return Widths(**{**dict.fromkeys(KINDS, mean.get("embedding", router)), "router": router, **mean})
