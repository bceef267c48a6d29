"""The machine at hand as a machine's file."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from sim.problem.machine.detect.found import Found, find
from sim.problem.machine.detect.system import AskedSystem
from traces.cli import Command, progress, writing
from traces.errors import InputError

BUSY = 0.5
"""Programs that ran in the last minute, on average, above which measurements are of what they left."""

HEADER = "# Written by `{command}`. Each number says how it is known; give better ones where you have them.\n"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    seconds = "measure DRAM, a core's copy, the host's matrices, a disk, with torch and a device its link: under 20 s"
    parser.add_argument("--measure", action="store_true", help=seconds)
    parser.add_argument("--disk", metavar="DIR", type=Path, help="whose disk to measure, with a file that is removed")
    parser.add_argument("--out", metavar="FILE", help="write the machine's file (.toml), for --hardware")


def run(args: argparse.Namespace) -> int:
    """Ask the machine, measure if asked to, and print or write its file. Raises InputError."""
    if args.out and Path(args.out).suffix != ".toml":
        raise InputError(f"--out {args.out}: a machine's file ends in .toml")
    if args.disk and not args.measure:
        raise InputError("--disk: says where --measure reads; give that too")
    if args.disk and not args.disk.is_dir():
        raise InputError(f"--disk {args.disk}: there is no such folder")
    found = find()
    if args.measure:
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if busy > BUSY:
            sys.stderr.write(f"the machine is busy (load {busy:.1f}): what is measured now is less than it can do\n")
        with progress("measuring"):
            found = with_measured(found, args.disk)
    text = file_text(found, measure=args.measure)
    if args.out:
        writing(args.out, lambda name: Path(name).write_text(text, encoding="utf-8"))
        sys.stdout.write(
            f"{found.description}\nwritten to {args.out}; `python -m sim list {args.out}` shows all numbers\n"
        )
    else:
        sys.stdout.write(text)
    for line in found.missing():
        sys.stderr.write(f"{line}\n")
    return 0


def with_measured(found: Found, folder: Path | None = None) -> Found:
    """What was found, with what can be measured of it."""
    from sim.problem.machine.detect.measure import measured

    numbers = {name: rate.quantity() for name, rate in measured(found.host.cores, caches_bytes(AskedSystem()), folder)}
    if found.host.disk is None:
        numbers.pop("disk.bandwidth", None)
    if found.is_unified:
        numbers["device_memory.bandwidth"] = numbers["host_memory.bandwidth"]
    return replace(found, measured=numbers)


def caches_bytes(system: AskedSystem) -> int:
    """The largest cache that any core has; 0 if nobody says."""
    sizes = [system.read(f"{folder}/size") for folder in system.folders("/sys/devices/system/cpu/cpu0/cache/index*")]
    return max((int(one[:-1]) * 1024 for one in sizes if one.endswith("K") and one[:-1].isdecimal()), default=0)


def file_text(found: Found, *, measure: bool) -> str:
    """The machine's file."""
    import tomli_w

    header = HEADER.format(command=f"python -m sim detect{' --measure' if measure else ''}")
    lines = "".join(f"# {line}\n" for line in found.missing())
    return f"{header}{lines}\n{tomli_w.dumps(found.table())}"


COMMAND = Command(
    "detect",
    "describe the machine at hand, for --hardware",
    ("", "--measure --out machine.toml"),
    _add_arguments,
    run,
)
