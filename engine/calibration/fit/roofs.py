"""From samples to rates: a robust least-squares fit of the cost model's own formulas.

A group of parameters is fitted to the tasks of one op, in the logarithm of the times, so that short tasks count too,
if somewhat less than long ones, with a loss that grows linearly for outliers (scipy's `soft_l1`). The groups
follow each other: PostAttn contains plain matrix products, whose rates PreAttn has shown by then. What the roofs of
matrix products miss at each number of tokens is noted beside them (`engine.calibration.fit.ratios`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from engine.calibration.fit.ratios import with_ratios
from engine.calibration.measure import Condition, Sample
from sim.problem import Basis, Hardware, Model
from sim.schedule import LaneKind, Op

OUTLIER = 0.1
"""Residuals in the logarithm above this count linearly."""

EMPHASIS = 0.25
"""A task counts with this power of its time: long ones decide how long a run takes, short ones show fixed times."""

EXPERTS_LATENCY = "device.experts.latency"

MANY_REQUESTS = 16
"""The tokens of one prompt resemble each other: fewer prompts touch fewer experts than as many unlike tokens would."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number of the machine that is fitted: where it stands, where to begin and within what it lies."""

    path: str
    start: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that are fitted together, and the tasks that show them."""

    what: str
    parameters: tuple[Parameter, ...]
    ops: tuple[Op, ...]
    lanes: tuple[LaneKind, ...]
    alone: bool = True
    """Whether only tasks count that ran with nothing beside them."""
    prefill_from: int | None = 1
    """Prefill of so many requests or more counts; None: of none."""
    in_decode: bool = True
    with_ratios_of: str = ""
    """The class of work whose times at the measured numbers of tokens are noted beside its roofs, if any."""

    def shows(self, sample: Sample, condition: Condition) -> bool:
        """Whether a sample belongs to this group."""
        task = sample.task
        return (
            task.op in self.ops
            and task.lane.kind in self.lanes
            and (condition.alone or not self.alone)
            and (self.in_decode if task.step else self._counts_prefill(condition))
        )

    def _counts_prefill(self, condition: Condition) -> bool:
        return self.prefill_from is not None and condition.size[0] >= self.prefill_from


def _class(name: str) -> tuple[Parameter, ...]:
    return (
        Parameter(f"device.{name}.latency", 1e-4, 1e-7, 1.0),
        Parameter(f"device.{name}.compute", 0.1, 1e-5, 1.0),
        Parameter(f"device.{name}.memory", 0.1, 1e-5, 1.0),
        Parameter(f"device.{name}.overlap", 0.3, 1e-3, 1.0),
    )


_ON_DEVICE = (LaneKind.GPU,)
_LINK = (LaneKind.H2D, LaneKind.D2H)

GROUPS = (
    Group("PreAttn", _class("gemm"), (Op.PRE_ATTN,), _ON_DEVICE, with_ratios_of="gemm"),
    Group(
        "PostAttn",
        _class("experts"),
        (Op.POST_ATTN,),
        _ON_DEVICE,
        prefill_from=MANY_REQUESTS,
        with_ratios_of="experts",
    ),
    Group("attention in prefill", _class("attention"), (Op.ATTN,), _ON_DEVICE, in_decode=False),
    Group("attention on the device", _class("decode_attention"), (Op.ATTN,), _ON_DEVICE, prefill_from=None),
    Group("Head", _class("head"), (Op.HEAD,), _ON_DEVICE, prefill_from=None, with_ratios_of="head"),
    Group(
        "attention on the host",
        (
            Parameter("host.launch_latency", 1e-4, 1e-7, 1.0),
            Parameter("host.request_overhead", 1e-6, 1e-9, 1e-1),
            Parameter("host.decode_attention.memory", 0.1, 1e-5, 1.0),
        ),
        (Op.ATTN,),
        (LaneKind.CPU,),
    ),
    Group(
        "small copies",
        (Parameter("link.latency", 1e-4, 1e-7, 1e-1),),
        (Op.OFFLOAD_QKV, Op.LOAD_HIDDEN, Op.STORE_KV, Op.LOAD_KV, Op.STORE_HIDDEN),
        _LINK,
        alone=False,
    ),
)
"""In the order in which they are fitted. The first prefill of a Head is like no other, so only decode counts."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit of one group reached: relative errors of the tasks that it was fitted to, by the roofs alone."""

    what: str
    num_samples: int
    median_error: float
    worst_error: float


def fit_all(
    hardware: Hardware, model: Model, planned: Sequence[Condition], samples: Sequence[Sample]
) -> tuple[Hardware, list[Fit]]:
    """Fit every group that has samples, one after the other. A fixed time of the experts that was measured stays."""
    fits = []
    known = {EXPERTS_LATENCY} if hardware.value(EXPERTS_LATENCY).basis is Basis.MEASURED else set()
    for group in GROUPS:
        chosen = [one for one in samples if group.shows(one, planned[one.run])]
        if chosen:
            parameters = tuple(one for one in group.parameters if one.path not in known)
            hardware, found = _fit(replace(group, parameters=parameters), hardware, model, planned, chosen)
            fits.append(found)
    return hardware, fits


def _fit(
    group: Group, hardware: Hardware, model: Model, planned: Sequence[Condition], chosen: Sequence[Sample]
) -> tuple[Hardware, Fit]:
    measured = np.log([one.median_s for one in chosen])
    weights = np.exp(EMPHASIS * (measured - measured.max()))
    runs = sorted({one.run for one in chosen})

    def machine(logs: NDArray[np.float64], source: str = "trial") -> Hardware:
        changed = hardware
        for parameter, log in zip(group.parameters, logs, strict=True):
            changed = changed.with_value(parameter.path, float(np.exp(log)), source, Basis.MEASURED)
        return changed

    def residuals(changed: Hardware) -> NDArray[np.float64]:
        costs = {at: planned[at].costs(model, changed) for at in runs}
        predicted = [costs[one.run](one.task).duration_ns / 1e9 for one in chosen]
        return np.asarray(np.log(predicted) - measured)

    def weighted(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(residuals(machine(logs)) * weights)

    lows, highs, starts = (
        np.log([getattr(parameter, end) for parameter in group.parameters]) for end in ("low", "high", "start")
    )
    found = least_squares(weighted, starts, bounds=(lows, highs), loss="soft_l1", f_scale=OUTLIER, diff_step=1e-3)
    errors = np.abs(np.expm1(residuals(machine(found.x))))
    result = Fit(group.what, len(chosen), float(np.median(errors)), float(errors.max()))
    source = f"fit to {len(chosen)} kinds of tasks of {group.what}, median error {100 * result.median_error:.1f} %"
    fitted = machine(found.x, source)
    if group.with_ratios_of:
        fitted = with_ratios(fitted, group.with_ratios_of, model, planned, chosen)
    return fitted, result
