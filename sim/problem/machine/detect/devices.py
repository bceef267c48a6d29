"""The accelerators of a machine, from its driver, its PCI bus and its kernel: by name, with memory and link."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sim.problem.machine.cards import GENERATIONS, Card, card_of
from sim.problem.machine.detect.system import AskedSystem, Row

QUERY = ("name", "pci.bus_id", "pci.device_id", "memory.total", "pcie.link.gen.max", "pcie.link.width.max")
NVIDIA_SMI = ("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
MAKERS = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel"}
"""Whose devices compute; a server's own display is of others."""
SPEEDS = {"2.5": "1.0", "5.0": "2.0", "8.0": "3.0", "16.0": "4.0", "32.0": "5.0", "64.0": "6.0"}
"""Generations of PCI Express by the GT/s that sysfs shows."""

INTEGRATED_BYTES = 3e9
"""A device with less memory of its own draws pictures."""


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """One accelerator. `source` is who said so."""

    name: str
    source: str
    memory_bytes: float | None = None
    link: str = ""
    """`PCIe 4.0 x16`, as fast as device and slot together can be; empty if nobody says."""
    pci: str = ""
    address: str = ""

    @property
    def card(self) -> Card | None:
        """Its row in the table of cards."""
        return card_of(self.name, self.memory_bytes, self.pci)

    @property
    def computes(self) -> bool:
        """Whether a plan could use it; what has no memory of its own and is no one known draws pictures."""
        if self.card is not None:
            return True
        return (self.memory_bytes or 0.0) >= INTEGRATED_BYTES


def find_devices(system: AskedSystem) -> list[FoundDevice]:
    """All accelerators: those of the NVIDIA driver, and what else the PCI bus shows."""
    of_driver = [*_of_driver(system)]
    on_bus = [_named(one, system) for one in _on_bus(system)]
    known = {_short(one.address) for one in of_driver}
    others = [one for one in on_bus if _short(one.address) not in known and not (of_driver and "10de" in one.pci)]
    return [*of_driver, *others]


def _of_driver(system: AskedSystem) -> Iterator[FoundDevice]:
    rows, source = system.nvml(), "NVML (pynvml)"
    if rows is None:
        rows, source = _smi_rows(system), " ".join(NVIDIA_SMI[:1]) + " --query-gpu"
    for row in rows:
        megabytes = _number(row.get("memory.total", ""))
        generation, width = row.get("pcie.link.gen.max", ""), row.get("pcie.link.width.max", "")
        known = f"{generation}.0" in GENERATIONS and width.isdecimal() and int(width) > 0
        device_id = row.get("pci.device_id", "").lower().removeprefix("0x").zfill(8)
        yield FoundDevice(
            row.get("name", "NVIDIA device without a name"),
            source,
            None if megabytes is None else megabytes * 2**20,
            f"PCIe {generation}.0 x{width}" if known else "",
            f"10de:{device_id[:4]}",
            row.get("pci.bus_id", ""),
        )


def _smi_rows(system: AskedSystem) -> list[Row]:
    said = system.run(NVIDIA_SMI) or ""
    lines = (line.split(",") for line in said.splitlines() if line.count(",") == len(QUERY) - 1)
    return [dict(zip(QUERY, (one.strip() for one in line), strict=True)) for line in lines]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]" where device and host are one memory
        return None


def _on_bus(system: AskedSystem) -> Iterator[FoundDevice]:
    """What sysfs shows of displays and accelerators of makers whose devices compute."""
    for folder in system.folders("/sys/bus/pci/devices/*"):
        vendor = system.read(f"{folder}/vendor").removeprefix("0x")
        kind = system.read(f"{folder}/class")
        if vendor not in MAKERS or not kind.startswith(("0x03", "0x12")):
            continue
        device = system.read(f"{folder}/device").removeprefix("0x")
        memory = system.number(f"{folder}/mem_info_vram_total")
        speed = system.read(f"{folder}/max_link_speed").split(" ")[0]
        width = system.read(f"{folder}/max_link_width")
        link = f"PCIe {SPEEDS[speed]} x{width}" if speed in SPEEDS and width.isdecimal() and int(width) > 0 else ""
        name = f"{MAKERS[vendor]} device {vendor}:{device}"
        address = folder.rpartition("/")[2]
        yield FoundDevice(name, folder, None if memory is None else float(memory), link, f"{vendor}:{device}", address)


def _named(device: FoundDevice, system: AskedSystem) -> FoundDevice:
    """With the name that `lspci` has for it, or its card's."""
    said = system.run(("lspci", "-mm", "-nn", "-s", device.address)) or ""
    found = re.findall(r'"([^"]*)"', said)
    if len(found) > 2:
        name = re.sub(r" \[[0-9a-f]{4}\]$", "", found[2])
        maker = MAKERS[device.pci[:4]]
        return replace(device, name=f"{maker} {name}", source=f"{device.source}, lspci")
    card = device.card
    return replace(device, name=card.name) if card else device


def _short(address: str) -> str:
    """A PCI address without its domain, which drivers write in eight digits and the kernel in four."""
    return address.lower().rpartition(":")[0].rpartition(":")[2] + ":" + address.lower().rpartition(":")[2]
