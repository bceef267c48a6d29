"""How well rows are predicted that the fit has not seen: a few folds of each machine's rows, and a whole setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from validation.published.fit import Fitted, MachineFit, Progress, fit, machines
from validation.published.predict import Predicted, predict_all
from validation.published.rows import Row

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


def folds(whole: Fitted, rows: Sequence[Row], jobs: int, progress: Progress = lambda _: None) -> list[HeldOut]:
    """Each row of a case's settings predicted by a fit without it: every FOLDS-th run is left out in turn.

    Repetitions of a run stay together, so that no row is predicted from its twin. Each fit begins where the fit to all
    rows, `whole`, ended.
    """
    own = [row for row in rows if row.setting in whole.case.settings]
    runs = list(dict.fromkeys(row.run for row in own))
    found = []
    for k in range(FOLDS):
        left_out = set(runs[k::FOLDS])
        fitted = fit(whole.case, [row for row in own if row.run not in left_out], jobs, progress, whole.values)
        out = [row for row in own if row.run in left_out]
        found.append(_held_out(f"fold {k + 1} of {FOLDS}", fitted, out, jobs))
    return found


def without_setting(case: MachineFit, setting: str, rows: Sequence[Row], jobs: int, progress: Progress) -> HeldOut:
    """The rows of one setting predicted by a fit to the case's other settings; what only it has stays at its start."""
    fitted = fit(case, [row for row in rows if row.setting != setting], jobs, progress)
    return _held_out(f"without {setting}", fitted, [row for row in rows if row.setting == setting], jobs)


def _held_out(name: str, fitted: Fitted, out: Sequence[Row], jobs: int) -> HeldOut:
    return HeldOut(name, fitted, list(predict_all(out, machines([fitted]), jobs)))
