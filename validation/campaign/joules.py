"""Joules per token of a case's repeats, measured and predicted, of what was counted in all of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from validation.metrics import Spread, relative_error, spread_of
from validation.replay import Replay


@dataclass(frozen=True, slots=True)
class CaseEnergy:
    """Joules per generated token over repeats, what was simulated, and its error. `counted` names what counters saw."""

    measured: Spread
    predicted_j_per_token: float
    error: float
    counted: tuple[str, ...]


def case_energy(replays: Sequence[Replay]) -> CaseEnergy | None:
    """None unless the same components were counted in every repeat."""
    checks = [one.energy_check for one in replays if one.energy_check is not None]
    counted = {tuple(part.what for part in one.components) for one in checks}
    if len(checks) < len(replays) or len(counted) != 1:
        return None
    measured = spread_of([one.measured_j_per_token for one in checks])
    predicted = statistics.median(one.predicted_j_per_token for one in checks)
    return CaseEnergy(measured, predicted, relative_error(predicted, measured.median), counted.pop())
