"""The joules of a stream's steps, from how often each of their tasks is issued and what it does."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cost import Cost, Effort
from sim.problem import Hardware
from sim.schedule import LaneKind, Task
from sim.simulation.energy.draws import NS, Draws, Joules

Counts = npt.NDArray[Any]


class StepJoules(NamedTuple):
    """What a step draws above idle, and of that, what it draws to get things for a step behind it."""

    all: Joules
    ahead: Joules


class _OnLanes(NamedTuple):
    """Tasks on lanes of one kind: which of those that a step has, and how often it issues each; for others, too."""

    kind: LaneKind
    tasks: list[int]
    times: Counts
    ahead: Counts


class StepDraws:
    """What steps draw that issue the same tasks, whose costs differ from step to step."""

    def __init__(self, hardware: Hardware, tasks: Sequence[Task], times: Counts, ahead: Counts) -> None:
        """The tasks that any step issues, one of each kind, how often, and how often for a step behind it."""
        self._draws = Draws(hardware.power, hardware) if hardware.power else None
        self._lanes = []
        by_lane = sorted(range(len(tasks)), key=lambda at: tasks[at].lane.kind)
        for kind, found in groupby(by_lane, key=lambda at: tasks[at].lane.kind):
            of = list(found)
            self._lanes.append(_OnLanes(kind, of, times[of], ahead[of]))

    def __call__(self, costs: Sequence[Cost]) -> StepJoules:
        """Of a step whose tasks cost so much; nothing where the machine's watts are unknown."""
        found = StepJoules({}, {})
        if self._draws is None:
            return found
        for kind, tasks, times, ahead in self._lanes:
            efforts = Effort(*np.array([costs[at].effort for at in tasks]).T)
            seconds = np.array([costs[at].duration_ns for at in tasks]) * NS
            for part, joules in self._draws.of_effort(kind, efforts, seconds).items():
                found.all[part] = found.all.get(part, 0.0) + float(times @ joules)
                found.ahead[part] = found.ahead.get(part, 0.0) + float(ahead @ joules)
        return found
