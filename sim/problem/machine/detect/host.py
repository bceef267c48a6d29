"""The host of a machine: memory within its control group, cores, sockets, DRAM and disks, each with who said so."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sim.problem.machine.detect.control_groups import core_limit, memory_in_use, memory_limit
from sim.problem.machine.detect.system import AskedSystem

FLOPS_PER_CYCLE = (("avx512f", 64), ("avx2", 32), ("avx", 16), ("asimd", 16))
"""By what a core's flags name: fp32 of multiply and add, two units a core."""

USUAL_GHZ = 2.5
"""Of a core that runs all its units, where no file says."""


@dataclass(frozen=True, slots=True)
class Dram:
    """Memory modules: how many channels they fill, and how fast they run."""

    channels: int
    megatransfers_per_s: int
    kind: str
    source: str

    @property
    def text(self) -> str:
        """As `8 channels of DDR5-4800`."""
        return f"{self.channels} channels of {self.kind}-{self.megatransfers_per_s}"

    @property
    def bytes_per_s(self) -> float:
        return self.channels * self.megatransfers_per_s * 1e6 * 8


@dataclass(frozen=True, slots=True)
class FoundHost:
    """What files and commands say of a host."""

    cpu: str
    cores: int
    """That this process may use: by its affinity and its control group."""
    cores_source: str
    ghz: float | None
    flops_per_cycle: int
    numa_nodes: int
    memory_bytes: float
    memory_source: str
    in_use_bytes: float | None
    """What is taken of it now, by whatever runs."""
    in_use_source: str
    dram: Dram | None
    disk: "FoundDisk | None"
    notes: tuple[str, ...]

    @property
    def peak_flops_per_s(self) -> float:
        return self.cores * (self.ghz or USUAL_GHZ) * 1e9 * self.flops_per_cycle


@dataclass(frozen=True, slots=True)
class FoundDisk:
    """The largest NVMe disk."""

    name: str
    capacity_bytes: float
    source: str


def find_host(system: AskedSystem) -> FoundHost:
    """Ask a machine about its host."""
    facts = _meminfo(system)
    physical, how = facts.get("MemTotal"), "/proc/meminfo"
    if physical is None:
        said = (system.run(("sysctl", "-n", "hw.memsize")) or "").strip()
        physical, how = (float(said) if said.isdecimal() else 0.0), "sysctl hw.memsize"
    granted = memory_limit(system.root)
    memory, source = min((physical, how), (granted, "the memory limit of this process's control group"))
    in_use, in_use_source = _in_use(system, facts, in_group=granted < physical)
    cores, cores_source = _cores(system)
    flags = _field(system, "flags", "Features").split()
    return FoundHost(
        _cpu_name(system),
        cores,
        cores_source,
        _ghz(system),
        next((count for flag, count in FLOPS_PER_CYCLE if flag in flags), 16),
        max(1, len(system.folders("/sys/devices/system/node/node[0-9]*"))),
        memory,
        source,
        in_use,
        in_use_source,
        _dram(system),
        _disk(system),
        tuple(_notes(system)),
    )


def _meminfo(system: AskedSystem) -> dict[str, float]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB", system.read("/proc/meminfo"), re.MULTILINE)
    return {name: float(kilobytes) * 1024 for name, kilobytes in lines}


def _in_use(system: AskedSystem, facts: dict[str, float], *, in_group: bool) -> tuple[float | None, str]:
    if in_group:
        used = memory_in_use(system.root)
        return None if math.isnan(used) else used, "the memory in use of this process's control group"
    if "MemTotal" in facts and "MemAvailable" in facts:
        return facts["MemTotal"] - facts["MemAvailable"], "/proc/meminfo: MemTotal less MemAvailable"
    return None, ""


