"""Whether a long run keeps its memory: what a process holds after five batches, and at its end.

    python benchmarks/long_run.py --requests 2000 --layers 24
    python benchmarks/long_run.py --requests 2000 --layers 24 --stream

`python -m engine run` works through a file of requests with a random model of many layers that are narrow, so that what
is kept of each task would be seen. Its resident memory is read whenever as many results are there as fill a batch, and
once more when all are. Exits with 1 if the end is more than `--within` above the fifth batch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from in_turns import machine_facts

from engine.running.demo import PROMPTS, make_model

MEGA = 1e6
POLL_S = 0.02
SETTLED_BATCHES = 5


def resident_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def command_of(args: argparse.Namespace, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "engine", "run", "--model", str(folder / "model"), "--device", "emulated"]
    command += ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    command += ["--micro-batch-size", str(args.micro_batch_size), "--num-micro-batches", str(args.num_micro_batches)]
    command += ["--max-new-tokens", str(args.steps), "--gpu-threads", "1", "--cpu-threads", "1"]
    return command + ["--stream"] * args.stream + ["--temperature", "1", "--seed", "1"] * args.sampled


def watch(command: list[str], output: Path, batch: int, count: int) -> list[tuple[int, int]]:
    """(results, resident bytes) after each batch and at the end of the run."""
    seen: list[tuple[int, int]] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            done = output.read_bytes().count(b"\n") if output.exists() else 0
            held = resident_bytes(process.pid)
            if (held and done >= (seen[-1][0] if seen else 0) + batch) or (done == count and held):
                seen = [*(one for one in seen if one[0] < count), (done, held)]
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}: {' '.join(command)}")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="tokens that each request generates")
    parser.add_argument("--micro-batch-size", type=int, default=10)
    parser.add_argument("--num-micro-batches", type=int, default=4)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--sampled", action="store_true", help="draw tokens")
    parser.add_argument("--within", type=float, default=0.05)
    parser.add_argument("--output", type=Path, help="all readings as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", hidden_size=args.hidden_size, num_layers=args.layers)
        lines = [json.dumps({"prompt": PROMPTS[at % len(PROMPTS)]}) + "\n" for at in range(args.requests)]
        (folder / "in.jsonl").write_text("".join(lines), encoding="utf-8")
        batch, began = args.micro_batch_size * args.num_micro_batches, time.perf_counter()
        seen = watch(command_of(args, folder), folder / "out.jsonl", batch, args.requests)
        seconds = time.perf_counter() - began
    early = next(held for done, held in seen if done >= SETTLED_BATCHES * batch)
    late, most = seen[-1][1], max(held for _, held in seen)
    print(
        f"{args.requests} requests, {args.layers} layers, batches of {batch}: {early / MEGA:.1f} MB after "
        f"{SETTLED_BATCHES} batches, {late / MEGA:.1f} MB at the end ({late / early:.3f} x), {most / MEGA:.1f} MB at "
        f"most; {seconds:.0f} s"
    )
    if args.output:
        given = {key: value for key, value in vars(args).items() if key != "output"}
        found = {"given": given, "machine": machine_facts(), "results_and_resident_bytes": seen}
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(late > (1 + args.within) * early)


if __name__ == "__main__":
    main()
