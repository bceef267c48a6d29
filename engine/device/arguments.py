"""The options that say which device a command uses, and of which size and speed."""

import argparse
from typing import TYPE_CHECKING, Any

from traces.cli import positive_int

if TYPE_CHECKING:
    from engine.device.base import Device

GIGA = 1e9


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
    from engine.device.open import make_device

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
