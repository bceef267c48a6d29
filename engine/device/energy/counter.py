"""What a counter of energy is, and which of them there are: what has none says why."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from sim.simulation import Component

DEVICE, HOST, HOST_MEMORY = map(str, (Component.DEVICE, Component.HOST, Component.HOST_MEMORY))
"""What may have counters: a card with its memory and its end of the link; packages of the host; its memory."""


class NoCounterError(Exception):
    """A counter that is not there, or that cannot be read any more: one line that says why."""


@dataclass(frozen=True, slots=True)
class EnergyCounter:
    """A counter of joules that only rises. `name` says what it counts, and who reads it.

    It begins anew after `range_j`. `read_j` raises NoCounterError or OSError when it cannot be read. `limit_w` is the
    most that the component may draw, where whoever counts says that, too.
    """

    component: str
    name: str
    read_j: Callable[[], float]
    range_j: float = math.inf
    limit_w: float | None = None


@dataclass(frozen=True, slots=True)
class EnergyCounters:
    """The counters of a machine, and of components without any the reason in a line."""

    counters: tuple[EnergyCounter, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Self) -> "EnergyCounters":
        """Those of both; a component is missing only if neither has it."""
        counters = (*self.counters, *other.counters)
        there = {one.component for one in counters}
        missing = {name: why for name, why in {**self.missing, **other.missing}.items() if name not in there}
        return EnergyCounters(counters, missing)

    @property
    def names(self) -> dict[str, str]:
        """By component what counts it."""
        found: dict[str, list[str]] = {}
        for one in self.counters:
            found.setdefault(one.component, []).append(one.name)
        return {component: ", ".join(names) for component, names in found.items()}
