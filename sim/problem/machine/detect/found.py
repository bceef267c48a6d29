"""A machine as it is found: its host and its devices, and the machine's file that they make."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sim.problem.machine.cards import link_peak
from sim.problem.machine.derived import kept_on_host_bytes, with_number
from sim.problem.machine.detect.devices import FoundDevice, find_devices
from sim.problem.machine.detect.host import FoundHost, find_host
from sim.problem.machine.detect.system import AskedSystem
from sim.problem.machine.quantity import Basis, Dimension, Quantity
from traces.errors import InputError

Table = dict[str, Any]

NVLINK_BYTES_PER_S = 25e9
"""Of one link in one direction, NVLink 3 and 4."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found. Of devices that are not all alike, those are planned with that have most memory together."""

    host: FoundHost
    devices: tuple[FoundDevice, ...]
    nvlinks: int = 0
    """Of a device to its peers."""
    measured: Table = field(default_factory=dict)
    """By dotted names, as a file has them."""

    @property
    def planned(self) -> tuple[FoundDevice, ...]:
        """The devices that a plan uses: alike in name and memory."""
        able = [one for one in self.devices if one.computes]
        groups = Counter((one.name, one.memory_bytes) for one in able)
        together = {key: count * (key[1] or 0.0) for key, count in groups.items()}
        best = max(groups, key=lambda key: (together[key], key[1] or 0.0), default=None)
        return tuple(one for one in able if (one.name, one.memory_bytes) == best)

    @property
    def others(self) -> tuple[FoundDevice, ...]:
        """The devices that no plan uses."""
        return tuple(one for one in self.devices if one not in self.planned)

    def missing(self) -> Iterator[str]:
        """What a plan needs and nobody says, and what was assumed for want of a word: a line each."""
        if not self.planned:
            yield 'no accelerator was found: extend a card\'s preset, as in extends = "rtx4090", to plan for one'
            return
        device = self.planned[0]
        if device.card is None:
            yield (
                f"{device.name} is not in the table of cards: give device.peak and device_memory.bandwidth "
                f"({device.pci or 'its name'} is all that the machine says)"
            )
        if device.memory_bytes is None and device.card is None:
            yield "device_memory.capacity: the driver does not say; give it"
        if not device.link and not self.is_unified:
            yield "link.peak: nobody says how wide the link is; the card's own is taken"
        if self.host.dram is None and "host_memory.bandwidth" not in self.measured and not self.is_unified:
            yield "host_memory.bandwidth: dmidecode (as root) says nothing; a usual one is taken: detect --measure"
        if self.others:
            names = ", ".join(one.name for one in self.others)
            yield f"not planned with, as it is not equal to the others or draws pictures: {names}"
        yield from self.host.notes

    @property
    def is_unified(self) -> bool:
        """Whether device and host are one memory."""
        return bool(self.planned) and self.planned[0].card is not None and self.planned[0].card.is_unified

    @property
    def description(self) -> str:
        """The machine in a line."""
        planned, host = self.planned, self.host
        count = f"{len(planned)}x " if len(planned) > 1 else ""
        what = f"{count}{planned[0].name}" if planned else "no accelerator"
        return f"{what}; {host.cpu}, {host.cores} cores, {host.memory_bytes / 1024**3:.1f} GiB"

    def table(self) -> Table:
        """As a machine's file has it."""
        card = self.planned[0].card if self.planned else None
        table: Table = {"extends": card.key if card else "_plain", "description": self.description}
        for path, value in self._numbers():
            table = with_number(table, path, value)
        for path, value in self.measured.items():
            table = with_number(table, path, value)
        return table

    def _numbers(self) -> Iterator[tuple[str, Any]]:
        host, planned = self.host, self.planned
        yield "host.cores", host.cores
        peak = f"fp32: {host.cores} cores x {host.ghz or 2.5:.4g} GHz x {host.flops_per_cycle} FLOP per cycle"
        yield "host.peak", _number(host.peak_flops_per_s, "TFLOPS", Basis.ASSUMED, f"{peak} ({host.cpu})")
        memory = _number(host.memory_bytes, "GiB", Basis.MEASURED, host.memory_source)
        yield "host_memory.capacity", memory
        if self.is_unified:
            yield "device_memory.capacity", memory
        elif host.dram is not None:
            dram = (
                f"{host.dram.channels} channels of {host.dram.kind}-{host.dram.megatransfers_per_s}: {host.dram.source}"
            )
            yield "host_memory.bandwidth", _number(host.dram.bytes_per_s, "GB/s", Basis.DATASHEET, dram)
        if host.in_use_bytes is not None and host.in_use_bytes > kept_on_host_bytes(host.memory_bytes):
            kept = min(host.in_use_bytes, host.memory_bytes)
            yield "reserve.host", _number(kept, "GiB", Basis.MEASURED, f"in use when detected: {host.in_use_source}")
        if host.disk is not None and "disk.bandwidth" in self.measured:
            yield "disk.capacity", _number(host.disk.capacity_bytes, "GB", Basis.MEASURED, host.disk.source)
        if planned:
            yield from self._of_devices(planned[0], len(planned))

    def _of_devices(self, device: FoundDevice, count: int) -> Iterator[tuple[str, Any]]:
        if device.memory_bytes is not None and not self.is_unified:
            yield "device_memory.capacity", _number(device.memory_bytes, "GiB", Basis.MEASURED, device.source)
        if device.link and not self.is_unified:
            yield "link.peak", {**link_peak(device.link), "source": f"{device.link}: {device.source}"}
        elif device.card is None:
            yield "link.peak", {**link_peak("PCIe 4.0 x16"), "basis": "assumed", "source": "nobody says: PCIe 4.0 x16"}
        if count > 1:
            yield "num_devices", count
            link = float(Quantity.parse(link_peak(device.link or _link_of(device)), "link", Dimension.RATE)) / 2
            rate, how = link, "half of the link's theory: through the host"
            if self.nvlinks:
                rate, how = self.nvlinks * NVLINK_BYTES_PER_S, f"{self.nvlinks} NVLinks of 25 GB/s: nvidia-smi topo -m"
            yield "network.bandwidth", _number(rate, "GB/s", Basis.ASSUMED, how)
            yield "network.latency", _number(20e-6, "us", Basis.ASSUMED, "usual for a small all-reduce")
        yield "other_devices", [_other(one) for one in self.others]


