"""What parts of a machine draw: idle as long as a run lasts, and more for what each task does.

A task's joules follow from its work alone: what slows it down spreads them over more time. The arithmetic of a
processor and its memory each draw what they draw at full speed for as long as they would take alone, both together at
most what the processor may draw. Memories and links draw by the byte. For what the host's cores copy, they draw as if
all of them did it, in the less time that all of them would take.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np

from sim.cost import Cost, Effort
from sim.problem import Hardware, Power, ProcessorPower
from sim.schedule import Lane, LaneKind

NS = 1e-9

Joules = dict["Component", float]
"""Or watts, by part of the machine."""


class Component(StrEnum):
    """A part of a machine, as the counter of power names it."""

    DEVICE = "device"
    LINK = "link"
    HOST = "host"
    HOST_MEMORY = "host memory"
    NETWORK = "network"
    REST = "rest"


OF_A_DEVICE = (Component.DEVICE, Component.LINK)
"""What each device has for itself."""


class Draws:
    """What a machine of `num_devices` draws."""

    def __init__(self, power: Power, hardware: Hardware) -> None:
        self._power, self.num_devices = power, hardware.num_devices
        reads = hardware.host_memory.bandwidth_bytes_per_s * hardware.host.gemm.memory
        self._copying_j_per_byte = (power.host.memory_w - power.host.idle_w) / reads
        self._supply = float(power.rest.supply)

    def active_joules(self, lane: Lane, cost: Cost) -> Joules:
        """What a task adds to what its machine draws idle."""
        found = self.of_effort(lane.kind, cost.effort, cost.duration_ns * NS)
        return {part: float(joules) for part, joules in found.items() if joules}

    def of_effort(self, lane: LaneKind, effort: Effort, seconds: Any) -> dict[Component, Any]:
        """The same by part; of many tasks on lanes of one kind at once, where effort and seconds are arrays."""
        power = self._power
        found = {Component.LINK: power.link.moved_j_per_byte * effort.link_bytes}
        host_j = self._copying_j_per_byte * effort.copied_bytes
        if lane is LaneKind.GPU and power.device is not None:
            found[Component.DEVICE] = _at_work(power.device, effort, seconds)
        elif lane in (LaneKind.GPU, LaneKind.CPU):
            host_j = host_j + _at_work(power.host, effort, seconds)
        found[Component.HOST] = host_j
        found[Component.HOST_MEMORY] = power.host_memory.moved_j_per_byte * effort.dram_bytes
        if power.network is not None:
            found[Component.NETWORK] = power.network.moved_j_per_byte * effort.network_bytes
        return {**found, Component.REST: self._lost(sum(found.values()))}

    @property
    def idle_w(self) -> Joules:
        """Watts of all devices and the host while nothing runs."""
        power = self._power
        found = {Component.LINK: self.num_devices * power.link.idle_w, Component.HOST: float(power.host.idle_w)}
        if power.device is not None:
            found[Component.DEVICE] = self.num_devices * power.device.idle_w
        found[Component.HOST_MEMORY] = float(power.host_memory.idle_w)
        if power.network is not None:
            found[Component.NETWORK] = float(power.network.idle_w)
        rest = float(power.rest.idle_w)
        return {**found, Component.REST: rest + self._lost(rest + sum(found.values()))}

    def _lost(self, delivered: Any) -> Any:
        """What the supply takes more than it delivers."""
        return (1 / self._supply - 1) * delivered


def _at_work(power: ProcessorPower, effort: Effort, seconds: Any) -> Any:
    """Joules above idle of tasks on their processor."""
    arithmetic = effort.compute_s * (power.compute_w - power.idle_w)
    memory = effort.memory_s * (power.memory_w - power.idle_w)
    return np.minimum(arithmetic + memory, seconds * (power.limit_w - power.idle_w))


def added(joules: Joules, more: Mapping[Component, float], weight: float = 1.0) -> None:
    """Accumulate joules, weighted, in place."""
    for part, amount in more.items():
        joules[part] = joules.get(part, 0.0) + weight * amount
