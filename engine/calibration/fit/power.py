"""From measured watts to the `[power]` of a machine; what has no counter here keeps what its data sheet says."""

from collections.abc import Mapping
from typing import Any

from engine.calibration.measure import COMPUTE, HOST_COMPUTE, HOST_READ, IDLE, LINK, MEMORY, Watts
from engine.device import DEVICE, HOST, HOST_MEMORY
from sim.problem import Basis, Hardware, Quantity
from traces.errors import InputError

REAL = "real GPU ("
"""How the origin of a real card begins, before its name."""

NOT_COUNTED = "no counter sees it here"

Known = dict[str, Any]
"""Numbers of a part of `[power]` by name, as its file has them."""


def with_watts(hardware: Hardware, watts: Watts | None, origin: str) -> Hardware:
    """The machine with the watts that were measured, and what the sheet of the card of this origin says of others.

    It has none where nobody says what its device may draw: on an emulated one, where the host has no counter.
    """
    measured = Watts() if watts is None else watts
    known = {**_of_sheet(origin), **_parts(measured)}
    if hardware.emulation is not None:
        known = {**_nothing_else(), **known}
    decides = "device" if hardware.emulation is None else "host"
    return hardware.with_power(known) if decides in known else hardware


def _of_sheet(origin: str) -> dict[str, Known]:
    """What is known of a card by its name."""
    if not origin.startswith(REAL):
        return {}
    try:
        power = Hardware.load(origin.removeprefix(REAL).removesuffix(")")).power
    except InputError:
        return {}
    return {} if power is None or power.device is None else {"device": power.device.to_dict()}


def _parts(measured: Watts) -> dict[str, Known]:
    """The parts that were measured."""
    found: dict[str, Known] = {}
    if DEVICE in measured.counters:
        found["device"] = _processor(measured, DEVICE, COMPUTE, MEMORY)
        found["link"] = _transfer(measured, DEVICE, LINK, "what the card draws while it is copied to", idle_w=0.0)
    if HOST in measured.counters:
        found["host"] = _processor(measured, HOST, HOST_COMPUTE, HOST_READ)
    if {HOST, HOST_MEMORY} <= measured.counters.keys():
        idle_w = measured.watts[IDLE][HOST_MEMORY]
        found["host_memory"] = _transfer(measured, HOST_MEMORY, HOST_READ, "what the host reads of it", idle_w=idle_w)
    return found


def _processor(measured: Watts, component: str, computing: str, reading: str) -> Known:
    """At most the limit, and at least idle: noise must not make a machine that cannot be."""
    idle_w = measured.watts[IDLE][component]
    compute_w, memory_w = (max(idle_w, measured.watts[what][component]) for what in (computing, reading))
    limit_w = measured.limits_w.get(component)
    at_least = max(compute_w, memory_w)
    told = "the most that it may draw, as its driver says" if limit_w else "the most that was measured"
    return {
        "idle": _number(measured, component, IDLE, idle_w),
        "compute": _number(measured, component, computing, compute_w),
        "memory": _number(measured, component, reading, memory_w),
        "limit": Quantity(max(limit_w or 0.0, at_least), "W", Basis.MEASURED, told).to_dict(),
    }


def _transfer(measured: Watts, component: str, moving: str, what: str, idle_w: float) -> Known:
    more_w = max(0.0, measured.watts[moving][component] - measured.watts[IDLE][component])
    picojoules = 1e12 * more_w / measured.bytes_per_s[moving]
    source = f"{what}, above idle, a byte ({measured.counters[component]})"
    return {
        "idle": _number(measured, component, IDLE, idle_w),
        "moved": Quantity(picojoules, "pJ/B", Basis.MEASURED, source).to_dict(),
    }


def _number(measured: Watts, component: str, doing: str, watts: float) -> Mapping[str, Any]:
    return Quantity(watts, "W", Basis.MEASURED, f"{doing}: {measured.counters[component]}").to_dict()


def _nothing_else() -> dict[str, Known]:
    """Of an emulated machine only what its host's counters see counts: the rest is no part of what is emulated."""
    nothing = Quantity(0.0, "W", Basis.ASSUMED, NOT_COUNTED).to_dict()
    moved = Quantity(0.0, "pJ/B", Basis.ASSUMED, NOT_COUNTED).to_dict()
    whole = Quantity(1.0, "1", Basis.ASSUMED, NOT_COUNTED).to_dict()
    transfer = {"idle": nothing, "moved": moved}
    return {"host_memory": transfer, "link": transfer, "rest": {"idle": nothing, "supply": whole}}


def watts_in_words(hardware: Hardware, watts: Watts | None) -> list[str]:
    """What was measured, and where the rest comes from, in a line for each."""
    measured = Watts() if watts is None else watts
    lines = []
    for name, counter in measured.counters.items():
        own = ", ".join(f"{doing} {of[name]:.0f} W" for doing, of in measured.watts.items() if name in of)
        lines.append(f"{name} ({counter}): {own}")
    rest = "as the data sheet and shares of it say" if hardware.power is not None else "not known"
    return lines + [f"watts of {name}: {rest}; {why}" for name, why in measured.missing.items()]
