"""What a turn of a micro-batch through a layer costs the host, in models so small that computing them costs nothing.

    python benchmarks/turn.py --repeats 5 --json benchmarks/results/turn.json
    git worktree add ../before COMMIT && python benchmarks/turn.py --before ../before

In decode each layer gives every micro-batch one turn: the lane of the GPU runs the model's code in two halves, and the
other lanes move its weights, query, keys, values and attention output, and attend. Python runs one thread at a time, so
the sum over lanes bounds a turn from below. CPU time of each lane's thread, from long runs less short ones, so that
prefill and setting up cancel out; beside it the same of plain `generate()`, which has no lanes but the model's code.
Once with all threads on one core, and once on any: the difference is what it costs that they hand Python's lock from
core to core. With `--before`, another checkout is measured by turns, in processes of their own.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import engine
from engine.device import EmulatedDevice
from sim.problem import Policy
from sim.schedule import by_name

LAYERS, MICRO_BATCHES, SIZE, PROMPT_TOKENS = 4, 8, 4, 8
SHORT, LONG = 4, 24
"""Tokens generated in the runs of which the difference is taken."""

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MODELS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24},
}
CORES = os.sched_getaffinity(0)
PLACES = {"one core": {max(CORES)}, "any core": CORES}
PLAIN = "plain generate()"
WALL = "wall clock"
ALL = "all lanes"
TIMES = "all lanes / plain"


def make_model(family: str) -> PreTrainedModel:
    """A tiny random model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY, **MODELS[family])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    return model


class Lanes:
    """CPU time of the threads that end while it is entered, by name."""

    def __init__(self) -> None:
        self.cpu_ns: dict[str, int] = {}

    def __enter__(self) -> "Lanes":
        self._run = run = threading.Thread.run

        def measured(thread: threading.Thread) -> None:
            start_ns = time.thread_time_ns()
            try:
                run(thread)
            finally:
                self.cpu_ns[thread.name] = time.thread_time_ns() - start_ns

        threading.Thread.run = measured  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        threading.Thread.run = self._run  # type: ignore[method-assign]


def engine_ns(model: PreTrainedModel, schedule: str, steps: int) -> dict[str, float]:
    """Nanoseconds of each lane, and of decode by the wall clock."""
    prompts = [[3 + i] * PROMPT_TOKENS for i in range(MICRO_BATCHES * SIZE)]
    policy = Policy.usual(by_name(schedule), len(prompts), SIZE)
    with EmulatedDevice(None, None, 1 << 30) as device, Lanes() as lanes:
        stats = engine.run(model, prompts, schedule, policy, max_new_tokens=steps, device=device).stats
    used = {lane.partition("[")[0]: float(lanes.cpu_ns.get(lane, 0)) for lane in stats.busy_s}
    return {**used, WALL: stats.decode_s * 1e9}


def plain_ns(model: PreTrainedModel, steps: int) -> dict[str, float]:
    """CPU time of plain generation for one micro-batch; as many turns as the engine gives its micro-batches."""
    ids = torch.full((SIZE, PROMPT_TOKENS), 5)
    start_ns = time.thread_time_ns()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False)
    return {PLAIN: float((time.thread_time_ns() - start_ns) * MICRO_BATCHES)}


def turn_us(schedule: str, runs: int) -> dict[str, dict[str, float]]:
    """Of one process: microseconds a turn, by model and lane; the median of several pairs of runs."""
    torch.set_num_threads(1)
    return {
        f"{family}, {where}": _turn_us(make_model(family), schedule, runs, cores)
        for family in MODELS
        for where, cores in PLACES.items()
    }


def _turn_us(model: PreTrainedModel, schedule: str, runs: int, cores: set[int]) -> dict[str, float]:
    os.sched_setaffinity(0, cores)
    pairs = []
    for _ in range(1 + runs):  # the first warms up
        gc.collect()
        gc.freeze()  # what libraries hold is not looked through in a lane
        short, long = (engine_ns(model, schedule, n) | plain_ns(model, n) for n in (SHORT, LONG))
        pairs.append({name: long[name] - short[name] for name in long})
    turns = (LONG - SHORT) * LAYERS * MICRO_BATCHES
    return {name: statistics.median(pair[name] for pair in pairs[1:]) / turns / 1e3 for name in pairs[0]}


def in_a_process(root: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The same with the packages of a checkout, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--here", "--schedule", args.schedule]
    command += ["--runs", str(args.runs)]
    environment = os.environ | {"PYTHONPATH": str(root.resolve()), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    times: dict[str, dict[str, float]] = json.loads(ran.stdout.splitlines()[-1])
    return times


def commit_of(root: Path) -> str:
    """What of the project a checkout holds."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    return ran.stdout.strip() or "unknown"


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over processes; the sum over lanes, and that in turns of plain generation."""
    found: dict[str, dict[str, float]] = {}
    for case in rounds[0]:
        of_case = [
            {
                **one,
                ALL: (lanes := sum(us for name, us in one.items() if name not in (PLAIN, WALL))),
                TIMES: lanes / one[PLAIN],
            }
            for one in (process[case] for process in rounds)
        ]
        found[case] = {name: round(statistics.median(one[name] for one in of_case), 3) for name in of_case[0]}
    return found


def table(result: dict[str, Any]) -> str:
    """Microseconds a turn, a column for each checkout."""
    lines = [f"microseconds a turn, {result['schedule']}, medians of {result['repeats']} processes each, by turns"]
    columns = result["checkouts"]
    for case, figures in next(iter(columns.values()))["us"].items():
        lines.append(f"{case:<24}" + "".join(f"{name + ' ' + one['commit']:>28}" for name, one in columns.items()))
        for name in figures:
            digits = 2 if name == TIMES else 0
            lines.append(
                f"  {name:<22}" + "".join(f"{one['us'][case].get(name, 0):>28.{digits}f}" for one in columns.values())
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="cgopipe")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout, measured by turns")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each checkout")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs in each process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(turn_us(args.schedule, args.runs)))
        return
    roots = ({"before": args.before} if args.before else {}) | {"now": Path(__file__).resolve().parents[1]}
    rounds = [{name: in_a_process(root, args) for name, root in roots.items()} for _ in range(args.repeats)]
    result = {
        "schedule": args.schedule,
        "repeats": args.repeats,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version()} | {x.__name__: x.__version__ for x in (torch, transformers)},
        "checkouts": {
            name: {"commit": commit_of(root), "us": summary([one[name] for one in rounds])}
            for name, root in roots.items()
        },
    }
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
