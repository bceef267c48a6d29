"""Fits the paper machines' few unknown rates to published rows, with the simulator itself as the model.

Residuals are logarithms of predicted over measured throughput, weighed by how closely a system has to be met.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, log
from typing import Any

from sim.problem import Hardware
from sim.simulation import predict
from validation.published.rows import BASELINE_BAR, CGOPIPE_BAR, Row
from validation.published.setups import machine_of, pose, schedule_of

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
    """What its bounds stand for, such as `the tensor cores' peak`."""
    several_devices: bool = False
    """Whether only hosts with several devices have it."""


@dataclass(frozen=True, slots=True)
class MachineFit:
    """One kind of machine: whose rows it is fitted to, and what is unknown of it, on several devices as on one.

    Its parameters start at closed-form estimates: a fit that begins far away can end where it is worse.
    """

    machine: str
    settings: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    cgopipe_settings: tuple[str, ...] = ()
    """Settings of several such devices: cgopipe's rows tell their link, all other rows are left to be predicted."""
    several: str = ""
    """The preset with several such devices, from which larger ones inherit."""

    @property
    def rows(self) -> str:
        """Which rows it is fitted to, in words."""
        also = f" and of cgopipe in {' and '.join(self.cgopipe_settings)}" if self.cgopipe_settings else ""
        return f"published rows with a known policy of {' and '.join(self.settings)}{also}"


def _prefill(start: float) -> Parameter:
    paths = ("device.gemm.compute", "device.experts.compute", "device.attention.compute")
    return Parameter(paths, start, 0.02, 0.6, "prefill efficiency", "the tensor cores' peak")


def _pin(start: float) -> Parameter:
    return Parameter(("pin",), start, 3e9, 5e10, "pin copy", "half of the host's memory: a read and a write")


def _request(start: float) -> Parameter:
    return Parameter(("host.request_overhead",), start, 1e-6, 1e-3, "attention per request", "above 0")


_DECODE = Parameter(("device.experts.memory",), 0.55, 0.35, 0.9, "expert GEMMs in decode", "the device's memory")
_PORT = Parameter(
    ("link.h2d", "link.d2h"),
    6e9,
    5.14e9,
    12.3e9,
    "link of one of several devices",
    "pageable copies below, the link of a single device above",
    several_devices=True,
)

CASES = (
    MachineFit("gcp-t4", ("S1",), (_prefill(0.11), _DECODE, _pin(8e9), _request(2e-4), _PORT), ("S6",), "gcp-2xt4"),
    MachineFit("gcp-l4", ("S2",), (_prefill(0.27), _pin(1e10), _request(1e-4))),
)
"""Known already: both hosts' attention and the L4's expert GEMMs (figure 9), links, and pageable copies (artifact)."""

Values = dict[str, float]
"""Values of parameters by name."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came out for one machine."""

    case: MachineFit
    values: Values
    num_rows: int
    rounds: int

    @property
    def source(self) -> str:
        """What to write beside the values."""
        return (
            f"fitted to the {self.num_rows} {self.case.rows} "
            "(MoE-Lightning, arXiv 2411.11217, and its artifact, branch asplos25): python -m validation published --fit"
        )


def usable(rows: Sequence[Row], case: MachineFit) -> list[Row]:
    """Rows that a case is fitted to: of its settings, with a measurement and a published policy."""
    known = [one for one in rows if one.tokens_per_s and one.micro_batch_size]
    return [one for one in known if one.setting in case.settings or _tells_link(one, case)]


def _tells_link(row: Row, case: MachineFit) -> bool:
    return row.setting in case.cgopipe_settings and row.schedule == "cgopipe"


def with_values(hardware: Hardware, case: MachineFit, values: Values, source: str = "a fit under way") -> Hardware:
    """The machine with a case's parameters set."""
    for parameter in case.parameters:
        if hardware.num_devices > 1 or not parameter.several_devices:
            for path in parameter.paths:
                hardware = hardware.with_value(path, values[parameter.name], source)
    return hardware


def fit(
    case: MachineFit, rows: Sequence[Row], jobs: int, progress: Progress | None = None, begin: Values | None = None
) -> Fitted:
    """Fit one case to its usable rows; `begin` stands for the case's own start."""
    import numpy as np
    from scipy.optimize import least_squares

    used = usable(rows, case)
    weights = np.array([_weight(row) for row in used])
    start = [log(one.start if begin is None else begin[one.name]) for one in case.parameters]
    bounds = [log(one.low) for one in case.parameters], [log(one.high) for one in case.parameters]
    with _evaluator(used, case, jobs) as evaluate:
        tried = 0

        def residuals(logs: Any) -> Any:
            nonlocal tried
            tried += 1
            if progress is not None:
                progress(f"{case.machine}: {len(used)} rows, trial {tried}")
            return weights * np.array(evaluate(_values(case, logs)))

        loss = {"loss": "soft_l1", "f_scale": SOFTENS_AT}
        ends = {"xtol": 1e-3, "ftol": 1e-4, "max_nfev": ROUNDS}
        found = least_squares(residuals, start, bounds=bounds, diff_step=STEP, **loss, **ends)
    return Fitted(case, _values(case, found.x), len(used), int(found.nfev))


def _weight(row: Row) -> float:
    """Rows that must be met within a smaller error count more."""
    return BASELINE_BAR / CGOPIPE_BAR if schedule_of(row).name == "cgopipe" else 1.0


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
    return [log(_throughput(row, case, values) / (row.tokens_per_s or 1.0)) for row in rows]


def _throughput(row: Row, case: MachineFit, values: Values) -> float:
    hardware = with_values(Hardware.load(machine_of(row)), case, values)
    return predict(pose(row, hardware).setup, compiled=True, must_fit=False).throughput_tokens_per_s


def machines(fits: Sequence[Fitted], names: Sequence[str]) -> Mapping[str, Hardware]:
    """The named presets with what was fitted: several devices get the values of one."""
    found: dict[str, Hardware] = {}
    for name in names:
        kind = name.rpartition("-")[2].lstrip("0123456789x")
        for one in fits:
            if one.case.machine == f"gcp-{kind}":
                found[name] = with_values(Hardware.load(name), one.case, one.values, one.source)
    return found
