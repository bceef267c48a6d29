"""What work takes at the numbers of tokens that were measured, over what the fitted roofs say of it.

Roofs are smooth; kernels cut matrices into tiles, and a few rows for each expert are slower than either roof tells.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from engine.calibration.measure import Sample
from sim.problem import AtTokens, Basis, Efficiency, Hardware, Model, Quantity

MOST = 2.0
"""A ratio is at most this, and at least its inverse: what is further off has another reason."""


def predicted_s(hardware: Hardware, model: Model, samples: Sequence[Sample]) -> list[float]:
    """What each sample's task takes on a machine."""
    costs = {condition: condition.costs(model, hardware) for condition in {one.condition for one in samples}}
    return [costs[one.condition](one.task).duration_ns / 1e9 for one in samples]


def with_ratios(hardware: Hardware, name: str, model: Model, samples: Sequence[Sample]) -> Hardware:
    """The machine whose class of work `name` takes as long as the samples at their numbers of tokens, in the median.

    `samples` are of one op, in which that class has a part. Prefill counts only for more tokens than decode shows: a
    prompt of as many tokens is other work, with other fixed times.
    """
    in_decode = max((one.tokens for one in samples if one.task.step), default=0)
    samples = [one for one in samples if one.task.step or one.tokens > in_decode]
    usual, doubled = (predicted_s(_with(hardware, name, (_at(1, ratio),)), model, samples) for ratio in (1.0, 2.0))
    ratios: dict[int, list[float]] = {}
    for sample, whole, more in zip(samples, usual, doubled, strict=True):
        own = more - whole  # what the class takes of the task
        ratio = (sample.median_s - (whole - own)) / own if own > 0 else 1.0
        ratios.setdefault(sample.tokens, []).append(ratio)
    return _with(hardware, name, tuple(_measured(tokens, found) for tokens, found in sorted(ratios.items())))


def _with(hardware: Hardware, name: str, at_tokens: tuple[AtTokens, ...]) -> Hardware:
    changed: Efficiency = replace(getattr(hardware.device, name), at_tokens=at_tokens)
    return replace(hardware, device=replace(hardware.device, **{name: changed}))  # type: ignore[arg-type]


def _measured(tokens: int, ratios: Sequence[float]) -> AtTokens:
    found = statistics.median(ratios)
    allowed = min(MOST, max(1 / MOST, found))
    source = f"{len(ratios)} kinds of tasks of {tokens} tokens, over what the fit says of them"
    return _at(tokens, allowed, source if allowed == found else f"{source}: {found:.3g}, of which so much is allowed")


def _at(tokens: int, ratio: float, source: str = "trial") -> AtTokens:
    return AtTokens(tokens, Quantity(ratio, "1", Basis.MEASURED, source))
