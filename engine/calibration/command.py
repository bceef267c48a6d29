"""`python -m engine calibrate`: measure this machine for a model and write its file."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from traces.errors import InputError

if TYPE_CHECKING:
    from engine.calibration.calibration import Calibration, Progress

EXAMPLES = (
    "python -m engine calibrate --model ./model --out machine.toml",
    "python -m engine calibrate --model ./model --device emulated --h2d-gbs 2 --d2h-gbs 2 --out machine.toml",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured and where it goes; the options of the device are added by the caller."""
    parser.add_argument("--model", required=True, help="a folder with a model, or a hub id")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the machine's file (.toml)")
    parser.add_argument("--dtype", default="auto", help="of the loaded weights (default: the checkpoint's)")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the checkpoint bring model code")
    parser.add_argument("--quick", action="store_true", help="fewer sizes: good enough for a plan")


def check_out(path: Path) -> None:
    """Raise InputError before anything is measured if the file cannot be written."""
    if path.suffix != ".toml":
        raise InputError(f"--out {path}: a machine's file ends in .toml")
    if not path.resolve().parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.resolve().parent}; make it first")


def bar() -> "Progress":
    """A progress bar on standard error for the parts of a calibration."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    shown = tqdm(unit="part", disable=None, leave=False)

    def progress(done: int, total: int, doing: str) -> None:
        shown.total, shown.n = total, done
        shown.set_description_str(doing if done < total else "fit")
        shown.refresh()
        if done == total:
            shown.close()

    return progress


def print_summary(calibration: "Calibration", path: Path) -> None:
    """The main numbers, how well the roofs fit, and what runs slow beside what."""
    link, probes = calibration.probes.link, calibration.probes
    h2d, d2h, both, read, copy, device, host = (
        one.median / 1e9
        for one in (
            *(link.h2d, link.d2h, link.together),
            *(probes.host_read, probes.host_copy, probes.device_peak, probes.host_peak),
        )
    )
    lines = [
        calibration.hardware.description,
        f"link: H2D {h2d:.2f} GB/s, D2H {d2h:.2f} GB/s, both at once {both:.2f} GB/s",
        f"host memory: read at {read:.1f} GB/s, copied by one thread at {copy:.1f} GB/s",
        f"matrix products: device {device:.0f} GFLOP/s, host {host:.0f} GFLOP/s",
        "how well the roofs alone fit, by kind of task:",
        *(
            f"  {one.what}: {one.num_samples} kinds, error {100 * one.median_error:.1f} % (median), "
            f"{100 * one.worst_error:.0f} % (worst)"
            for one in calibration.fits
        ),
        "beside streaming weights:",
        *(
            f"  {one.op}: {1e3 * one.beside_s:.2f} ms, alone {1e3 * one.alone_s:.2f} ms ({one.slowdown:.2f} x)"
            for one in calibration.contention
        ),
        f"written: {path}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
