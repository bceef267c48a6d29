"""`python -m validation campaign`: calibrate, run, predict and report; goes on where an earlier call stopped."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import InputError

if TYPE_CHECKING:
    from engine.device import Device
    from validation.campaign.analyse import Findings
    from validation.campaign.execute import Campaign

GIGA = 1e9
USUAL_GBS = 1.0
USUAL_MEMORY_GB = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it goes, how often each run is made, and on which device."""
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="its state and its report")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case (default: %(default)s)")
    parser.add_argument("--device", default="emulated", help="emulated or cuda (default: %(default)s)")
    parser.add_argument("--h2d-gbs", type=float, default=USUAL_GBS, help="emulated H2D in GB/s (default: %(default)s)")
    parser.add_argument("--d2h-gbs", type=float, default=USUAL_GBS, help="emulated D2H in GB/s (default: %(default)s)")
    parser.add_argument("--device-memory-gb", type=float, default=USUAL_MEMORY_GB, help="in GB (default: %(default)s)")
    parser.add_argument("--any-speed", action="store_true", help="keep runs made while the machine is slow")
    parser.add_argument("--report-only", action="store_true", help="report on what is there; run nothing")


def run(args: argparse.Namespace) -> int:
    """Run what is missing and write the report."""
    from validation.campaign.analyse import analyse
    from validation.campaign.execute import Campaign
    from validation.campaign.grid import STANDARD

    if args.repeats < 1:
        raise InputError(f"--repeats: {args.repeats} is not allowed; give a whole number of at least 1")
    campaign = Campaign(args.out, STANDARD, args.repeats, lambda: _device(args), watches_speed=not args.any_speed)
    if not args.report_only:
        _device(args).close()  # a wrong option shows before anything runs
        _execute(campaign)
    elif not all(campaign.machine_file(model).exists() for model in campaign.grid.models):
        raise InputError(f"--report-only: {args.out} holds no campaign; run it first, without --report-only")
    write(campaign, analyse(campaign))
    return 0


def write(campaign: "Campaign", findings: "Findings") -> None:
    """Write report.md, report.json and the pictures, and say where."""
    from validation.campaign.picture import draw_ops, draw_runs
    from validation.campaign.report import markdown
    from validation.campaign.steady import told
    from validation.replay import draw

    if not findings.runs:
        raise InputError(f"{campaign.folder} holds no run: there is nothing to report")
    folder = campaign.folder
    draw_runs(findings, folder / "runs.png")
    draw_ops(findings, folder / "ops.png")
    worst = max(findings.runs, key=lambda one: abs(one.error))
    draw(_replayed(campaign, worst.case.name), str(folder / "worst.png"))
    pictures = [
        ("runs.png", "Predicted throughput over measured throughput of every run."),
        ("ops.png", "Seconds of every op over all runs, measured and predicted."),
        ("worst.png", f"The run that is furthest off, {worst.case.name}: measured above predicted."),
    ]
    facts = [campaign.machine(model).description for model in campaign.grid.models] + told(campaign.speed_file)
    (folder / "report.md").write_text(markdown(findings, list(dict.fromkeys(facts)), pictures), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(findings.to_dict(), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{folder / 'report.md'}\n")


def _replayed(campaign: "Campaign", name: str) -> Any:
    from traces.files import read_trace
    from validation.replay import replay_trace

    case = next(one for one in campaign.cases() if one.name == name)
    file = next(f for f in (campaign.trace_file(case, r) for r in range(campaign.repeats)) if f.exists())
    return replay_trace(read_trace(file), campaign.machine(case.model))


def _execute(campaign: "Campaign") -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    bar = tqdm(unit="run", disable=None)

    def progress(done: int, total: int, doing: str) -> None:
        bar.total, bar.n = total, done
        bar.set_description_str(doing)
        bar.refresh()

    try:
        campaign.run(progress)
    finally:
        bar.close()


def _device(args: argparse.Namespace) -> "Device":
    from engine.device import make_device

    options: dict[str, Any] = {"memory_bytes": int(args.device_memory_gb * GIGA)}
    if args.device == "emulated":
        options |= {"h2d_bytes_per_s": args.h2d_gbs * GIGA, "d2h_bytes_per_s": args.d2h_gbs * GIGA}
    return make_device(args.device, **options)
