"""Devices by name, and the options that say which one a command uses. Torch is loaded only to make one."""

import argparse
import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim.problem import memory_limit
from traces.cli import positive_int
from traces.errors import InputError, check_range

if TYPE_CHECKING:
    from engine.device.base import Device
    from engine.device.ranks import Rank

NAMES = ("auto", "emulated", "cuda", "xpu")
OF_XLA = ("jax", "xla", "tpu")
"""What people call a device that only JAX gets at."""

GIGA = 1e9
MOST_GIGA = 1e6
"""More of anything than any machine has."""

EMULATED_ONLY = {
    "h2d_bytes_per_s": "--h2d-gbs",
    "d2h_bytes_per_s": "--d2h-gbs",
    "h2d_pageable_bytes_per_s": "h2d_pageable_bytes_per_s",
    "d2h_pageable_bytes_per_s": "d2h_pageable_bytes_per_s",
    "gpu_threads": "--gpu-threads",
}
"""What only an emulated device can be told, and how a user told it."""


def host_memory_bytes() -> int:
    """Physical memory of this machine, as far as a container grants it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(physical, memory_limit()))


@dataclass(frozen=True, slots=True)
class DeviceAsked:
    """A device that is still to be opened, by its name and what it is told: each of several processes opens its own."""

    name: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self, rank: "Rank | None" = None) -> "Device":
        """A new one; that of a rank is the one with its number, or another emulated one."""
        if rank is None or self.torch_type != "cpu":
            return make_device(self.name, **self.options, **({} if rank is None else {"index": rank.index}))
        return make_device(self.name, **{"memory_bytes": host_memory_bytes() // 2 // rank.count, **self.options})

    @property
    def torch_type(self) -> str:
        """What torch calls devices of this kind: `cpu` where the host plays it. Raises InputError for none."""
        runtime = self._runtime
        return "cpu" if runtime is None else runtime.device_type

    def check_there_are(self, count: int) -> None:
        """Raises InputError where the machine has fewer of them."""
        runtime = self._runtime
        if runtime is not None and runtime.device_count() < count:
            raise InputError(
                f"device: {count} of {runtime.device_type} are asked for, and torch sees {runtime.device_count()}: "
                f"give as many as there are, or the emulated device"
            )

    def near_cores(self, index: int) -> Collection[int]:
        """The cores beside the device of this number, where the system knows."""
        from engine.device.threads import numa_of

        runtime, torch_type = self._runtime, self.torch_type
        if runtime is None or index >= runtime.device_count():
            return ()
        import torch

        return numa_of(runtime.pci_address(torch.device(torch_type, index)))[1]

    @property
    def _runtime(self) -> Any:
        if self.name == "emulated" or self.name not in NAMES:
            return None  # an unknown name is told when it is opened
        from engine.device.accelerator import runtime_of

        return runtime_of(self.name)


def make_device(name: str, **options: Any) -> "Device":
    """A device by name: `cuda` (which is ROCm too), `xpu`, `emulated`, or `auto`: this machine's accelerator if any.

    `options` are those of EmulatedDevice or of Accelerator. What an emulated device is not told is unthrottled, and its
    memory is half of this machine's. Raises InputError for a device that is not there, that lacks what the engine
    needs, or that cannot be told so.
    """
    if name in OF_XLA:
        raise InputError(
            f"device: {name!r} is none of PyTorch's, where the engine runs models as they are: `python -m engine jax` "
            f"runs schedules there, with layers of its own"
        )
    if name not in NAMES:
        raise InputError(f"device: {name!r} is not known; give one of {', '.join(NAMES)}")
    if name == "emulated":
        return _emulated(**options)
    from engine.device.accelerator import Accelerator, runtime_of

    runtime = runtime_of(name)
    if runtime is None:
        return _emulated(**options)
    if said := [flag for option, flag in EMULATED_ONLY.items() if option in options]:
        raise InputError(
            f"{', '.join(said)}: only an emulated device can be told, {runtime.vendor} has its own: leave it out, or "
            f"give --device emulated"
        )
    return Accelerator(**options, runtime=runtime)


def _emulated(**options: Any) -> "Device":
    from engine.device.emulated import EmulatedDevice

    usual = {
        "h2d_bytes_per_s": None,
        "d2h_bytes_per_s": None,
        "memory_bytes": host_memory_bytes() // 2,
        "gpu_threads": None,
        "cpu_threads": None,
    }
    return EmulatedDevice(**{**usual, **options})


def open_device(
    device: "str | DeviceAsked | Device", rank: "Rank | None" = None
) -> "contextlib.AbstractContextManager[Device]":
    """A device by name, closed at the end; or one that somebody else opened and will close."""
    from engine.device.base import Device

    if isinstance(device, Device):
        return contextlib.nullcontext(device)
    return (device if isinstance(device, DeviceAsked) else DeviceAsked(device)).open(rank)


def add_device(parser: Any) -> None:
    """Add them to a parser or a group of it."""
    parser.add_argument("--device", default="auto", help=f"{', '.join(NAMES)} (default: %(default)s; ROCm is cuda)")
    for flag, what in (("--h2d-gbs", "host to device"), ("--d2h-gbs", "device to host")):
        parser.add_argument(flag, type=float, help=f"emulated bandwidth {what} in GB/s (default: unthrottled)")
    parser.add_argument("--device-memory-gb", type=float, help="device memory that may be used, in GB")
    parser.add_argument(
        "--gpu-threads",
        type=positive_int,
        help="cores that play an emulated device (default: half; all where it works alone)",
    )
    parser.add_argument("--cpu-threads", type=positive_int, help="cores for attention on the host")


def device_of(args: argparse.Namespace) -> "Device":
    """The device that is asked for. Raises InputError for one that there is not."""
    return device_asked(args).open()


def device_asked(args: argparse.Namespace) -> DeviceAsked:
    """The same, still to be opened."""
    memory = _scaled("--device-memory-gb", args.device_memory_gb)
    given = {
        "h2d_bytes_per_s": _scaled("--h2d-gbs", args.h2d_gbs),
        "d2h_bytes_per_s": _scaled("--d2h-gbs", args.d2h_gbs),
        "memory_bytes": None if memory is None else int(memory),
        "gpu_threads": args.gpu_threads,
        "cpu_threads": args.cpu_threads,
    }
    return DeviceAsked(args.device, {name: value for name, value in given.items() if value is not None})


def _scaled(flag: str, giga: float | None) -> float | None:
    return None if giga is None else check_range(flag, giga, 0, MOST_GIGA, "a number of GB") * GIGA
