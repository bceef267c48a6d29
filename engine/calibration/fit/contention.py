"""What work costs that overlaps: the same tasks alone, and beside a stream of weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.calibration.measure import Condition, Sample
from sim.schedule import LaneKind, Op


@dataclass(frozen=True, slots=True)
class Contention:
    """What two kinds of work cost each other: seconds of a task alone, and beside what streams."""

    op: str
    alone_s: float
    beside_s: float

    @property
    def slowdown(self) -> float:
        return self.beside_s / self.alone_s


def contended(planned: Sequence[Condition], samples: Sequence[Sample]) -> list[Contention]:
    """Tasks that ran both alone and beside a stream of weights, with equal sizes."""
    found = []
    for sample_ in samples:
        task, condition = sample_.task, planned[sample_.run]
        if condition.alone or task.step == 0 or task.lane.kind not in (LaneKind.CPU, LaneKind.GPU):
            continue
        for other in samples:
            alone = planned[other.run]
            same = (other.task.op, other.task.step, other.task.lane) == (task.op, task.step, task.lane)
            if same and alone.alone and alone.size == condition.size and alone.places == condition.places:
                where = "CPU" if task.lane.kind is LaneKind.CPU else "device"
                label = f"{Op(task.op).value} on the {where}, {condition.schedule.name}, step {task.step}"
                found.append(Contention(label, other.median_s, sample_.median_s))
    return found
