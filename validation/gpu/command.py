"""Prove the engine and its predictions on an accelerator, into one folder."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.cli import Command, project_version, write_json, write_text

if TYPE_CHECKING:
    from validation.gpu.record import ProofRecord
    from validation.gpu.scale import Scale

USUAL_DEVICE, USUAL_SCALE = "auto", "full"
LAST_STAGE = 8


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="its state and its report")
    parser.add_argument("--minutes", type=_minutes, metavar="M", help="what does not fit is left out, and said")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    parser.add_argument("--dry-run", action="store_true", help="tell stages, bytes and minutes; run nothing")
    parser.add_argument("--device", default=USUAL_DEVICE, help="auto, emulated or cuda (default: %(default)s)")
    parser.add_argument("--scale", default=USUAL_SCALE, help="full, small, few or tiny (default: %(default)s)")
    every = range(LAST_STAGE + 1)
    parser.add_argument("--stages", type=stage_numbers, default=every, metavar="N-M", help="such as 0-3 or 0,4-8")


def stage_numbers(text: str) -> list[int]:
    """Read numbers and ranges of stages, in order."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= LAST_STAGE:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give stages from 0 to {LAST_STAGE}, as in 0-3")
        found.update(range(first, last + 1))
    return sorted(found)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not allowed; give more than 0 minutes")
    return value


def run(args: argparse.Namespace) -> int:
    """Run what is missing, and report. The exit code says whether anything failed."""
    from validation.gpu.proof import Proof, TimeBudget, failures
    from validation.gpu.record import ProofRecord
    from validation.gpu.scale import scale_named
    from validation.gpu.stages import REPORT, STAGES
    from validation.gpu.workbench import Workbench

    budget, scale = TimeBudget(args.minutes), scale_named(args.scale)
    if args.dry_run:
        return _tell_plan(args, scale)
    asked = [(number, stage) for number, stage in enumerate(STAGES) if number in args.stages]
    if not asked:  # the report alone needs no device
        record = ProofRecord.read(args.out)
        return _report(record, scale_named(record.settings["scale"]))
    record = ProofRecord.begin(args.out, _settings(args), resume=args.resume)
    Proof(Workbench(args.device, scale, record), asked, budget, _tell).run()
    if REPORT in args.stages:
        _report(record, scale)
    return int(bool(failures(record.stages)))


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a folder's runs have in common. Raises InputError for a device that there is not."""
    from validation.gpu.scale import scale_named
    from validation.gpu.workbench import open_sized

    smallest = min(spec.device_bytes for spec in scale_named(args.scale).models.values())
    with open_sized(args.device, smallest) as device:
        return {"scale": args.scale, "origin": device.origin, "version": project_version()}


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _report(record: "ProofRecord", scale: "Scale") -> int:
    """Write report.txt, report.json and report.png, and tell the text."""
    from validation.gpu import reporting

    summary = reporting.summarised(record, scale)
    text = reporting.proof_text(summary)
    write_text(record.folder / "report.txt", text)
    write_json(record.folder / "report.json", summary.to_dict())
    reporting.draw_proof(summary, record.folder / "report.png")
    sys.stdout.write(text)
    return int(bool(summary.failures))


def _tell_plan(args: argparse.Namespace, scale: "Scale") -> int:
    """What each stage would do, what host and device would hold, and how long it may take; makes nothing."""
    from validation.gpu.record import ProofRecord
    from validation.gpu.reporting import print_dry_run
    from validation.gpu.workbench import Workbench

    record = ProofRecord(args.out, _settings(args))
    print_dry_run(Workbench(args.device, scale, record), args.stages, args.minutes)
    return 0


COMMAND = Command(
    "gpu",
    "prove the engine and its predictions on this accelerator, into one folder",
    ("--out proof --minutes 8 --scale small", "--out proof --resume --stages 4-8", "--out proof --dry-run"),
    _add_arguments,
    run,
    needs="engine",
    interrupted="interrupted: what was done is kept; --resume goes on with the rest",
)
