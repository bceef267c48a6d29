"""Energy counters through Zeus (https://ml.energy/zeus), where it is installed: NVML's, AMD's, and those of its daemon.

Zeus's own reading of RAPL is used through its daemon only. In a process it starts a further one for each counter, of
35 MB and alive until the program ends, which looks for the counter's beginning anew; the meter does that anyway.
"""

import os
import re
from typing import Any

from engine.device.energy.counter import DEVICE, HOST, HOST_MEMORY, EnergyCounter, EnergyCounters, NoCounterError

DAEMON = ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT")
"""The environment names Zeus's daemon by one of these, which reads what only root may."""

PCI_ADDRESS = re.compile(r"([0-9a-f]+):([0-9a-f]+):([0-9a-f]+)\.0")


def gpu_by_zeus(index: int, pci_address: str | None) -> EnergyCounter:
    """The counter of a card, which torch gives this number. Raises NoCounterError."""
    devices = _zeus()
    try:
        cards = devices.get_gpus().gpus
        card = _card_at(cards, index, pci_address)
        if not card.supports_get_total_energy_consumption():
            raise NoCounterError("Zeus says that the card has no counter of energy")
        name = card.get_name()
    except NoCounterError:
        raise
    except Exception as error:  # of Zeus, of a vendor's library, or of how either reads the environment
        raise NoCounterError(f"Zeus finds no card: {_line(error)}") from None
    limit_w = _limit_w(card)
    return EnergyCounter(DEVICE, f"{name} (Zeus)", lambda: _joules(card.get_total_energy_consumption), limit_w=limit_w)


def host_by_zeus() -> EnergyCounters:
    """The counters that Zeus's daemon reads, if the environment names one."""
    if not any(name in os.environ for name in DAEMON):
        return EnergyCounters()
    try:
        packages = _zeus().get_cpus().cpus
        counters = [counter for number, one in enumerate(packages) for counter in _of_package(number, one)]
    except Exception as error:
        why = error if isinstance(error, NoCounterError) else f"Zeus's daemon: {_line(error)}"
        return EnergyCounters(missing=dict.fromkeys((HOST, HOST_MEMORY), str(why)))
    return EnergyCounters(tuple(counters))


def _of_package(number: int, package: Any) -> list[EnergyCounter]:
    """Of its processor, and of its memory if that is counted. The daemon counts on where a counter begins anew."""
    package.get_total_energy_consumption()
    of = f"package {number} (Zeus's daemon)"
    found = [EnergyCounter(HOST, of, lambda: _joules(lambda: package.get_total_energy_consumption().cpu_mj))]
    if package.supports_get_dram_energy_consumption():
        dram = EnergyCounter(
            HOST_MEMORY, f"dram of {of}", lambda: _joules(lambda: package.get_total_energy_consumption().dram_mj)
        )
        found.append(dram)
    return found


def _zeus() -> Any:
    try:
        import zeus.device
    except ImportError:
        raise NoCounterError("Zeus is not installed: pip install 'cgopipe[energy]'") from None
    return zeus.device


def _card_at(cards: Any, index: int, pci_address: str | None) -> Any:
    """The card at this place; where nobody knows places, the card of this number.

    CUDA numbers cards by their speed, Zeus by their place: on a machine of unlike cards the numbers differ.
    """
    match = PCI_ADDRESS.fullmatch((pci_address or "").lower())
    places = [_place(card) for card in cards]
    if match is None or None in places:
        if index >= len(places):
            raise NoCounterError(f"Zeus sees {len(places)} cards, none is number {index}")
        return cards[index]
    wanted = tuple(int(part, 16) for part in match.groups())
    if wanted not in places:
        raise NoCounterError(f"Zeus sees no card at {pci_address}")
    return cards[places.index(wanted)]


def _place(card: Any) -> tuple[int, int, int] | None:
    """Domain, bus and number of an NVIDIA card."""
    try:
        import pynvml

        at = pynvml.nvmlDeviceGetPciInfo(card.handle)
        return int(at.domain), int(at.bus), int(at.device)
    except Exception:  # another vendor's card, whose handle says nothing to NVML
        return None


def _limit_w(card: Any) -> float | None:
    try:
        return float(card.get_power_management_limit()) / 1e3
    except Exception:  # cards whose limit nobody may know
        return None


def _joules(read_mj: Any) -> float:
    try:
        return float(read_mj()) / 1e3
    except Exception as error:
        raise NoCounterError(f"Zeus: {_line(error)}") from None


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
