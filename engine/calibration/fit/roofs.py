"""From samples to rates: a robust least-squares fit of the cost model's own formulas.

A group of parameters is fitted to the tasks of one op, in the logarithm of the times, so that short tasks count too,
if somewhat less than long ones, with a loss that grows linearly for outliers (scipy's `soft_l1`). The groups
follow each other: PostAttn contains plain matrix products, whose rates PreAttn has shown by then.

What the roofs of matrix products miss at each measured number of tokens is noted beside them: roofs are smooth; kernels
cut matrices into tiles, and a few rows for each expert are slower than either roof tells.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from engine.calibration.measure import Sample
from sim.problem import AtTokens, Basis, Efficiency, Hardware, Model, Processor, Quantity
from sim.schedule import ExpertPlace, LaneKind, Op

OUTLIER = 0.1
"""Residuals in the logarithm above this count linearly."""

EMPHASIS = 0.25
"""A task counts with this power of its time: long ones decide how long a run takes, short ones show fixed times."""

EXPERTS_LATENCY = "device.experts.latency"

MANY_REQUESTS = 16
"""The tokens of one prompt resemble each other: fewer prompts touch fewer experts than as many unlike tokens would."""

MOST = 2.0
"""A ratio is at most this, and at least its inverse: what is further off has another reason."""

OPTIONAL = ("device.route", "device.experts_apart")

Bounds = tuple[float, float, float]
"""Where a fitted number begins, and the least and the most that it may be."""


@dataclass(frozen=True, slots=True)
class Group:
    """Numbers of the machine that are fitted together, by their dotted paths, and the tasks that show them."""

    what: str
    parameters: dict[str, Bounds]
    ops: tuple[Op, ...]
    lanes: tuple[LaneKind, ...] = (LaneKind.GPU,)
    alone: bool = True
    """Whether only tasks count that ran with nothing beside them."""
    prefill_from: int | None = 1
    """Prefill of so many requests or more counts; None: of none."""
    in_decode: bool = True
    with_ratios_of: str = ""
    """The class of work, by its dotted path, whose times at the measured numbers of tokens are noted beside its roofs,
    if any.
    """

    def shows(self, sample: Sample) -> bool:
        """Whether a sample belongs to this group."""
        task, condition = sample.task, sample.condition
        in_prefill = self.prefill_from is not None and condition.size[0] >= self.prefill_from
        return (
            task.op in self.ops
            and task.lane.kind in self.lanes
            and (condition.alone or not self.alone)
            and (self.in_decode if task.step else in_prefill)
        )


def _class(path: str, *, overlaps: bool = True) -> dict[str, Bounds]:
    found = {
        f"{path}.latency": (1e-4, 1e-7, 1.0),
        f"{path}.compute": (0.1, 1e-5, 1.0),
        f"{path}.memory": (0.1, 1e-5, 1.0),
    }
    return {**found, f"{path}.overlap": (0.3, 1e-3, 1.0)} if overlaps else found


GROUPS = (
    Group("PreAttn", _class("device.gemm"), (Op.PRE_ATTN,), with_ratios_of="device.gemm"),
    Group(
        "PostAttn",
        _class("device.experts"),
        (Op.POST_ATTN,),
        prefill_from=MANY_REQUESTS,
        with_ratios_of="device.experts",
    ),
    Group("attention in prefill", _class("device.attention"), (Op.ATTN,), in_decode=False),
    Group("attention on the device", _class("device.decode_attention"), (Op.ATTN,), prefill_from=None),
    Group("Head", _class("device.head"), (Op.HEAD,), prefill_from=None, with_ratios_of="device.head"),
    Group("Route", _class("device.route"), (Op.ROUTE,), with_ratios_of="device.route"),
    Group(
        "experts on the device",
        _class("device.experts_apart"),
        (Op.DEVICE_EXPERTS,),
        prefill_from=MANY_REQUESTS,
        with_ratios_of="device.experts_apart",
    ),
    Group(
        "attention on the host",
        {
            "host.launch_latency": (1e-4, 1e-7, 1.0),
            "host.request_overhead": (1e-6, 1e-9, 1e-1),
            "host.decode_attention.memory": (0.1, 1e-5, 1.0),
        },
        (Op.ATTN,),
        (LaneKind.CPU,),
    ),
    Group(
        "experts on the host",
        _class("host.experts", overlaps=False),
        (Op.HOST_EXPERTS,),
        (LaneKind.CPU,),
        prefill_from=None,
        with_ratios_of="host.experts",
    ),
    Group(
        "small copies",
        {"link.latency": (1e-4, 1e-7, 1e-1)},
        (
            Op.OFFLOAD_QKV,
            Op.LOAD_HIDDEN,
            Op.STORE_KV,
            Op.LOAD_KV,
            Op.STORE_HIDDEN,
            Op.OFFLOAD_TOKENS,
            Op.LOAD_OUTPUT,
        ),
        (LaneKind.H2D, LaneKind.D2H),
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


def fit_all(hardware: Hardware, model: Model, samples: Sequence[Sample]) -> tuple[Hardware, list[Fit]]:
    """Fit every group that has samples, one after the other. A fixed time of the experts that was measured stays.

    Of classes that others can stand for only those are left that samples show.
    """
    fits = []
    known = {EXPERTS_LATENCY} if hardware.value(EXPERTS_LATENCY).basis is Basis.MEASURED else set()
    for group in GROUPS:
        chosen = [one for one in samples if group.shows(one)]
        if chosen:
            parameters = {path: bounds for path, bounds in group.parameters.items() if path not in known}
            hardware, found = _fit(group.what, parameters, hardware, model, chosen)
            fits.append(found)
            if group.with_ratios_of:
                hardware = with_ratios(hardware, group.with_ratios_of, model, chosen)
        elif group.with_ratios_of in OPTIONAL:
            device = replace(hardware.device, **{group.with_ratios_of.removeprefix("device."): None})  # type: ignore[arg-type]
            hardware = replace(hardware, device=device)
    return hardware, fits


def _fit(
    what: str, parameters: dict[str, Bounds], hardware: Hardware, model: Model, chosen: Sequence[Sample]
) -> tuple[Hardware, Fit]:
    measured = np.log([one.mean_s for one in chosen])
    weights = np.exp(EMPHASIS * (measured - measured.max()))

    def machine(logs: NDArray[np.float64], source: str = "trial") -> Hardware:
        changed = hardware
        for path, log in zip(parameters, logs, strict=True):
            changed = changed.with_value(path, float(np.exp(log)), source, Basis.MEASURED)
        return changed

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.log(predicted_s(machine(logs), model, chosen)) - measured)

    start, *limits = np.log([*parameters.values()]).T
    found = least_squares(
        lambda logs: residuals(logs) * weights, start, bounds=limits, loss="soft_l1", f_scale=OUTLIER, diff_step=1e-3
    )
    errors = np.abs(np.expm1(residuals(found.x)))
    result = Fit(what, len(chosen), float(np.median(errors)), float(errors.max()))
    source = f"fit to {len(chosen)} kinds of tasks of {what}, median error {100 * result.median_error:.1f} %"
    return machine(found.x, source), result


def predicted_s(hardware: Hardware, model: Model, samples: Sequence[Sample]) -> list[float]:
    """What each sample's task takes on a machine."""
    costs = {condition: condition.costs(model, hardware) for condition in {one.condition for one in samples}}
    return [costs[one.condition](one.task).duration_ns / 1e9 for one in samples]


