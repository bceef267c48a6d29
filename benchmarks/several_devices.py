"""One model on one, two and four emulated devices of this machine, and how well a calibration of two predicts two.

    python benchmarks/several_devices.py --repeats 3 --output several-devices.json

A random Mixtral shape in float32. The devices share the host's DRAM and cores, so that more of them are no faster here:
what is shown is that all have the same tokens, what the schedule's own dependencies make of the measured durations
(layer 1 of a replay, all ranks and their sums), and the throughput that a machine calibrated for two devices predicts
for the very runs (layer 3), none of which it was fitted to.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from engine_schedules import make_model

import engine
from engine.calibration import calibrate_devices
from engine.device import DeviceAsked
from engine.generation import ModelAsked
from sim.problem import Hardware
from traces.files import write_trace
from validation.replay import replay_trace

GIGA = 1e9


def asked_device(args: argparse.Namespace) -> DeviceAsked:
    link = args.link_gbs * GIGA
    return DeviceAsked("emulated", {"h2d_bytes_per_s": link, "d2h_bytes_per_s": link, "memory_bytes": 2 << 30})


def run(folder: Path, prompts: list[list[int]], count: int, args: argparse.Namespace) -> engine.RunResult:
    policy = {"micro_batch_size": args.micro_batch_size, "num_micro_batches": args.num_micro_batches}
    options = {"max_new_tokens": args.new_tokens, "device": asked_device(args), "num_devices": count}
    return engine.run(ModelAsked(folder, "float32"), prompts, args.schedule, policy, **options)


def measured(results: list[engine.RunResult], machine: Hardware | None) -> dict[str, Any]:
    replays = [replay_trace(one.trace, machine) for one in results]
    found: dict[str, Any] = {
        "tokens_per_s": [round(one.stats.tokens_per_s, 2) for one in results],
        "layer1": [round(one.order_check.error, 4) for one in replays],
        "layer1_with_dispatch": [round(one.order_check.error_with_dispatch, 4) for one in replays],
        "peak_bytes": results[0].stats.peak_bytes,
    }
    if machine is not None:
        checks = [one.run_check for one in replays if one.run_check is not None]
        found["throughput_error"] = [round(one.throughput_error, 4) for one in checks]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--calibrated", type=int, default=2, help="so many devices are calibrated and predicted; 0: none"
    )
    parser.add_argument("--schedule", default="cgopipe")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--num-micro-batches", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--link-gbs", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trace", type=Path, help="the trace of the last run")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    count = args.micro_batch_size * args.num_micro_batches
    prompts = np.random.default_rng(0).integers(1, 4096, (count, args.prompt_tokens)).tolist()
    found: dict[str, Any] = {"settings": {name: str(value) for name, value in vars(args).items()}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(args.hidden_size).save_pretrained(folder)
        machine = None
        if args.calibrated:
            model, device = ModelAsked(folder, "float32"), asked_device(args)
            machine = calibrate_devices(model, device, num_devices=args.calibrated, quick=True).hardware
            paths = ("host.peak", "host_memory.bandwidth", "device.peak", "network.bandwidth", "network.latency")
            found["machine"] = {path: str(machine.value(path)) for path in paths}
        results = {number: [run(folder, prompts, number, args) for _ in range(args.repeats)] for number in args.devices}
    tokens = results[args.devices[0]][0].sequences
    for number, runs in results.items():
        known = machine if number == args.calibrated else None
        same = all(one.sequences == tokens for one in runs)
        found[f"{number} devices"] = {"same_tokens": same, **measured(runs, known)}
        told = found[f"{number} devices"]
        print(number, "devices:", ", ".join(f"{name} {value}" for name, value in told.items()))
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.trace:
        write_trace(results[args.devices[-1]][-1].trace, args.trace)
    shares = [statistics.median(one.stats.tokens_per_s for one in runs) for runs in results.values()]
    print("tokens/s against one device:", ", ".join(f"{share / shares[0]:.2f}" for share in shares))


if __name__ == "__main__":
    main()
