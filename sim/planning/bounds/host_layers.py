"""The least time of policies that leave whole layers to the host: what these take there."""

import numpy as np

from sim.cost import Setup
from sim.planning.policies import Floats, HostLayerCandidates
from sim.schedule import CPU, Op, Task


def least_seconds_of_host_layers(space: HostLayerCandidates) -> tuple[Floats, Floats]:
    """Lower bounds of the whole generation and of its decode, in seconds. [row]."""
    prefill, decode = np.array([_of_phases(one) for one in space.setups]).T
    return prefill + decode, decode


def _of_phases(setup: Setup) -> tuple[float, float]:
    """Prefill, and all decode steps as if each were the first: contexts only grow."""
    costs, (first, stop) = setup.costs(), setup.shape.layers_on_host
    turns = [(layer, j) for layer in range(first, stop) for j in range(setup.shape.num_micro_batches)]

    def seconds(step: int) -> float:
        return sum(costs(Task(0, Op.HOST_LAYER, CPU, step, layer, j)).duration_ns for layer, j in turns) * 1e-9

    return seconds(0), seconds(1) * setup.last_step if setup.last_step else 0.0
