"""The answer to "is my speed normal?": each measured speed beside the band of its prediction, and the plan's best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sim.comparison.check.as_run import AsRun, as_run
from sim.comparison.check.first_try import first_try
from sim.comparison.check.measurement import Measurement
from sim.comparison.check.resources import PartUse, most_used
from sim.planning import Candidate, NothingFitsError, best_policy, in_short
from sim.problem import Problem
from sim.simulation import Band, Prediction, Range, band_of, predict
from traces.data_frame import Tabular

WORTH_CHANGING = 0.05
"""Relative gain from which another setting is worth telling."""


class Verdict(StrEnum):
    """Where a measured speed is."""

    BELOW = "below its band"
    WITHIN = "within its band"
    ABOVE = "above its band"


@dataclass(frozen=True, slots=True)
class SpeedAnswer:
    """One measured speed and what was predicted of it."""

    measurement: Measurement
    run: AsRun
    prediction: Prediction
    band: Band
    use: PartUse
    best: Candidate | None
    """The best that the same schedule could do with as many requests; None where it was not looked for."""

    @property
    def measured(self) -> float:
        return self.run.tokens_per_s

    @property
    def predicted(self) -> float:
        return self._of(self.prediction)

    @property
    def within(self) -> Range:
        found = getattr(self.band, self.measurement.speed.of_prediction)
        assert isinstance(found, Range)
        return found

    @property
    def verdict(self) -> Verdict:
        if self.measured in self.within:
            return Verdict.WITHIN
        return Verdict.BELOW if self.measured < self.within.low else Verdict.ABOVE

    @property
    def measured_share(self) -> float:
        """Of the part that the prediction waits for most: what the measured speed would use of it."""
        return self.use.share * self.measured / self.predicted

    @property
    def best_tokens_per_s(self) -> float | None:
        return self._of(self.best) if self.best else None

    @property
    def better_setting(self) -> str:
        """The plan's policy, if it is that much faster than the run's is predicted to be."""
        best = self.best_tokens_per_s
        if self.best is None or best is None or best <= self.predicted * (1 + WORTH_CHANGING):
            return ""
        policy = self.best.policy
        if policy.host_layers and self.measurement.setting.program == "llama.cpp":
            return f"--n-cpu-moe {policy.host_layers[1]}"
        return in_short(policy)

    @property
    def first(self) -> str:
        """The first thing to try, in words."""
        if self.verdict is Verdict.ABOVE:
            number = self.band.first_to_measure
            what = f"{number.name}, with {number.measure_with}" if number else "a run of its own"
            return f"nothing: the machine is better than its file says; measure {what}"
        if self.verdict is Verdict.BELOW:
            return first_try(self.use.part, self.measurement.setting)
        if self.better_setting:
            return f"{self.better_setting}: {self.best_tokens_per_s:,.1f} tokens/s by the plan"
        return "nothing: this is what such a machine does, and the setting is about the best"

    def _of(self, prediction: Prediction) -> float:
        return float(getattr(prediction, self.measurement.speed.of_prediction) or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        setup = self.prediction.setup
        return {
            "phase": self.measurement.speed.value,
            "measured_tokens_per_s": self.measured,
            "predicted_tokens_per_s": self.predicted,
            "low_tokens_per_s": self.within.low,
            "high_tokens_per_s": self.within.high,
            "verdict": self.verdict.name.lower(),
            "resource": self.use.part,
            "lane": self.use.lane,
            "predicted_share": self.use.share,
            "measured_share": self.measured_share,
            "first_try": self.first,
            "schedule": setup.schedule.name,
            "policy": setup.policy.to_dict(),
            "best_policy": self.best and self.best.policy.to_dict(),
            "best_tokens_per_s": self.best_tokens_per_s,
            "requests": self.measurement.requests,
            "setting": self.measurement.setting.to_dict(),
            "notes": list(self.run.notes),
            "band": self.band.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class SpeedCheck(Tabular):
    """All answers on one machine."""

    problem: Problem
    answers: tuple[SpeedAnswer, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One for each speed that was measured."""
        return [one.to_dict() for one in self.answers]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"model": self.problem.model.name, "hardware": self.problem.hardware.name, "answers": self.rows()}


def check_measured(
    problem: Problem,
    measurements: Sequence[Measurement],
    schedule: str = "",
    policy: Mapping[str, Any] | None = None,
    *,
    plans: bool = True,
) -> SpeedCheck:
    """Hold what was measured against predictions of the same runs, and against the best setting where it `plans`.

    Raises InputError where a run cannot be set up.
    """
    return SpeedCheck(problem, tuple(_answer(problem, one, schedule, policy, plans=plans) for one in measurements))


def _answer(
    problem: Problem, measurement: Measurement, schedule: str, policy: Mapping[str, Any] | None, *, plans: bool
) -> SpeedAnswer:
    run = as_run(problem, measurement, schedule, policy)
    prediction = predict(run.setup, compiled=True, must_fit=False)
    best = _best(run, measurement.requests) if plans else None
    band, use = band_of(run.setup), most_used(prediction, measurement.speed)
    return SpeedAnswer(measurement, run, prediction, band, use, best)


def _best(run: AsRun, requests: int) -> Candidate | None:
    try:
        return best_policy(run.setup.problem, run.setup.schedule, num_requests=requests).best
    except NothingFitsError:
        return None
