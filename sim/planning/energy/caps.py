"""Machines whose devices may draw less than they could: which caps are asked for, and what becomes of the clocks."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from traces.errors import shown

if TYPE_CHECKING:
    from sim.problem import Hardware


@dataclass(frozen=True, slots=True)
class PowerCap:
    """So many watts a device, and the machine with and without."""

    watts: float
    before: "Hardware"
    after: "Hardware"

    @classmethod
    def of(cls, hardware: "Hardware", watts: float) -> "PowerCap":
        """Raises InputError where the device's watts are not known, or so few that nothing is known of its clocks."""
        return cls(watts, hardware, hardware.capped(watts))

    def __str__(self) -> str:
        """What it does to the machine, in a sentence."""
        power = self.before.power
        most = f" of {power.device.limit_w:g}" if power and power.device else ""
        rates = {
            "arithmetic": (self.before.device.peak_flops_per_s, self.after.device.peak_flops_per_s, 1e12, "TFLOPS"),
            "device memory": (
                self.before.device_memory.bandwidth_bytes_per_s,
                self.after.device_memory.bandwidth_bytes_per_s,
                1e9,
                "GB/s",
            ),
        }
        changes = ", ".join(_change(name, *rate) for name, rate in rates.items())
        return f"Each device is held to {self.watts:g}{most} W: {changes}."

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        after = self.after
        return {
            "power_cap_w": self.watts,
            "peak_flops_per_s": float(after.device.peak_flops_per_s),
            "device_bytes_per_s": float(after.device_memory.bandwidth_bytes_per_s),
        }


def _change(name: str, before: float, after: float, unit: float, text: str) -> str:
    if after == before:
        return f"{name} as fast as without ({before / unit:,.4g} {text})"
    return f"{name} at {after / before:.0%} ({after / unit:,.4g} of {before / unit:,.4g} {text})"


def add_power_cap(group: Any) -> None:
    """Add the option to a parser or a group of it."""
    each = "hold each device to so many watts, its clocks fall; of several the best, and all of them on the front"
    group.add_argument("--power-cap", type=_watts, metavar="W,W", help=each)


def _watts(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (0.0,)
    if not all(0 < one < float("inf") for one in found):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not allowed; give watts above 0, as 150 or 150,250,350")
    return tuple(dict.fromkeys(found))
