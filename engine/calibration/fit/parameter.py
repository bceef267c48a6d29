"""Unknown numbers of a machine, and how they are fitted: robust least squares over their logarithms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

OUTLIER = 0.1
"""Residuals in the logarithm above this count linearly: no odd run pulls a fit (one configuration varies 2 to 8 %)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One unknown: the numbers of a machine's file that it sets alike, in SI units; where to begin, within what."""

    paths: tuple[str, ...]
    start: float
    low: float
    high: float
    name: str = ""
    """What people call it, such as `pin copy`."""
    bound_by: str = ""
    """What its bounds stand for, such as `the tensor cores' peak`."""
    several_devices: bool = False
    """Whether only hosts with several devices have it."""


def least_squares_fit(
    parameters: Sequence[Parameter], residuals: Callable[[list[float]], Any], **options: Any
) -> tuple[list[float], int]:
    """The values whose residuals are least, and how many rounds that took. `options` go to scipy's least_squares."""
    from scipy.optimize import least_squares

    found = least_squares(
        lambda logs: residuals([exp(value) for value in logs]),
        [log(one.start) for one in parameters],
        bounds=([log(one.low) for one in parameters], [log(one.high) for one in parameters]),
        loss="soft_l1",
        f_scale=OUTLIER,
        **options,
    )
    return [exp(value) for value in found.x], int(found.nfev)
