"""What is told of learnt spreads: each in words of tokens, and how many runs on unseen machines their bands hold."""

from collections.abc import Iterator, Sequence
from math import exp
from statistics import NormalDist
from typing import Any

from sim.simulation import LEVEL, Spreads
from traces.cli import TEXT, Report
from validation.spreads.coverage import Held, share_held

WITH, WITHOUT = "fitted to other runs", "nothing fitted"


def print_spreads(spreads: Spreads, held: Sequence[Held]) -> None:
    """Print the spreads, then coverage by kin of machines."""
    out = Report()
    wide = NormalDist().inv_cdf((1 + LEVEL) / 2)
    rows = ((name.replace("_", " "), one, f"÷ × {exp(wide * one):.2f}") for name, one in spreads.to_dict().items())
    columns = {"spread": TEXT, "of the logarithm": ".3f", f"{LEVEL:.0%} within": ">"}
    out.table(columns, rows, f"learnt from {len(held)} published runs and predictions of them")
    columns = {"kin of machines": TEXT, "its numbers": TEXT, "runs": "d", "in their band": "d", "share": ".0%"}
    title = f"held out: {LEVEL:.0%} bands of runs on machines whose kin taught nothing"
    out.table(columns, _rows(held), title, keys=2)


def _rows(held: Sequence[Held]) -> Iterator[tuple[Any, ...]]:
    for kin in [*dict.fromkeys(one.run.kin for one in held), "all"]:
        of_kin = [one for one in held if kin in (one.run.kin, "all")]
        for is_fitted, words in ((True, WITH), (False, WITHOUT)):
            some = [one for one in of_kin if one.run.is_fitted is is_fitted]
            if some:
                yield kin, words, len(some), sum(one.is_held for one in some), share_held(some)
    yield "all", "both", len(held), sum(one.is_held for one in held), share_held(held)
