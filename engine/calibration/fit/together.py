"""A machine of several devices, from what each of them measured while the others measured the same."""

from collections.abc import Sequence
from dataclasses import replace

from engine.calibration.measure import NetworkProbe
from sim.problem import Basis, Hardware, Network, Quantity

SHARED = ("host.peak", "host_memory.bandwidth", "host.unpack")
"""What of the host its ranks have a share of each."""


def of_devices(each: Sequence[Hardware], probe: NetworkProbe) -> Hardware:
    """The first rank's machine with as many devices as there are ranks, and of the host all that they have together."""
    count, first = len(each), each[0]
    network = Network(probe.rate.quantity("GB/s", 1e9), probe.latency.quantity("us", 1e-6))
    machine = replace(first, num_devices=count, network=network)
    for path in (path for path in SHARED if _has(first, path)):
        total, one = sum(hardware.value(path) for hardware in each), first.value(path)
        source = f"{count} ranks at once, each on its share of the cores: {one.source}"
        machine = machine.with_value(path, total, source, Basis.MEASURED)
    return machine


def _has(hardware: Hardware, path: str) -> bool:
    try:
        return isinstance(hardware.value(path), Quantity)
    except (AttributeError, KeyError, ValueError):
        return False
