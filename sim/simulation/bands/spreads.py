"""How far numbers of each basis are from what machines do, and how far the model is, learnt from published runs.

`python -m validation spreads --write` learns them and writes `sim/presets/spreads.toml`; docs/published.md says how.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import msgspec

from sim.problem import Basis
from traces.files import read_toml

SPREADS = Path(__file__).parents[2] / "presets" / "spreads.toml"

LEVEL = 0.8
"""Share of runs that a band is to hold."""


@dataclass(frozen=True, slots=True)
class Spreads:
    """Standard deviations of logarithms: 0.1 is about a tenth. Of numbers by basis, and of the model in each phase."""

    measured: float
    fitted: float
    datasheet: float
    assumed: float
    model_in_prefill: float
    model_in_decode: float

    @classmethod
    def learnt(cls) -> Self:
        """Those that come with the project."""
        return msgspec.convert(read_toml(SPREADS)["spreads"], cls)

    def of(self, basis: Basis) -> float:
        """Of numbers that are known so."""
        return float(getattr(self, basis.value))

    def to_dict(self) -> dict[str, float]:
        """As JSON values."""
        return asdict(self)
