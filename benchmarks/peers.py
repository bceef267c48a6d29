"""The engine beside other systems that generate for the same models and prompts, in one run by turns.

    pip install -e ".[engine,dev,peers]"   # peers: for the rows of llama.cpp, which is compiled here
    python benchmarks/peers.py --repeats 5 --output peers.json                        # ten minutes on two cores
    python benchmarks/peers.py --repeats 5 --output peers.json --models deepseek_v3   # or a model at a time

Three random models in 32 bits: few large experts, many small ones, and latent attention. Each system is a process of
its own, because two pools of threads in one process slow each other down; all of a model are open at once, and one
after the other makes a run, `--repeats` rounds of them. All may use the same `--threads` cores: a resident run of ours
gives all of them to its device, a streamed one shares them out between device, host and link. A first run of each is
not timed; its tokens are compared with those of plain `generate()`.

`x plain` is the throughput over that of plain `generate()` in the same round: its median, smallest and largest.
`of its link` is how long the bytes that came over the link take at its rate, over the time of the run: what no system
on that link comes above. Systems without a stated link are not paced; what they move is copied within memory, or read
from a file that is in the system's cache.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from in_turns import machine_facts, setting_of
from peer_systems import MODELS, SYSTEMS, make_prompts, save_model

NEEDED = {"cpu_offload": ("accelerate",), "disk_offload": ("accelerate",)} | dict.fromkeys(
    ("llama.cpp", "llama.cpp flash"), ("gguf", "llama_cpp")
)
"""Packages that a system needs beside those of the engine."""


class Worker:
    """A system in a process of its own, which makes a run whenever it is asked to."""

    def __init__(self, system: str, folder: Path, args: argparse.Namespace) -> None:
        given = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in OPTIONS]
        command = [sys.executable, __file__, "--worker", system, "--folder", str(folder), *given]
        self.system, self._said = system, tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
        self._process = subprocess.Popen(command, text=True, **pipes)

    def run(self) -> dict[str, Any]:
        """The next run: its tokens, its seconds, and what else is to be told of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._said.seek(0)
            raise SystemExit(f"{self.system}: its process ended\n{self._said.read()[-2000:]}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate()
        self._said.close()


def work(args: argparse.Namespace) -> None:
    """Be a worker: whatever the system itself prints goes elsewhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run = SYSTEMS[args.worker](args.folder, make_prompts(args.requests, args.prompt_tokens), args)
    for _ in sys.stdin:
        answers.write(json.dumps(asdict(run())) + "\n")
        answers.flush()


@contextlib.contextmanager
def workers(systems: Sequence[str], folder: Path, args: argparse.Namespace) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as at_end:
        yield [at_end.enter_context(contextlib.closing(Worker(system, folder, args))) for system in systems]


def measure(name: str, systems: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """All systems by turns on one model."""
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_model(name, Path(folder))
        print(f"\n{name}: {parameters / 1e6:.0f}M parameters", flush=True)
        with workers(systems, Path(folder), args) as asked:
            first = {one.system: one.run()["tokens"] for one in asked}
            runs: dict[str, list[dict[str, Any]]] = {one.system: [] for one in asked}
            for _ in range(args.repeats):
                for one in asked:
                    runs[one.system].append({key: value for key, value in one.run().items() if key != "tokens"})
    rows = [row_of(system, runs, first, args) for system in systems]
    for row in rows:
        print(line_of(row), flush=True)
    given = {option: getattr(args, option) for option in (*OPTIONS, "repeats")}
    return {"model": name, "parameters": parameters, "given": given, "systems": rows}


def row_of(
    system: str, runs: dict[str, list[dict[str, Any]]], first: dict[str, list[list[int]]], args: argparse.Namespace
) -> dict[str, Any]:
    of_plain = zip(runs["plain"], runs[system], strict=True)
    tokens = args.requests * args.steps
    equal = sum(one == other for one, other in zip(first[system], first["plain"], strict=True))
    links = [run["facts"]["link_s"] / run["seconds"] for run in runs[system] if "link_s" in run["facts"]]
    return {
        "system": system,
        "tokens_per_s": [tokens / run["seconds"] for run in runs[system]],
        "of_plain": [plain["seconds"] / run["seconds"] for plain, run in of_plain],
        "of_link": links,
        "threads": runs[system][0]["facts"].get("threads", {"all": args.threads}),
        "equal_requests": equal,
        "requests": args.requests,
        "facts": [run["facts"] for run in runs[system]],
    }


def line_of(row: dict[str, Any]) -> str:
    ratios, links = row["of_plain"], row["of_link"]
    link = f", {statistics.median(links):.2f} of its link" if links else ""
    threads = " ".join(f"{name} {count}" for name, count in row["threads"].items())
    return (
        f"{row['system']:16} {statistics.median(row['tokens_per_s']):7.1f} tokens/s, "
        f"{statistics.median(ratios):.2f} x plain ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"tokens of {row['equal_requests']} of {row['requests']} requests equal, threads: {threads}{link}"
    )


def add(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Put one model beside those that the file of results has already: with few minutes one takes one at a time."""
    if args.output:
        known = json.loads(args.output.read_text(encoding="utf-8"))["models"] if args.output.exists() else {}
        known[found["model"]] = found
        text = json.dumps({"machine": machine_facts(), "models": known}, indent=1)
        args.output.write_text(text + "\n", encoding="utf-8")


def available(systems: Sequence[str]) -> list[str]:
    """Those whose packages are here, plain `generate()` first."""
    found = []
    for system in dict.fromkeys(["plain", *systems]):
        lacking = [package for package in NEEDED.get(system, ()) if find_spec(package) is None]
        if lacking:
            print(f"{system}: left out, {' and '.join(lacking)} is not installed")
        else:
            found.append(system)
    return found


OPTIONS = ("threads", "requests", "prompt_tokens", "steps", "num_micro_batches", "h2d_gbs")
"""What workers are told."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16, help="tokens that each request generates")
    parser.add_argument("--num-micro-batches", type=int, default=4, help="of the streamed runs")
    parser.add_argument("--h2d-gbs", type=float, default=2.0, help="the link of the streamed runs, both ways")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    del args.worker, args.folder
    print(f"{setting_of(args)}\n{machine_facts()}")
    systems = available(args.systems)
    for name in args.models:
        add(args, measure(name, systems, args))


if __name__ == "__main__":
    main()
