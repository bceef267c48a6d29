"""A machine measured for a model, and its file written."""

import argparse
import sys
from pathlib import Path

from engine import calibration, device as devices
from engine.calibration import fit
from engine.device import add_device, device_of
from engine.generation import add_model, model_of
from traces.cli import Command, progress
from traces.errors import InputError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the machine's file (.toml)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes: good enough for a plan")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the device and its host, and write what was found."""
    if args.out.suffix != ".toml":
        raise InputError(f"--out {args.out}: a machine's file ends in .toml")
    if not args.out.resolve().parent.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {args.out.resolve().parent}; make it first")
    with devices.open_device(device_of(args)) as device:
        model = model_of(args, device)
        with progress("measuring", 1, unit="parts", lines=True) as shown:
            measured = calibration.calibrate(model, device, args.out.stem, quick=args.quick, progress=shown.at)
    measured.hardware.write(args.out)
    print_summary(measured, args.out)
    return 0


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
