"""The band of a prediction: what it becomes with the machine's numbers drawn anew, and whose spread makes it wide.

Every draw is a whole simulation on the compiled path; nothing is taken to be linear. All setups of one machine get the
same draws, so that schedules are compared on the same machines. The model's own error comes on top, of prefill and of
decode apart: it is what runs differ from predictions even where the machine's numbers were fitted to other runs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sim.cost import Setup
from sim.problem import Basis, Hardware
from sim.simulation.bands.advice import measured_with
from sim.simulation.bands.draws import Floats, stratified
from sim.simulation.bands.spreads import LEVEL, Spreads
from sim.simulation.bands.unknowns import Unknown, unknowns_of, varied
from sim.simulation.prediction import predict
from traces.cli import in_processes

DRAWS = 40
"""Machines that are drawn: with twice as many a band's ends move by a few per cent of its width."""

COARSE = 0.01
"""How near a midpoint the interpolation of decode steps has to be for a draw."""

RIDGE = 1e-3
"""Keeps shares apart where there are more unknowns than draws."""

MODEL = {"model_in_prefill": "the model of prefill", "model_in_decode": "the model of decode"}
"""The model's own terms, and how they are called."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where most runs are: so many below it as above it."""

    low: float
    high: float

    @classmethod
    def around(cls, value: float, drawn: Floats) -> "Range":
        """That of drawn values, widened to hold the predicted one."""
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        return cls(min(low, value), max(high, value))

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        digits = 2 if self.high < 10 else 1 if self.high < 100 else 0
        return f"{self.low:,.{digits}f}–{self.high:,.{digits}f}"


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a band's variance is due to one number, or to the model (`basis` is None then)."""

    name: str
    basis: Basis | None
    share: float
    measure_with: str = ""
    """The command that would measure it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "basis": self.basis and self.basis.value}


@dataclass(frozen=True, slots=True)
class Band:
    """Where LEVEL of runs are that are predicted so, and why it is so wide."""

    throughput_tokens_per_s: Range
    prefill_tokens_per_s: Range
    decode_tokens_per_s: Range | None
    time_to_first_token_s: Range
    seconds_per_token: Range
    shares: tuple[Share, ...]
    """Of the throughput's variance, the largest first."""
    drawn_tokens_per_s: tuple[float, ...]
    """The throughput on each machine that was drawn, without the model's own error."""

    @property
    def first_to_measure(self) -> Share | None:
        """The number that makes most of the band, if there is one that was not measured and is worth it."""
        unknown = [one for one in self.shares if one.basis not in (None, Basis.MEASURED)]
        return next((one for one in unknown if one.share >= WORTH_MEASURING), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        ranges = {name: getattr(self, name) and asdict(getattr(self, name)) for name in RANGES}
        first, shares = self.first_to_measure, [one.to_dict() for one in self.shares[:SHOWN]]
        return {"level": LEVEL, "draws": DRAWS, **ranges, "shares": shares, "measure_first": first and first.to_dict()}


RANGES = (
    *("throughput_tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s"),
    *("time_to_first_token_s", "seconds_per_token"),
)
SHOWN = 5
"""Shares that are told."""

WORTH_MEASURING = 0.05
"""Share of the variance below which measuring a number would not make a band narrower that anybody would see."""


def band_of(setup: Setup, spreads: Spreads | None = None) -> Band:
    """The band of one setup's prediction, whether it fits its memories or not."""
    (found,) = bands_of([setup], spreads, jobs=1)
    return found


def bands_of(setups: Sequence[Setup], spreads: Spreads | None = None, jobs: int | None = None) -> list[Band]:
    """The bands of setups on one machine, from the same draws of it; `jobs` processes share the work."""
    if not setups:
        return []
    spreads, machine = spreads or Spreads.learnt(), setups[0].problem.hardware
    unknowns = unknowns_of(machine)
    drawn = stratified([*(one.name for one in unknowns), *MODEL], DRAWS)
    logs = drawn[:, : len(unknowns)] * [spreads.of(one.basis) for one in unknowns]
    machines = [machine, *(varied(machine, unknowns, factors) for factors in np.exp(logs).tolist())]
    seconds = in_processes(partial(_phases_s, machines), setups, jobs)
    return [_band(setup, found, drawn, unknowns, spreads) for setup, found in zip(setups, seconds, strict=True)]


def _phases_s(machines: Sequence[Hardware], setup: Setup) -> Floats:
    """Seconds of prefill and of decode on each machine. [machine, phase]."""
    return np.array([_simulated_s(replace(setup, problem=replace(setup.problem, hardware=one))) for one in machines])


def _simulated_s(setup: Setup) -> tuple[float, float]:
    found = predict(setup, compiled=True, must_fit=False, tolerance=COARSE)
    return found.prefill_s, found.decode_s


def _band(setup: Setup, seconds: Floats, drawn: Floats, unknowns: Sequence[Unknown], spreads: Spreads) -> Band:
    """From seconds on the machine as it is, and on each that was drawn."""
    drawn_tokens_per_s = setup.batch.generated_tokens / seconds[1:].sum(axis=1)
    of_model = np.exp(drawn[:, len(unknowns) :] * [spreads.model_in_prefill, spreads.model_in_decode])
    seconds = seconds * np.vstack([np.ones(2), of_model])
    prefill_s, decode_s, total_s = seconds[:, 0], seconds[:, 1], seconds.sum(axis=1)
    steps, requests = setup.last_step, setup.batch.num_requests

    def around(values: Floats) -> Range:
        return Range.around(float(values[0]), values[1:])

    return Band(
        around(setup.batch.generated_tokens / total_s),
        around(setup.batch.prompt_tokens / prefill_s),
        around(requests * steps / decode_s) if steps else None,
        around(prefill_s),
        around(decode_s / steps if steps else prefill_s),
        _shares(np.log(total_s[1:] / total_s[0]), drawn, unknowns),
        tuple(drawn_tokens_per_s.tolist()),
    )


def _shares(logs: Floats, drawn: Floats, unknowns: Sequence[Unknown]) -> tuple[Share, ...]:
    """Each unknown's part of the variance, by the slope of the logarithm over its draws."""
    away = logs - logs.mean()
    kernel = drawn @ drawn.T + RIDGE * np.eye(len(drawn))
    slopes = drawn.T @ np.linalg.solve(kernel, away)
    parts = slopes**2 / max(float((slopes**2).sum()), 1e-300)
    known = [(str(one), one.basis, measured_with(one.name)) for one in unknowns]
    named = [*known, *((name, None, "") for name in MODEL.values())]
    found = (
        Share(name, basis, float(part), command) for (name, basis, command), part in zip(named, parts, strict=True)
    )
    return tuple(sorted(found, key=lambda one: -one.share))