def _link_of(device: FoundDevice) -> str:
    return device.card.link if device.card and device.card.link else "PCIe 4.0 x16"


def _other(device: FoundDevice) -> Table:
    memory = (
        {}
        if not device.memory_bytes
        else {"memory": _number(device.memory_bytes, "GiB", Basis.MEASURED, device.source)}
    )
    return {"name": device.name, **memory}


def _number(value: float, unit: str, basis: Basis, source: str) -> dict[str, object]:
    return Quantity(float(f"{value / Quantity(1.0, unit):.10g}"), unit, basis, source).to_dict()


def find(system: AskedSystem | None = None) -> Found:
    """Ask a machine, this one if none is given."""
    system = system or AskedSystem()
    devices = tuple(find_devices(system))
    said = system.run(("nvidia-smi", "topo", "-m")) if len(devices) > 1 else None
    links = [int(one) for one in re.findall(r"\bNV(\d+)\b", said or "")]
    return Found(find_host(system), devices, min(links, default=0))


def detected_table(system: AskedSystem | None = None) -> Table:
    """The machine at hand as a file has it. Raises InputError, one line, where no plan can be made for it."""
    found = find(system)
    if not found.planned or found.planned[0].card is None:
        raise InputError(f"auto: {next(found.missing())}; `python -m sim detect --out machine.toml` begins a file")
    return {"name": "auto", **found.table()}
