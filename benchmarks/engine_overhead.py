"""What the engine costs where nothing has to move: everything resident, no link, against plain `generate()`.

    python benchmarks/engine_overhead.py --repeats 5

Both have the same threads and one batch; the ratio of their throughputs is printed for one micro-batch and for four
(plain `generate()` then runs one micro-batch after the other).
"""

import argparse
import os
import statistics
import time

import torch
from engine_schedules import GIGA, PROMPT_TOKENS, make_model
from transformers import PreTrainedModel

import engine
from engine.device.emulated import EmulatedDevice
from sim.policy import Policy


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = make_model(args.hidden_size)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 4096, (args.batch_size, PROMPT_TOKENS), generator=generator).tolist()
    for size in (args.batch_size, args.batch_size // 4):
        ratios = []
        for _ in range(args.repeats + 1):
            plain = plain_s(model, prompts, size, args.steps)
            ratios.append(plain / engine_s(model, prompts, size, args.steps, args.threads))
        measured = sorted(ratios[1:])  # the first warms up
        print(
            f"micro-batches of {size}: {statistics.median(measured):.3f} x plain generate() "
            f"({measured[0]:.3f} to {measured[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
