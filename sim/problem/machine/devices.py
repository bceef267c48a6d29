"""Devices that are not all equal: described, and told apart in one line from those that a plan can use."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.problem.machine.quantity import Quantity
from sim.problem.machine.tables import Part
from traces.errors import InputError, shown


@dataclass(frozen=True, slots=True)
class OtherDevice(Part):
    """A device that is there and that no plan uses, by name."""

    name: str
    memory_bytes: Quantity | None = None


def check_devices(table: Mapping[str, Any]) -> None:
    """Refuse a list of devices where one is described. Raises InputError, one line, that names them."""
    for key in ("device", "devices", "device_memory", "link"):
        several = table.get(key)
        if isinstance(several, list):
            equal = all(one == several[0] for one in several)
            alike = "equal ones" if equal else "unequal ones"
            raise InputError(
                f"{key}: a list of {len(several)} {alike} ({_in_words(several)}); a plan is for equal devices: give "
                f"one [{key.removesuffix('s')}] and num_devices, of unequal ones the one to plan with, and the rest as "
                "[[other_devices]] with name and memory"
            )


def _in_words(several: list[Any]) -> str:
    names = Counter(_name(one) for one in several)
    text = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())
    return text if len(text) <= MOST else f"{text[:MOST]}…"


MOST = 100
"""Characters of a message that name the devices."""


def _name(one: Any) -> str:
    if not isinstance(one, Mapping):
        return shown(one)
    if isinstance(one.get("name"), str):
        return str(one["name"])
    peak = one.get("peak")
    if isinstance(peak, Mapping) and isinstance(peak.get("value"), int | float):
        return f"{peak['value']:g} {peak.get('unit', '')}".strip()
    return str(peak) if isinstance(peak, str) else "one without a name"
