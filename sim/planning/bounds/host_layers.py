"""The least time of policies that leave whole layers to the host: what these take there."""

import numpy as np

from sim.cost import CostModel, Setup
from sim.planning.bounds.durations import Measure
from sim.planning.policies import Floats, HostLayerCandidates
from sim.schedule import CPU, Op, Task


def least_seconds_of_host_layers(space: HostLayerCandidates) -> tuple[Floats, Floats]:
    """Lower bounds of the whole generation and of its decode, in seconds. [row]."""
    prefill, decode = np.array([_of_phases(one) for one in space.setups]).T
    return prefill + decode, decode


def active_joules_of_host_layers(space: HostLayerCandidates, measure: Measure) -> Floats:
    """What these take there, at least: of one of the devices' parts of the batch. [row]."""
    return np.array([sum(_of_phases(one, measure)) for one in space.setups])


def _alone_s(costs: CostModel, task: Task, _: int) -> float:
    return costs(task).duration_ns * 1e-9


def _of_phases(setup: Setup, measure: Measure = _alone_s) -> tuple[float, float]:
    """Prefill, and all decode steps as if each were the first: contexts only grow."""
    costs, (first, stop) = setup.costs(), setup.shape.layers_on_host
    turns = [(layer, j) for layer in range(first, stop) for j in range(setup.shape.num_micro_batches)]

    def taken(step: int) -> float:
        tasks = (Task(0, Op.HOST_LAYER, CPU, step, layer, j) for layer, j in turns)
        return sum(measure(costs, task, setup.num_ranks) for task in tasks)

    return taken(0), taken(1) * setup.last_step if setup.last_step else 0.0
