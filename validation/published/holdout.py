"""How well rows are predicted that the fit has not seen: a few folds of each machine's rows, and a whole setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from validation.published.fit import Fitted, MachineFit, Progress, fit, machines, usable
from validation.published.predict import Predicted, predict_all
from validation.published.rows import Row
from validation.published.setups import SETTINGS

FOLDS = 3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Predictions of rows by a fit without them."""

    name: str
    fitted: Fitted
    predictions: list[Predicted]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [one.to_dict() for one in self.predictions]
        return {"name": self.name, "machine": self.fitted.case.machine, "rows": rows}


def folds(whole: Fitted, rows: Sequence[Row], jobs: int, progress: Progress | None = None) -> list[HeldOut]:
    """Each row of a case's settings predicted by a fit without it: every FOLDS-th run is left out in turn.

    Repetitions of a run stay together, so that no row is predicted from its twin. Each fit begins where the fit to all
    rows, `whole`, ended.
    """
    own = [row for row in rows if row.setting in whole.case.settings]
    runs = list(dict.fromkeys(map(_run, own)))
    found = []
    for k in range(FOLDS):
        left_out = set(runs[k::FOLDS])
        out = [row for row in own if _run(row) in left_out]
        kept = [row for row in own if _run(row) not in left_out]
        fitted = fit(whole.case, kept, jobs, progress, whole.values)
        found.append(_held_out(f"fold {k + 1} of {FOLDS}", fitted, out, jobs))
    return found


def _run(row: Row) -> tuple[object, ...]:
    """What repetitions of a run have in common."""
    return (*row.cell, row.schedule, row.num_micro_batches)


def without_setting(
    case: MachineFit, setting: str, rows: Sequence[Row], jobs: int, progress: Progress | None = None
) -> HeldOut:
    """The rows of one setting predicted by a fit to the case's other settings; what only it has stays at its start."""
    kept = [row for row in usable(rows, case) if row.setting != setting]
    out = [row for row in rows if row.setting == setting]
    return _held_out(f"without {setting}", fit(case, kept, jobs, progress), out, jobs)


def _held_out(name: str, fitted: Fitted, out: Sequence[Row], jobs: int) -> HeldOut:
    presets = machines([fitted], [machine for _, machine in SETTINGS.values()])
    return HeldOut(name, fitted, predict_all(out, presets, jobs))
