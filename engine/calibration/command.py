"""A machine measured for a model, and its file written."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine import calibration, device as devices
from engine.calibration import fit
from engine.device import add_device, device_asked, device_of
from engine.generation import DevicesTogether, add_devices, add_model, devices_together, model_asked, model_of
from traces.cli import Command, progress
from traces.errors import InputError

if TYPE_CHECKING:
    from sim.problem import Hardware


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the machine's file (.toml)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes: good enough for a plan")
    add_device(parser)
    add_devices(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the device and its host, and write what was found."""
    if args.out.suffix != ".toml":
        raise InputError(f"--out {args.out}: a machine's file ends in .toml")
    if not args.out.resolve().parent.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {args.out.resolve().parent}; make it first")
    with devices_together(args) as together:
        if together is not None:
            measured = _measured(args, together)
            measured.hardware.write(args.out)
            print_summary(measured, args.out)
    return 0


def _measured(args: argparse.Namespace, together: DevicesTogether) -> "calibration.Calibration":
    with contextlib.ExitStack() as opened, progress("measuring", 1, unit="parts", lines=True) as shown:
        how = {"quick": args.quick, "progress": shown.at}
        if together.count == 1:
            device = opened.enter_context(devices.open_device(device_of(args)))
            return calibration.calibrate(model_of(args, device), device, args.out.stem, **how)
        asked = (model_asked(args), device_asked(args), args.out.stem)
        return together(calibration.calibrate_devices, *asked, **how)  # type: ignore[no-any-return]


def print_summary(found: "calibration.Calibration", path: Path) -> None:
    """The main numbers, how well the roofs fit, and what runs slow beside what."""
    link, of = found.probes.link, found.probes
    rates = (link.h2d, link.d2h, link.together, of.host_read, of.host_copy, of.device_peak, of.host_peak)
    h2d, d2h, both, read, copy, device, host = (one.median / 1e9 for one in rates)
    lines = [
        found.hardware.description,
        f"link: H2D {h2d:.2f} GB/s, D2H {d2h:.2f} GB/s, both at once {both:.2f} GB/s",
        f"host memory: read at {read:.1f} GB/s, copied into staging at {copy:.1f} GB/s",
        f"matrix products: device {device:.0f} GFLOP/s, host {host:.0f} GFLOP/s",
        *_between(found.hardware),
        "how well the roofs alone fit, by kind of task:",
        *(
            f"  {one.what}: {one.num_samples} kinds, error {100 * one.median_error:.1f} % (median), "
            f"{100 * one.worst_error:.0f} % (worst)"
            for one in found.fits
        ),
        "what work takes beside other work:",
        *(
            f"  {one.op}: {1e3 * one.beside_s:.2f} ms, alone {1e3 * one.alone_s:.2f} ms ({one.slowdown:.2f} x)"
            for one in found.contention
        ),
        *fit.watts_in_words(found.hardware, found.watts),
        f"written: {path}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _between(hardware: "Hardware") -> list[str]:
    if hardware.network is None:
        return []
    rate, latency = hardware.network.bandwidth_bytes_per_s / 1e9, 1e6 * hardware.network.latency_s
    return [f"sums over {hardware.num_devices} devices: {rate:.2f} GB/s, {latency:.0f} µs the smallest"]


COMMAND = Command(
    "calibrate",
    "measure this machine for a model",
    (
        "--model ./model --out machine.toml",
        "--model ./model --device emulated --h2d-gbs 2 --d2h-gbs 2 --out machine.toml",
    ),
    _add_arguments,
    run,
    needs="engine",
)
