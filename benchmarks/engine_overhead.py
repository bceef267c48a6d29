"""What the engine costs where nothing has to move: everything resident, no link, against plain `generate()`.

    python benchmarks/engine_overhead.py --repeats 5

Both have the same threads, one batch, and an allocator that keeps freed memory, which makes plain `generate()` a third
faster too. They take turns in processes of their own: two OpenMP pools in one process slow each other down. Of each
repeat the ratio of their throughputs is taken, for one micro-batch and for four (plain `generate()` then runs one
micro-batch after the other).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from engine_schedules import GIGA, PROMPT_TOKENS, make_model
from transformers import PreTrainedModel

import engine
from engine.device import EmulatedDevice
from engine.device.emulated import keep_freed_memory
from sim.problem import Policy


def plain_s(model: PreTrainedModel, prompts: list[list[int]], size: int, steps: int) -> float:
    """Seconds of plain generation."""
    started = time.perf_counter()
    for first in range(0, len(prompts), size):
        ids = torch.tensor(prompts[first : first + size])
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False)
    return time.perf_counter() - started


def engine_s(model: PreTrainedModel, prompts: list[list[int]], size: int, steps: int, threads: int) -> float:
    """Seconds of the same in the engine, with all that lives on the device there."""
    policy = Policy(len(prompts), size, attention="gpu", experts_on_device=1.0, kv_on_device=1.0)
    with EmulatedDevice(None, None, int(8 * GIGA), gpu_threads=threads, cpu_threads=1) as device:
        stats = engine.run(model, prompts, "cgopipe", policy, max_new_tokens=steps, device=device).stats
    return stats.prefill_s + stats.decode_s


def seconds(args: argparse.Namespace) -> list[float]:
    """Of one process: seconds with one micro-batch and with four, the median of several batches each."""
    keep_freed_memory()
    ours = args.only == "engine"
    torch.set_num_threads(1 if ours else args.threads)  # the engine's lane has threads of its own
    model = make_model(args.hidden_size)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 4096, (args.batch_size, PROMPT_TOKENS), generator=generator).tolist()
    found = []
    for size in _sizes(args):
        took = [
            engine_s(model, prompts, size, args.steps, args.threads)
            if ours
            else plain_s(model, prompts, size, args.steps)
            for _ in range(1 + args.batches)
        ]
        found.append(statistics.median(took[1:]))  # the first warms up
    return found


def _sizes(args: argparse.Namespace) -> tuple[int, int]:
    return args.batch_size, args.batch_size // 4


def in_a_process(whose: str) -> list[float]:
    """The same measurement with the same options, in a process of its own."""
    command = [sys.executable, *sys.argv, "--only", whose]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    times: list[float] = json.loads(ran.stdout.splitlines()[-1])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind, by turns")
    parser.add_argument("--batches", type=int, default=3, help="timed in each process")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=("plain", "engine"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(seconds(args)))
        return
    pairs = [(in_a_process("plain"), in_a_process("engine")) for _ in range(args.repeats)]
    for at, size in enumerate(_sizes(args)):
        ratios = sorted(plain[at] / ours[at] for plain, ours in pairs)
        print(
            f"micro-batches of {size}: {statistics.median(ratios):.3f} x plain generate() "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
