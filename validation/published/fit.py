"""Fits the paper machines' few unknown rates to published rows, with the simulator itself as the model.

Residuals are logarithms of predicted over measured throughput, weighed by how closely a system has to be met.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import exp, log
from typing import Any

import msgspec

from sim.problem import Hardware
from sim.simulation import predict
from traces.files import read_toml
from validation.published.rows import BASELINE_BAR, CGOPIPE_BAR, FOLDER, Row
from validation.published.setups import SETTINGS, device_kind, machine_of, pose, schedule_of

SOFTENS_AT = 0.1
"""Residual from which the loss grows more slowly than its square: the usual noise, 2 to 8 % between equal runs."""

STEP = 0.03
"""Relative change of a rate that shows its effect: larger than what rounding to nanoseconds and requests hides."""

ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Parameter:
    """One unknown: the numbers of a machine's file that it sets alike, in SI units; where to begin, within what."""

    paths: tuple[str, ...]
    start: float
    low: float
    high: float
    name: str
    bound_by: str
    several_devices: bool = False
    by_cores: int = 0
    """How it goes with the cores of a host: 1 for a rate, -1 for a time, 0 if it does not."""


@dataclass(frozen=True, slots=True)
class MachineFit:
    """One kind of machine: whose rows it is fitted to, and what is unknown of it, on several devices as on one."""

    machine: str
    settings: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    several: str = ""
    several_settings: tuple[str, ...] = ()
    several_schedule: str = ""

    def scale(self, parameter: Parameter, hardware: Hardware) -> float:
        """What a parameter's value is multiplied with on another host."""
        own, cores = _cores(self.machine), hardware.host.cores
        return (cores / own) ** parameter.by_cores if parameter.by_cores and own and cores else 1.0


@lru_cache(maxsize=8)
def _cores(machine: str) -> int | None:
    return Hardware.load(machine).host.cores


def _cases() -> Iterator[MachineFit]:
    known = read_toml(FOLDER / "fits.toml")
    for case in known["machines"]:
        starts = case.pop("starts").items()
        parameters = [{"name": name, "start": start, **known["parameters"][name]} for name, start in starts]
        yield msgspec.convert({**case, "parameters": parameters}, MachineFit)


CASES = tuple(_cases())
"""What is fitted, and what its fields mean: `data/fits.toml`."""

Values = dict[str, float]
"""Values of parameters by name."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came out for one machine."""

    case: MachineFit
    values: Values
    num_rows: int

    @property
    def source(self) -> str:
        """What to write beside the values."""
        case = self.case
        several = f" and of {case.several_schedule} in {' and '.join(case.several_settings)}"
        also = several if case.several_settings else ""
        return (
            f"fitted to the {self.num_rows} published rows with a known policy of {' and '.join(case.settings)}{also} "
            "(MoE-Lightning, arXiv 2411.11217, and its artifact, branch asplos25): python -m validation published --fit"
        )


def usable(rows: Sequence[Row], case: MachineFit) -> list[Row]:
    """Rows that a case is fitted to, with a measurement and a published policy: of its settings, or of one schedule."""
    known = [one for one in rows if one.tokens_per_s and one.micro_batch_size]
    several = case.several_settings
    return [
        one
        for one in known
        if one.setting in case.settings or (one.setting in several and one.schedule == case.several_schedule)
    ]


def with_values(hardware: Hardware, case: MachineFit, values: Values, source: str = "a fit under way") -> Hardware:
    """The machine with a case's parameters set."""
    for parameter in case.parameters:
        if hardware.num_devices > 1 or not parameter.several_devices:
            for path in parameter.paths:
                hardware = hardware.with_value(path, values[parameter.name] * case.scale(parameter, hardware), source)
    return hardware


def fit(
    case: MachineFit, rows: Sequence[Row], jobs: int, progress: Progress = lambda _: None, begin: Values | None = None
) -> Fitted:
    """Fit one case to its usable rows; `begin` stands for the case's own start."""
    import numpy as np
    from scipy.optimize import least_squares

    used, trial = usable(rows, case), count(1)
    strict = BASELINE_BAR / CGOPIPE_BAR  # rows that must be met within a smaller error count more
    weights = np.array([strict if schedule_of(row).name == "cgopipe" else 1.0 for row in used])
    start = [log(one.start if begin is None else begin[one.name]) for one in case.parameters]
    bounds = [log(one.low) for one in case.parameters], [log(one.high) for one in case.parameters]
    with _evaluator(used, case, jobs) as evaluate:

        def residuals(logs: Any) -> Any:
            progress(f"{case.machine}: {len(used)} rows, trial {next(trial)}")
            return weights * np.array(evaluate(_values(case, logs)))

        loss = {"loss": "soft_l1", "f_scale": SOFTENS_AT}
        ends = {"xtol": 1e-3, "ftol": 1e-4, "max_nfev": ROUNDS}
        found = least_squares(residuals, start, bounds=bounds, diff_step=STEP, **loss, **ends)
    return Fitted(case, _values(case, found.x), len(used))


def _values(case: MachineFit, logs: Any) -> Values:
    return {one.name: exp(float(value)) for one, value in zip(case.parameters, logs, strict=True)}


@contextmanager
def _evaluator(rows: Sequence[Row], case: MachineFit, jobs: int) -> Iterator[Callable[[Values], list[float]]]:
    """Log errors of all rows as a function of the values. Each process keeps its rows, and so what it knows of them."""
    parts = [rows[i::jobs] for i in range(min(jobs, len(rows)))]
    if len(parts) <= 1:
        yield lambda values: log_errors(rows, case, values)
        return
    pools = [ProcessPoolExecutor(1) for _ in parts]

    def evaluate(values: Values) -> list[float]:
        running = [pool.submit(log_errors, part, case, values) for pool, part in zip(pools, parts, strict=True)]
        found = [0.0] * len(rows)
        for i, future in enumerate(running):
            found[i :: len(parts)] = future.result()
        return found

    try:
        yield evaluate
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def log_errors(rows: Sequence[Row], case: MachineFit, values: Values) -> list[float]:
    """Log of predicted over measured throughput per row, with a case's values on the row's machine."""
    machines = (with_values(Hardware.load(machine_of(row)), case, values) for row in rows)
    setups = (pose(row, machine).setup for row, machine in zip(rows, machines, strict=True))
    said = (predict(setup, compiled=True, must_fit=False).throughput_tokens_per_s for setup in setups)
    return [log(rate / (row.tokens_per_s or 1.0)) for row, rate in zip(rows, said, strict=True)]


def machines(fits: Sequence[Fitted]) -> dict[str, Hardware]:
    """The presets of all settings with what was fitted: several devices get the values of one."""
    known = {name: Hardware.load(name) for _, name in SETTINGS.values()}
    fitted = {one.case.machine: one for one in fits}
    of = {name: fitted[kind] for name in known if (kind := f"gcp-{device_kind(name)}") in fitted}
    return {name: with_values(known[name], one.case, one.values, one.source) for name, one in of.items()}
