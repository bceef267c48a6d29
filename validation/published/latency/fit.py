"""Fits few rates of the machines that published rates were measured on, each to two rows at most.

As in the fit of the paper's machines the simulator is the model; what is fitted to which row is in `data/fits.toml`.
How popular a model's experts are is fitted after the machines, to one row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path

import msgspec

from sim.problem import Hardware
from traces.cli import write_text
from traces.errors import InputError
from traces.files import read_toml
from validation.published.fit import ROUNDS, SOFTENS_AT, STEP, Parameter, Progress
from validation.published.latency.known import DATA, POPULARITY_FILE
from validation.published.latency.predict import Values, predict_rate
from validation.published.latency.rows import LatencyRow
from validation.published.presets import set_numbers

ROWS_A_MACHINE = 2


@dataclass(frozen=True, slots=True)
class RateFit:
    """What is unknown of one machine, and the rows that tell it."""

    machine: str
    rows: tuple[str, ...]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Exponent:
    """How popular one model's experts are, and the row that tells it."""

    model: str
    row: str
    start: float
    low: float
    high: float


_TABLE = read_toml(DATA / "fits.toml")
RATE_FITS = msgspec.convert(_TABLE["machines"], tuple[RateFit, ...])
EXPONENTS = msgspec.convert(_TABLE["popularity"], tuple[Exponent, ...])

FITTED_ROWS = frozenset(name for one in RATE_FITS for name in one.rows) | {one.row for one in EXPONENTS}
"""Rows that something is fitted to; all others are predicted."""


@dataclass(frozen=True, slots=True)
class FittedRates:
    """What came out: values by machine and parameter, and exponents by model."""

    values: Mapping[str, Mapping[str, float]]
    exponents: Mapping[str, float] = field(default_factory=dict)

    @property
    def machines(self) -> dict[str, Hardware]:
        """The presets with what was fitted."""
        fits = {one.machine: one for one in RATE_FITS}
        return {name: _with(fits[name], Hardware.load(name), values) for name, values in self.values.items()}

    @property
    def as_values(self) -> Values:
        """What to predict rows with."""
        return Values(self.machines, self.exponents)

    def write(self) -> Iterator[Path]:
        """Write the values into the machines' files, and the exponents into theirs; yields each file."""
        for one in RATE_FITS:
            values = self.values[one.machine]
            numbers = {path: values[part.name] for part in one.parameters for path in part.paths}
            yield set_numbers(one.machine, numbers, _source(one.rows))
        yield self._write_exponents()

    def _write_exponents(self) -> Path:
        """The comments at the top of the file stay."""
        kept = [line for line in POPULARITY_FILE.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        lines = [f'"{one.model}" = {self.exponents[one.model]:.3g} # fitted to {one.row}' for one in EXPONENTS]
        write_text(POPULARITY_FILE, "\n".join([*kept, *lines, ""]))
        return POPULARITY_FILE


def _source(names: Sequence[str]) -> str:
    return f"fitted to {' and '.join(names)} of the published rates: python -m validation published --fit"


def _with(case: RateFit, machine: Hardware, values: Mapping[str, float]) -> Hardware:
    for part in case.parameters:
        for path in part.paths:
            machine = machine.with_value(path, values[part.name], _source(case.rows))
    return machine


def fit_rates(rows: Sequence[LatencyRow], progress: Progress = lambda _: None) -> FittedRates:
    """Fit every machine, one after the other as some extend others, then the popularity of experts."""
    by_name = {row.name: row for row in rows}
    found: dict[str, dict[str, float]] = {}
    for case in RATE_FITS:
        progress(case.machine)
        found[case.machine] = _fit_machine(case, [by_name[name] for name in case.rows])
    machines = FittedRates(found).machines
    exponents: dict[str, float] = {}
    for one in EXPONENTS:
        progress(f"popularity of {one.model}")
        exponents[one.model] = _fit_exponent(one, by_name[one.row], machines)
    return FittedRates(found, exponents)


def _fit_machine(case: RateFit, rows: Sequence[LatencyRow]) -> dict[str, float]:
    preset, names = Hardware.load(case.machine), [one.name for one in case.parameters]

    def errors(values: Sequence[float]) -> list[float]:
        machine = _with(case, preset, dict(zip(names, values, strict=True)))
        return [_log_error(row, Values({case.machine: machine}, {})) for row in rows]

    bounds = [(one.start, one.low, one.high) for one in case.parameters]
    return dict(zip(names, _least_squares(errors, bounds), strict=True))


def _fit_exponent(case: Exponent, row: LatencyRow, machines: Mapping[str, Hardware]) -> float:
    def errors(values: Sequence[float]) -> list[float]:
        return [_log_error(row, Values(machines, {case.model: values[0]}))]

    return _least_squares(errors, [(case.start, case.low, case.high)])[0]


def _log_error(row: LatencyRow, values: Values) -> float:
    said = predict_rate(row, values)
    if said.value is None or row.value is None:
        raise InputError(f"{row.name}: cannot be fitted to: {said.reason or 'it has no value'}")
    return log(said.value / row.value)


def _least_squares(
    errors: Callable[[Sequence[float]], list[float]], bounds: Sequence[tuple[float, float, float]]
) -> list[float]:
    """Values above 0 with the least errors, by their logarithms, from (start, low, high) of each."""
    from scipy.optimize import least_squares

    start, low, high = ([log(value) for value in values] for values in zip(*bounds, strict=True))
    loss = {"loss": "soft_l1", "f_scale": SOFTENS_AT}
    ends = {"xtol": 1e-3, "ftol": 1e-4, "max_nfev": ROUNDS}
    found = least_squares(
        lambda logs: errors([exp(one) for one in logs]), start, bounds=(low, high), diff_step=STEP, **loss, **ends
    )
    return [exp(float(one)) for one in found.x]
