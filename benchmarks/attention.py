"""Decode attention on the host against the speed of its memory: `python benchmarks/attention.py`.

Reads a KV cache far larger than the caches once per call. For each shape, attention in every type and a plain
read of as many bytes take turns, with the same threads, so that what else the machine does falls on all alike; shares
are taken within a turn.
"""

import argparse
import contextlib

import torch
from in_turns import GIGA, begin, keep, options_of, quartiles, seconds, spread

from engine.calibration.measure.probes import MemoryReader
from engine.host import HostAttention

SHAPES = {  # query heads, kv heads, head_dim
    "mixtral-8x7b": (32, 8, 128),
    "qwen3-30b-a3b": (32, 4, 128),
    "olmoe-1b-7b (no groups)": (16, 16, 128),
    "small (64 wide)": (8, 2, 64),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def attention_of(kernel, shape, dtype, ragged, options):
    """What attends once, and the bytes that it reads."""
    query_heads, kv_heads, head_dim = shape
    requests = max(1, options.cache_mb * 10**6 // (2 * kv_heads * options.context * head_dim * dtype.itemsize))
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.empty(requests, kv_heads, options.context, head_dim, dtype=dtype).normal_(generator=generator)
        for _ in range(2)
    )
    query = torch.randn(requests, query_heads, head_dim, generator=generator).to(dtype)
    starts = torch.zeros(requests, dtype=torch.int64)
    if ragged:
        starts = torch.randint(0, options.context, (requests,), generator=generator)
    num_bytes = 2 * int((options.context - starts).sum()) * kv_heads * head_dim * dtype.itemsize
    out = torch.empty_like(query)
    return lambda: kernel(query, keys, values, starts, out=out), num_bytes


def measure(shape, ragged, threads, options):
    """GB/s of a plain read and of attention in each type: turns of {what: GB/s}."""
    with contextlib.ExitStack() as stack:
        kernel = stack.enter_context(HostAttention(threads))
        reader = stack.enter_context(MemoryReader(threads, options.cache_mb * 10**6))
        work = {name: attention_of(kernel, shape, dtype, ragged, options) for name, dtype in DTYPES.items()}
        work = {"read": (reader.read, options.cache_mb * 10**6), **work}
        for attend, _ in work.values():
            attend()
        return [
            {
                name: num_bytes / seconds(once, threads, options.cpu_time) / GIGA
                for name, (once, num_bytes) in work.items()
            }
            for _ in range(options.repeats)
        ]


def summary(turns):
    """Quartiles for each type: its GB/s, its share of the read and of attention in float32 in the same turn."""
    return {
        name: {
            "gb_per_s": quartiles([turn[name] for turn in turns]),
            "of_read": quartiles([turn[name] / turn["read"] for turn in turns]),
            "of_float32": quartiles([turn[name] / turn["float32"] for turn in turns]),
        }
        for name in ("read", *DTYPES)
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=512, help="tokens per request")
    parser.add_argument("--cache-mb", type=int, default=200, help="size of each KV cache: far above the caches'")
    options = options_of(parser)
    begin(options, "a plain read, and of attention in float32,")
    print(f"{'shape':24} {'type':9} {'threads':>7} {'GB/s':>22} {'of read':>22} {'of float32':>22}")
    rows = []
    for threads in options.threads:
        for name, ragged in [*((name, False) for name in SHAPES), ("mixtral-8x7b", True)]:
            label = f"{name}{' ragged' if ragged else ''}"
            found = summary(measure(SHAPES[name], ragged, threads, options))
            rows.append({"shape": label, "threads": threads, **found})
            for kind, numbers in found.items():
                shown = [spread(numbers[what], 1 if what == "gb_per_s" else 2) for what in numbers]
                print(f"{label:24} {kind:9} {threads:7} {shown[0]:>22} {shown[1]:>22} {shown[2]:>22}", flush=True)
    keep(options, rows)


if __name__ == "__main__":
    main()
