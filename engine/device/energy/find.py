"""Which counters a run can read: its own card's and the host's."""

from pathlib import Path
from typing import Protocol

from engine.device.energy.by_zeus import gpu_by_zeus, host_by_zeus
from engine.device.energy.counter import DEVICE, EnergyCounter, EnergyCounters, NoCounterError
from engine.device.energy.nvml import check_undivided, counter_by_nvml
from engine.device.energy.powercap import POWERCAP, counters_by_powercap

NVIDIA = "CUDA"


class Counted(Protocol):
    """What may have a counter of its own: a device."""

    def energy_counter(self) -> EnergyCounter: ...


def counters_of(device: Counted, powercap: Path | None = None) -> EnergyCounters:
    """The device's counter and those of its host, in `powercap` or where Linux has them; what has none says why."""
    try:
        own = EnergyCounters((device.energy_counter(),))
    except NoCounterError as error:
        own = EnergyCounters(missing={DEVICE: str(error)})
    by_daemon = host_by_zeus()
    return own + (by_daemon if by_daemon.counters else counters_by_powercap(powercap or POWERCAP) + by_daemon)


def gpu_counter(vendor: str, index: int, pci_address: str | None) -> EnergyCounter:
    """The counter of a card through Zeus; of an NVIDIA card else by NVML itself. Raises NoCounterError."""
    if vendor == NVIDIA:
        check_undivided(pci_address)
    try:
        return gpu_by_zeus(index, pci_address)
    except NoCounterError:
        if vendor != NVIDIA:
            raise
    return counter_by_nvml(pci_address)