def _cores(system: AskedSystem) -> tuple[int, str]:
    usable, granted = system.affinity(), core_limit(system.root)
    if granted < usable:
        return max(1, math.floor(granted)), "the quota of this process's control group"
    threads = _threads_per_core(system)
    what = "sched_getaffinity" + (f", {threads} threads a core" if threads > 1 else "")
    return max(1, usable // threads), what


def _threads_per_core(system: AskedSystem) -> int:
    """As many as share the first core: `0,16` or `0-1`."""
    siblings = system.read("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    found = re.fullmatch(r"(\d+)-(\d+)", siblings)
    return int(found[2]) - int(found[1]) + 1 if found else max(1, len(siblings.split(",")))


def _field(system: AskedSystem, *names: str) -> str:
    """A line of /proc/cpuinfo, of the first processor."""
    for name in names:
        found = re.search(rf"^{name}\s*:\s*(.*)$", system.read("/proc/cpuinfo"), re.MULTILINE)
        if found:
            return found[1].strip()
    return ""


def _cpu_name(system: AskedSystem) -> str:
    named = _field(system, "model name", "Model")
    said = named or (system.run(("sysctl", "-n", "machdep.cpu.brand_string")) or "").strip()
    found = re.search(r"^Model name:\s*(.*)$", system.run(("lscpu",)) or "", re.MULTILINE) if not said else None
    return said or (found[1].strip() if found else "a CPU without a name")


def _ghz(system: AskedSystem) -> float | None:
    kilohertz = system.number("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency")
    if kilohertz:
        return kilohertz / 1e6
    found = re.search(r"@ ([\d.]+)GHz", _field(system, "model name"))
    megahertz = _field(system, "cpu MHz")
    return float(found[1]) if found else float(megahertz) / 1e3 if megahertz else None


def _dram(system: AskedSystem) -> Dram | None:
    """The modules by `dmidecode`, which wants root; else what EDAC shows, which has no speed."""
    blocks = (system.run(("dmidecode", "-t", "17")) or "").split("Memory Device")[1:]
    modules = [dict(re.findall(r"^\s*([\w ]+): (.*)$", block, re.MULTILINE)) for block in blocks]
    filled = [one for one in modules if one.get("Size", "No").split()[0].isdecimal()]
    speeds = [int(said[0]) for one in filled if (said := re.findall(r"(\d+) MT/s", _speed(one)))]
    if not filled or not speeds:
        return None
    channels = {_channel(one) for one in filled}
    known = None not in channels
    count = len(channels) if known else len(filled)
    source = "dmidecode -t 17" + ("" if known else ", a channel a module")
    return Dram(count, min(speeds), filled[0].get("Type", "DRAM"), source)


def _speed(module: dict[str, str]) -> str:
    configured = module.get("Configured Memory Speed") or module.get("Configured Clock Speed") or ""
    return configured if "MT/s" in configured else module.get("Speed", "")


def _channel(module: dict[str, str]) -> str | None:
    """`P0 CHANNEL A` of `Bank Locator`, or `DIMM_A1`, `ChannelA-DIMM0` of `Locator`: a socket and a letter."""
    where = f"{module.get('Bank Locator', '')} {module.get('Locator', '')}"
    letter = re.search(r"channel[ _-]?([a-z0-9])|dimm[ _-]?([a-z])\d", where, re.IGNORECASE)
    socket = re.search(r"(?:p|cpu|node)[ _-]?(\d)", where, re.IGNORECASE)
    return f"{socket[1] if socket else ''} {(letter[1] or letter[2]).upper()}" if letter else None


def _disk(system: AskedSystem) -> FoundDisk | None:
    found = list[FoundDisk]()
    for folder in system.folders("/sys/block/nvme*"):
        sectors = system.number(f"{folder}/size")
        if sectors:
            name = system.read(f"{folder}/device/model") or folder.rpartition("/")[2]
            found.append(FoundDisk(name, sectors * 512.0, f"{folder}/size"))
    return max(found, key=lambda one: one.capacity_bytes, default=None)


def _notes(system: AskedSystem) -> Iterator[str]:
    if "microsoft" in system.read("/proc/version").lower():
        yield "runs under WSL: its memory is what Windows grants it, and the link is not shown"
