"""What work takes at the numbers of tokens that were measured, over what the fitted roofs say of it.

Roofs are smooth; kernels cut matrices into tiles, and a few rows for each expert are slower than either roof tells.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from engine.calibration.samples import Condition, Sample
from sim.hardware import Efficiency, Hardware, Step
from sim.model import Model
from sim.quantity import Basis, Quantity

MOST = 2.0
"""A ratio is at most this, and at least its inverse: what is further off has another reason."""


def with_steps(
    hardware: Hardware, name: str, model: Model, planned: Sequence[Condition], samples: Sequence[Sample]
) -> Hardware:
    """The machine whose class of work `name` takes as long as the samples at their numbers of tokens, in the median.

    `samples` are of one op, in which that class has a part.
    """
    rest, whole = (_seconds(_with(hardware, name, (_step(1, ratio),)), model, planned, samples) for ratio in (1.0, 2.0))
    logs: dict[int, list[float]] = {}
    for sample, at_one, at_two in zip(samples, rest, whole, strict=True):
        own = at_two - at_one
        ratio = (sample.median_s - (at_one - own)) / own if own > 0 else 1.0
        logs.setdefault(_rows(sample, planned[sample.run]), []).append(math.log(min(MOST, max(1 / MOST, ratio))))
    steps = (_step(rows, math.exp(statistics.median(own)), len(own)) for rows, own in sorted(logs.items()))
    return _with(hardware, name, tuple(steps))


def _with(hardware: Hardware, name: str, steps: tuple[Step, ...]) -> Hardware:
    changed: Efficiency = replace(getattr(hardware.device, name), steps=steps)
    return replace(hardware, device=replace(hardware.device, **{name: changed}))  # type: ignore[arg-type]


def _step(rows: int, ratio: float, count: int = 0) -> Step:
    source = f"{count} kinds of tasks of {rows} tokens, over what the fit says of them"
    return Step(rows, Quantity(ratio, "1", Basis.MEASURED, source))


def _rows(sample: Sample, condition: Condition) -> int:
    """Tokens that the task worked on."""
    requests, width = condition.size
    return requests if sample.task.step else requests * width


def _seconds(hardware: Hardware, model: Model, planned: Sequence[Condition], samples: Sequence[Sample]) -> list[float]:
    costs = {at: planned[at].costs(model, hardware) for at in {one.run for one in samples}}
    return [costs[one.run](one.task).duration_ns / 1e9 for one in samples]