def with_ratios(hardware: Hardware, path: str, model: Model, samples: Sequence[Sample]) -> Hardware:
    """The machine whose class of work at `path` takes as long as the samples at their numbers of tokens, in the median.

    `samples` are of one op, in which that class has a part. Prefill counts only for more tokens than decode shows: a
    prompt of as many tokens is other work, with other fixed times.
    """
    in_decode = max((one.tokens for one in samples if one.task.step), default=0)
    samples = [one for one in samples if one.task.step or one.tokens > in_decode]
    usual, doubled = (predicted_s(_with(hardware, path, (_at(1, ratio),)), model, samples) for ratio in (1.0, 2.0))
    ratios: dict[int, list[float]] = {}
    for sample, whole, more in zip(samples, usual, doubled, strict=True):
        own = more - whole  # what the class takes of the task
        if own > 0:
            ratio = (sample.mean_s - (whole - own)) / own
            ratios.setdefault(_tokens(hardware, model, sample), []).append(ratio)
    return _with(hardware, path, tuple(_measured(tokens, found) for tokens, found in sorted(ratios.items())))


def _tokens(hardware: Hardware, model: Model, sample: Sample) -> int:
    """By what times over the roofs are told apart: tokens; on the host those of an expert."""
    if sample.task.op is not Op.HOST_EXPERTS:
        return sample.tokens
    sizes = sample.condition.sizes(model, hardware)
    return round(sizes.tokens_an_expert(sample.task, ExpertPlace.HOST))


def _with(hardware: Hardware, path: str, at_tokens: tuple[AtTokens, ...]) -> Hardware:
    of, name = path.split(".")
    processor: Processor = getattr(hardware, of)
    changed: Efficiency = replace(getattr(processor, name), at_tokens=at_tokens)
    return replace(hardware, **{of: replace(processor, **{name: changed})})  # type: ignore[arg-type]


def _measured(tokens: int, ratios: Sequence[float]) -> AtTokens:
    found = statistics.median(ratios)
    allowed = min(MOST, max(1 / MOST, found))
    source = f"{len(ratios)} kinds of tasks of {tokens} tokens, over what the fit says of them"
    return _at(tokens, allowed, source if allowed == found else f"{source}: {found:.3g}, of which so much is allowed")


def _at(tokens: int, ratio: float, source: str = "trial") -> AtTokens:
    return AtTokens(tokens, Quantity(ratio, "1", Basis.MEASURED, source))
