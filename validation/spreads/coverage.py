"""Whether bands hold what they promise, on machines that their spreads were not learnt from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim.simulation import Range, Spreads, band_of
from traces.cli import in_processes
from validation.spreads.evidence import Evidence
from validation.spreads.learn import learnt_from
from validation.spreads.runs import PublishedRun


@dataclass(frozen=True, slots=True)
class Held:
    """One run, and the band of its prediction with spreads that no machine of its kin has taught."""

    run: PublishedRun
    band: Range
    spreads: Spreads

    @property
    def is_held(self) -> bool:
        return self.run.measured in self.band

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        run = self.run
        names = ("name", "machine", "kin", "is_fitted", "measure", "measured")
        found = {name: getattr(run, name) for name in names}
        return {**found, "low": self.band.low, "high": self.band.high, "is_held": self.is_held}


def hold_out(evidence: Sequence[Evidence], jobs: int | None = None) -> Iterator[Held]:
    """Each run with its band, kin by kin: the spreads are learnt from all other machines."""
    for kin in dict.fromkeys(one.run.kin for one in evidence):
        spreads = learnt_from([one for one in evidence if one.run.kin != kin])
        runs = [one.run for one in evidence if one.run.kin == kin]
        yield from in_processes(partial(_held, spreads), runs, jobs)


def _held(spreads: Spreads, run: PublishedRun) -> Held:
    return Held(run, getattr(band_of(run.setup, spreads), run.measure), spreads)


def share_held(held: Sequence[Held]) -> float:
    """What share of runs lies in its band."""
    return sum(one.is_held for one in held) / len(held)
