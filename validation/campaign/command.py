"""Calibrate, run, predict and report; goes on where an earlier call stopped."""

import argparse
import sys
from pathlib import Path

from engine import device as devices
from engine.device import add_device, device_of
from traces import files
from traces.cli import Command, positive_int, progress, write_json
from traces.errors import InputError
from validation import campaign as campaigns, replay
from validation.campaign import streams

EMULATED = "emulated"
USUAL_GBS = 1.0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="its state and its report")
    parser.add_argument("--streams", action="store_true", help="streams of requests instead of batches")
    parser.add_argument("--repeats", type=positive_int, default=5, help="runs of each case (default: %(default)s)")
    parser.add_argument("--any-speed", action="store_true", help="keep runs made while the machine is slow")
    parser.add_argument("--report-only", action="store_true", help="report on what is there; run nothing")
    add_device(parser.add_argument_group(f"device (an emulated one has a link of {USUAL_GBS:g} GB/s unless told)"))
    parser.set_defaults(device=EMULATED, device_memory_gb=2.0)


def run(args: argparse.Namespace) -> int:
    """Run what is missing and write the report."""
    campaign = _campaign(args)
    if not args.report_only:
        _device(args).close()  # a wrong option shows before anything runs
        with progress("campaign", 1, unit="runs", lines=True) as shown:
            campaign.run(shown.at)
    elif not all(campaign.machine_file(model).exists() for model in campaign.grid.models):
        raise InputError(f"--report-only: {args.out} holds no campaign; run it first, without --report-only")
    with progress("predicting and drawing"):
        if not isinstance(campaign, campaigns.Campaign):
            write_streams(campaign, streams.analyse_streams(campaign, streams.STREAMS))
        else:
            write(campaign, campaigns.analyse(campaign))
    sys.stdout.write(f"{args.out / 'report.md'}\n")
    return 0


def _campaign(args: argparse.Namespace) -> "campaigns.Measurements":
    watched = {"watches_speed": not args.any_speed}
    if args.streams:
        return campaigns.Measurements(args.out, streams.STREAMS, args.repeats, lambda: _device(args), **watched)
    return campaigns.Campaign(args.out, campaigns.STANDARD, args.repeats, lambda: _device(args), **watched)


def _device(args: argparse.Namespace) -> "devices.Device":
    if args.device == EMULATED:
        for rate in ("h2d_gbs", "d2h_gbs"):
            setattr(args, rate, USUAL_GBS if getattr(args, rate) is None else getattr(args, rate))
    device = device_of(args)
    device.hold_cores()
    return device


def write(campaign: "campaigns.Campaign", findings: "campaigns.Findings") -> None:
    """Write report.md, report.json and the pictures."""
    if not findings.runs:
        raise InputError(f"{campaign.folder} holds no run: there is nothing to report")
    folder = campaign.folder
    campaigns.draw_runs(findings, folder / "runs.png")
    campaigns.draw_ops(findings, folder / "ops.png")
    worst = max(findings.runs, key=lambda one: abs(one.error))
    trace, machine = files.read_trace(campaign.traces(worst.case)[0]), campaign.machine(worst.case.model)
    replay.draw(replay.replay_trace(trace, machine), str(folder / "worst.png"))
    pictures = [
        ("runs.png", "Predicted throughput over measured throughput of every run."),
        ("ops.png", "Seconds of every op over all runs, measured and predicted."),
        ("worst.png", f"The run that is furthest off, {worst.case.name}: measured above predicted."),
    ]
    facts = [campaign.machine(model).description for model in campaign.grid.models]
    facts = list(dict.fromkeys(facts + campaigns.told(campaign.speed_file)))
    (folder / "report.md").write_text(campaigns.report_markdown(findings, facts, pictures), encoding="utf-8")
    write_json(folder / "report.json", findings.to_dict())


def write_streams(campaign: "campaigns.Measurements", findings: "streams.StreamFindings") -> None:
    """Write report.md, report.json and the picture."""
    if not findings.runs:
        raise InputError(f"{campaign.folder} holds no run: there is nothing to report")
    folder = campaign.folder
    streams.draw_latencies(findings, folder / "latencies.png")
    pictures = [("latencies.png", "Predicted latencies over measured ones: half, and nine of ten, requests of each.")]
    facts = [campaign.machine(model).description for model in campaign.grid.models]
    facts = list(dict.fromkeys(facts + campaigns.told(campaign.speed_file)))
    (folder / "report.md").write_text(streams.streams_markdown(findings, facts, pictures), encoding="utf-8")
    write_json(folder / "report.json", findings.to_dict())


COMMAND = Command(
    "campaign",
    "calibrate this machine, run the engine over a grid, predict every run, report the errors",
    ("--out campaign", "--out campaign --report-only", "--out streams --streams --repeats 3"),
    _add_arguments,
    run,
    needs="engine",
    interrupted="interrupted: what was done is kept; the same command goes on with the rest",
)
