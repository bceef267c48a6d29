"""The file of spreads that the simulator reads."""

from collections.abc import Sequence
from pathlib import Path

from sim.simulation import LEVEL, SPREADS, Spreads
from traces.cli import writing
from validation.spreads.coverage import Held, share_held

HEADER = """\
# How far numbers are from what machines do, and the model from runs: standard deviations of logarithms.
# Learnt from {runs} published runs and predictions of them by `python -m validation spreads --write`
# (docs/published.md). With each kin of machines held out, {held:.0%} of its runs lie in their {level:.0%} band.

[spreads]
"""


def write_spreads(spreads: Spreads, held: Sequence[Held], path: Path = SPREADS) -> None:
    """Write it, with what it was learnt from. Raises InputError if it cannot be written."""
    head = HEADER.format(runs=len(held), held=share_held(held), level=LEVEL)
    text = head + "".join(f"{name} = {value:.3g}\n" for name, value in spreads.to_dict().items())
    writing(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
