"""Devices by name, and the options that say which one a command uses. Torch is loaded only to make one."""

import argparse
import contextlib
import os
from typing import TYPE_CHECKING, Any

from traces.cli import positive_int
from traces.errors import InputError

if TYPE_CHECKING:
    from engine.device.base import Device

NAMES = ("auto", "emulated", "cuda")
GIGA = 1e9


def host_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make_device(name: str, **options: Any) -> "Device":
    """A device by name: `cuda`, `emulated`, or `auto` for the first of them that there is.

    `options` of an emulated device are those of EmulatedDevice; what is not given is unthrottled, and its memory is
    half of this machine's.
    """
    if name not in NAMES:
        raise InputError(f"device: {name!r} is not known; give one of {', '.join(NAMES)}")
    import torch

    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        from engine.device.cuda import CudaDevice

        return CudaDevice(**options)
    from engine.device.emulated import EmulatedDevice

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usual = {
        "h2d_bytes_per_s": None,
        "d2h_bytes_per_s": None,
        "memory_bytes": host_memory_bytes() // 2,
        "gpu_threads": max(1, cores // 2),
        "cpu_threads": max(1, cores - cores // 2),
    }
    return EmulatedDevice(**{**usual, **options})


def open_device(device: "str | Device") -> "contextlib.AbstractContextManager[Device]":
    """A device by name, closed at the end; or one that somebody else opened and will close."""
    from engine.device.base import Device

    return contextlib.nullcontext(device) if isinstance(device, Device) else make_device(device)


def add_device(parser: Any) -> None:
    """Add them to a parser or a group of it."""
    parser.add_argument("--device", default="auto", help="auto, emulated or cuda (default: %(default)s)")
    for flag, what in (("--h2d-gbs", "host to device"), ("--d2h-gbs", "device to host")):
        parser.add_argument(flag, type=float, help=f"emulated bandwidth {what} in GB/s (default: unthrottled)")
    parser.add_argument("--device-memory-gb", type=float, help="device memory that may be used, in GB")
    parser.add_argument("--gpu-threads", type=positive_int, help="cores that play the GPU of an emulated device")
    parser.add_argument("--cpu-threads", type=positive_int, help="cores for attention on the host")


def device_of(args: argparse.Namespace) -> "Device":
    """The device that is asked for. Raises InputError for one that there is not."""
    given = {
        "h2d_bytes_per_s": _scaled(args.h2d_gbs),
        "d2h_bytes_per_s": _scaled(args.d2h_gbs),
        "memory_bytes": None if args.device_memory_gb is None else int(args.device_memory_gb * GIGA),
        "gpu_threads": args.gpu_threads,
        "cpu_threads": args.cpu_threads,
    }
    return make_device(args.device, **{name: value for name, value in given.items() if value is not None})


def _scaled(giga: float | None) -> float | None:
    return None if giga is None else giga * GIGA
