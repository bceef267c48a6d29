"""Orders of execution, chosen to tell: how late each lane's stream may be."""

from async_device.machine import TOTAL_BYTES, Machine
from async_device.runtime import AsyncRuntime
from async_device.streams import AT_ONCE
from engine.device import Accelerator
from sim.schedule import LaneKind

ORDERS: dict[str, dict[LaneKind, int]] = {
    "all late": {},
    "gpu at once": {LaneKind.GPU: AT_ONCE},
    "copies at once": {LaneKind.H2D: AT_ONCE, LaneKind.D2H: AT_ONCE},
    "loads at once": {LaneKind.H2D: AT_ONCE},
    "stores late": {LaneKind.GPU: AT_ONCE, LaneKind.H2D: AT_ONCE},
    "one behind": {LaneKind.GPU: 1, LaneKind.H2D: 1, LaneKind.D2H: 1},
}
"""How many pieces of work a lane's stream may keep waiting; a lane that is not named, any number."""

FEW = ("all late", "gpu at once", "copies at once")
"""The three that found every mistake made so far."""


def late_device(
    order: str = "all late", memory_bytes: int = 10**9, total_bytes: int = TOTAL_BYTES
) -> tuple[Accelerator, Machine]:
    """A device whose streams run in this order, and the machine behind it."""
    runtime = AsyncRuntime(total_bytes)
    device = Accelerator(memory_bytes, cpu_threads=1, runtime=runtime)
    for kind, lag in ORDERS[order].items():
        device.streams[kind].lag = lag
    return device, runtime.machine
