"""What a machine draws: idle, and at work by class of work; and how rates fall where a device may draw less.

Watts of a part are what it draws, not what it draws more than idle. Joules of a task follow in `sim.simulation.energy`.
"""

from dataclasses import dataclass, replace
from typing import Self

from sim.problem.machine.quantity import Quantity
from sim.problem.machine.tables import Part
from traces.errors import InputError

LEAST_CLOCK = 0.7
"""Share of a device's clocks below which the law of caps does not hold.

Six RTX 3090 prefill at 0.94 and 0.85 of their rate under 300 and 250 of 350 W, as it says, and at 0.60 under 200 W,
where it says 0.78 (llmgarage.ai/power-limit-tokens-per-second-benchmark).
"""
READS_FOLLOW = 0.5
"""The power of the clocks with which reads of memory slow down, whose own clock stays.

It says 0.95 and 0.92 of the rate for an RTX 4090 under 300 and 260 W (thegeniusfactory.net measures 0.93 and 0.92),
0.96 for an RTX 3090 under 280 (jeanfbrito.github.io: 0.99), 0.98 for an RTX 5060 Ti under 150 (inventivehq.com: 0.99).
"""

LAW_OF_CAPS = "what is drawn above idle falls with the cube of the clocks (P ~ f V^2, V ~ f)"

IDLE_OF_DEVICE = 0.2
"""Share of its limit that a device draws while a program holds it and nothing runs."""
READS_AT = 0.75
"""Share of its bandwidth that a device reaches as it reads, as `_plain` has it."""
MOST_OF_LIMIT = 0.95
"""What reads of memory draw of the limit at most."""
J_PER_BYTE = 375e-12
STACKED_J_PER_BYTE = 125e-12
"""Joules above idle for each byte that a device reads, its cores that ask for it included; of memory on its package."""
STACKED_SOURCE = "idle, and 125 pJ for each byte that it reads of HBM, its cores that ask for it included"


def reading_watts(limit_w: float, bandwidth_bytes_per_s: float, j_per_byte: float = J_PER_BYTE) -> float:
    """What a device draws that reads its memory, where nobody measured it."""
    idle_w = IDLE_OF_DEVICE * limit_w
    return min(MOST_OF_LIMIT * limit_w, idle_w + j_per_byte * READS_AT * bandwidth_bytes_per_s)


@dataclass(frozen=True, slots=True)
class ProcessorPower(Part):
    """A device with its memory, or the package of the host's cores.

    `idle` is what it draws while a program holds it and nothing runs: its clocks are up. `compute` is what it draws
    while its arithmetic is busy, `memory` while it reads its memory as fast as it can, on all cores; `limit` is the
    most that it may draw.
    """

    idle_w: Quantity
    compute_w: Quantity
    memory_w: Quantity
    limit_w: Quantity

    def clocks_under(self, watts: float, draws_w: float) -> float:
        """The share of its clocks that work keeps, which drew `draws_w`, where `watts` are the most: `LAW_OF_CAPS`."""
        above_idle = (watts - self.idle_w) / (draws_w - self.idle_w) if draws_w > watts else 1.0
        return float(max(0.0, above_idle) ** (1 / 3))

    def rates_under(self, watts: float) -> dict[str, float]:
        """By the dotted name of a machine's number, the share of it that is left where `watts` are the most."""
        return {
            "device.peak": self.clocks_under(watts, self.compute_w),
            "device_memory.bandwidth": self.clocks_under(watts, self.memory_w) ** READS_FOLLOW,
        }

    @property
    def least_cap_w(self) -> float:
        """The lowest cap for which the law is known to hold."""
        return float(self.idle_w + LEAST_CLOCK**3 * (self.compute_w - self.idle_w))

    def capped(self, watts: float, source: str) -> Self:
        """The same where `watts` are the most. Raises InputError for so few that the law does not hold."""
        if watts < self.least_cap_w:
            raise InputError(
                f"power cap: {watts:g} W is less than {self.least_cap_w:.0f} W, below which clocks would fall under "
                f"{LEAST_CLOCK:.0%}; it idles at {self.idle_w.text}, and may draw {self.limit_w.text}"
            )
        lower = {
            name: getattr(self, name).replaced(watts, source)
            for name in ("compute_w", "memory_w", "limit_w")
            if getattr(self, name) > watts
        }
        return replace(self, **lower)


@dataclass(frozen=True, slots=True)
class TransferPower(Part):
    """What a memory or a link draws: idle, and more for each byte that goes through it."""

    idle_w: Quantity
    moved_j_per_byte: Quantity


@dataclass(frozen=True, slots=True)
class RestPower(Part):
    """The rest of the box: board, fans and disks, and the share of what it takes that the supply delivers."""

    idle_w: Quantity
    supply: Quantity


@dataclass(frozen=True, slots=True)
class Power(Part):
    """What all of a machine draws. Each device has its own `device` and `link`; the others are there once.

    Where the host plays the device, or shares a package with it, there is no `device`: what it does, the host draws.
    """

    host: ProcessorPower
    host_memory: TransferPower
    link: TransferPower
    rest: RestPower
    device: ProcessorPower | None = None
    network: TransferPower | None = None
