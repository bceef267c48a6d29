"""A stage of a proof as pieces of work, each of which is written down as soon as it is done."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from validation.gpu.workbench import Workbench

SAID = "said"
"""In a result that has no numbers: why there are none."""

MET = "met"
"""In a result that must be so: whether it is."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work: what it is called, about how long it takes, and what does it; returns JSON values."""

    name: str
    seconds: float
    work: Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its pieces in order of importance. `weight` is its part of the time that is left."""

    name: str
    title: str
    weight: float
    pieces: Callable[[Workbench], Iterator[Piece]]
