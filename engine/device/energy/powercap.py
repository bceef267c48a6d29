"""The energy counters of the host's processors and their memory (RAPL), as Linux offers them in powercap's files."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from engine.device.energy.counter import HOST, HOST_MEMORY, EnergyCounter, EnergyCounters, NoCounterError

POWERCAP = Path("/sys/class/powercap")

PREFIX = "intel-rapl:"
"""How zones are called, AMD's too. `intel-rapl-mmio:` shows a package a second time."""


def counters_by_powercap(root: Path = POWERCAP) -> EnergyCounters:
    """Those of all packages and of their memory; of what has none, or none that may be read, why."""
    found: list[EnergyCounter] = []
    refused: dict[str, str] = {}
    for component, zone in _zones(root):
        try:
            found.append(_counter(component, zone))
        except NoCounterError as error:
            refused.setdefault(component, str(error))
    counted = [one for one in found if one.component not in refused]  # some of the packages are not the host
    missing = {
        HOST: f"this machine shows no counters of its processors (RAPL): there is no package in {root}",
        HOST_MEMORY: f"this machine shows no counters of its memory (RAPL): there is no dram in {root}",
    }
    return EnergyCounters(missing={**missing, **refused}) + EnergyCounters(tuple(counted))


def _zones(root: Path) -> Iterator[tuple[str, Path]]:
    """The zones that count a component. Cores and the like are parts of a package, `psys` is more than this."""
    for zone in sorted(root.glob(f"{PREFIX}*")):
        name = _text(zone / "name")
        if name.startswith("package"):
            yield HOST, zone
        elif name == "dram":
            yield HOST_MEMORY, zone


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _counter(component: str, zone: Path) -> EnergyCounter:
    read = partial(_read_j, zone / "energy_uj")
    read()
    most_uj = _text(zone / "max_energy_range_uj")
    if not most_uj.isdecimal() or int(most_uj) == 0:
        raise NoCounterError(f"{zone / 'max_energy_range_uj'} does not say where the counter begins anew")
    package = zone.name.removeprefix(PREFIX).partition(":")[0]
    limit_uw = _text(zone / "constraint_0_power_limit_uw")  # for long, which is what holds while a run lasts
    limit_w = int(limit_uw) / 1e6 if limit_uw.isdecimal() and int(limit_uw) else None
    name = f"{_text(zone / 'name')} of package {package} (RAPL)"
    return EnergyCounter(component, name, read, int(most_uj) / 1e6, limit_w)


def _read_j(file: Path) -> float:
    try:
        return int(file.read_text(encoding="ascii")) / 1e6
    except PermissionError:
        told = f"{file} may be read by root only: run `sudo chmod a+r {file}`, or Zeus's daemon (zeusd)"
        raise NoCounterError(told) from None
    except OSError as error:
        raise NoCounterError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise NoCounterError(f"{file} holds no number") from None
