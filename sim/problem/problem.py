"""What is asked: a model, on a machine, for a workload."""

from dataclasses import dataclass

from sim.problem.machine import Hardware
from sim.problem.model import Model
from sim.problem.workload import Workload


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked: a model, on a machine, for a workload."""

    model: Model
    hardware: Hardware
    workload: Workload
