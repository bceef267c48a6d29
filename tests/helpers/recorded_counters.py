"""Counters of energy as machines show them: powercap's files in a folder, the driver's module of cards, Zeus's."""

import math
import threading
import time
import types
from contextlib import contextmanager

import pytest

INTEL_RANGE_UJ = 262_143_328_850
"""Where the counter of a package begins anew."""

PCI = "0000:17:00.0"


def powercap(root, packages=1, dram=True, energy_uj=1_000_000, range_uj=INTEL_RANGE_UJ):
    """A folder like /sys/class/powercap with so many packages; the zones by name."""
    zones = {}
    for package in range(packages):
        zones[f"package-{package}"] = _zone(root / f"intel-rapl:{package}", f"package-{package}", energy_uj, range_uj)
        _zone(root / f"intel-rapl:{package}:1", "core", energy_uj, range_uj)
        if dram:
            zones[f"dram {package}"] = _zone(root / f"intel-rapl:{package}:0", "dram", energy_uj, range_uj)
    _zone(root / "intel-rapl-mmio:0", "package-0", energy_uj, range_uj)
    _zone(root / f"intel-rapl:{packages}", "psys", energy_uj, range_uj)
    return zones


def _zone(folder, name, energy_uj, range_uj):
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    show(folder, energy_uj)
    return folder


@contextmanager
def live_powercap(root, watts):
    """While entered, this machine's powercap is a package and its memory, which draw these watts."""
    zones = powercap(root / "powercap")
    drawn = dict(zip(zones.values(), watts, strict=True))
    ended = threading.Event()

    def draw():
        while not ended.wait(0.002):
            for zone, own_w in drawn.items():
                unseen = zone / "unseen"
                unseen.write_text(f"{round(1e6 * own_w * time.perf_counter())}\n")
                unseen.replace(zone / "energy_uj")  # or it is read half written

    drawing = threading.Thread(target=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.device.energy.find.POWERCAP", root / "powercap")
        drawing.start()
        try:
            yield
        finally:
            ended.set()
            drawing.join()


def show(zone, energy_uj):
    """What the zone's counter says from now on."""
    (zone / "energy_uj").write_text(f"{energy_uj}\n")


class FakeNvml(types.ModuleType):  # its functions have the driver's names
    """The driver's module for cards of steady watts, by their place; each counter is renewed every `period_s`.

    `fails` has by function what the driver says instead.
    """

    NVML_ERROR_NOT_SUPPORTED = 3

    class NVMLError(Exception):
        """What the driver says."""

    def __init__(self, watts, fails=None, divided=False, period_s=0.02, clock=time.perf_counter):
        super().__init__("pynvml")
        self._watts, self._divided, self._period_s, self._clock = watts, divided, period_s, clock
        self.fails, self.read = fails or {}, []

    def nvmlInit(self):  # noqa: N802
        self._check("nvmlInit")

    def nvmlDeviceGetHandleByPciBusId(self, address):  # noqa: N802
        self._check("nvmlDeviceGetHandleByPciBusId")
        if address.decode() not in self._watts:
            raise self.NVMLError("Not Found")
        return address.decode()

    def nvmlDeviceGetName(self, card):  # noqa: N802
        return f"card at {card}"

    def nvmlDeviceGetMigMode(self, card):  # noqa: N802
        if self._divided is None:
            raise self.NVMLError("Not Supported")
        return int(self._divided), int(self._divided)

    def nvmlDeviceGetEnforcedPowerLimit(self, card):  # noqa: N802
        self._check("nvmlDeviceGetEnforcedPowerLimit")
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, card):  # noqa: N802
        self._check("nvmlDeviceGetTotalEnergyConsumption")
        self.read.append(card)
        renewed_s = math.floor(self._clock() / self._period_s) * self._period_s
        return round(1e3 * self._watts[card] * renewed_s)

    def _check(self, function):
        if function in self.fails:
            raise self.NVMLError(self.fails[function])


def many_cards(monkeypatch, joules_at):
    """The real module of the driver, as on a machine with cards that have used so much, by the number of their bus."""
    import pynvml

    def refused(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    buses = sorted(joules_at)
    says = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(buses),
        "nvmlDeviceGetHandleByIndex": lambda number: buses[number],
        "nvmlDeviceGetHandleByPciBusId": lambda address: int(address.decode().split(":")[1], 16),
        "nvmlDeviceGetC2cModeInfoV": refused,
        "nvmlDeviceGetMigMode": refused,
        "nvmlDeviceGetArchitecture": lambda bus: pynvml.NVML_DEVICE_ARCH_VOLTA,
        "nvmlDeviceGetPciInfo": lambda bus: types.SimpleNamespace(domain=0, bus=bus, device=0),
        "nvmlDeviceGetName": lambda bus: f"card on bus {bus}",
        "nvmlDeviceGetPowerManagementLimit": lambda bus: 350_000,
        "nvmlDeviceGetTotalEnergyConsumption": lambda bus: round(1e3 * joules_at[bus]),
    }
    for name, answer in says.items():
        monkeypatch.setattr(pynvml, name, answer)


class FakeZeusCard:
    """A card as Zeus shows it; its counter says what `joules` gives."""

    def __init__(self, name, joules, counts=True):
        self._name, self._joules, self._counts = name, joules, counts
        self.handle = None

    def supports_get_total_energy_consumption(self):
        return self._counts

    def get_total_energy_consumption(self):
        return 1e3 * self._joules()

    def get_name(self):
        return self._name


class FakeZeusPackage:
    """A package of the host as Zeus's daemon shows it."""

    def __init__(self, cpu_j, dram_j=None):
        self._told = types.SimpleNamespace(cpu_mj=1e3 * cpu_j, dram_mj=None if dram_j is None else 1e3 * dram_j)

    def get_total_energy_consumption(self):
        return self._told

    def supports_get_dram_energy_consumption(self):
        return self._told.dram_mj is not None


def fake_zeus(cards=(), packages=()):
    """Zeus's modules by name."""
    zeus, device = types.ModuleType("zeus"), types.ModuleType("zeus.device")
    device.get_gpus = lambda: types.SimpleNamespace(gpus=list(cards))
    device.get_cpus = lambda: types.SimpleNamespace(cpus=list(packages))
    zeus.device = device
    return {"zeus": zeus, "zeus.device": device}
