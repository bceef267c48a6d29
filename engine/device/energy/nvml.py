"""The energy counter of an NVIDIA card, read from its driver (NVML)."""

from typing import Any

from engine.device.energy.counter import DEVICE, EnergyCounter, NoCounterError


def counter_by_nvml(pci_address: str | None) -> EnergyCounter:
    """The counter of the card at this place of the host's PCI bus. Raises NoCounterError.

    A card is found by its place, not by a number: CUDA and the driver number cards differently.
    """
    try:
        import pynvml
    except ImportError:
        raise NoCounterError("NVML's Python module is not installed: pip install 'cgopipe[energy]'") from None
    if pci_address is None:
        raise NoCounterError("torch does not tell where the card is on the PCI bus")
    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByPciBusId(pci_address.encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
        name = pynvml.nvmlDeviceGetName(card)
    except pynvml.NVMLError as error:
        raise NoCounterError(f"NVML says of the card at {pci_address}: {error}") from None
    told = name.decode() if isinstance(name, bytes) else name
    return EnergyCounter(DEVICE, f"{told} (NVML)", lambda: _read_j(pynvml, card), limit_w=_limit_w(pynvml, card))


def check_undivided(pci_address: str | None) -> None:
    """Raise NoCounterError for a card that is divided: its counter holds what other parts use, too."""
    try:
        import pynvml
    except ImportError:
        return
    try:
        pynvml.nvmlInit()
        now, _ = pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByPciBusId((pci_address or "").encode()))
    except pynvml.NVMLError:  # cards that cannot be divided say so
        return
    if now:
        raise NoCounterError("the card is divided (MIG): its one counter is of all its parts together")


def _limit_w(pynvml: Any, card: Any) -> float | None:
    try:
        return int(pynvml.nvmlDeviceGetEnforcedPowerLimit(card)) / 1e3
    except pynvml.NVMLError:
        return None


def _read_j(pynvml: Any, card: Any) -> float:
    try:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(card)) / 1e3
    except pynvml.NVMLError as error:
        raise NoCounterError(f"NVML: {error}") from None
