"""Decode attention on the host against the speed of its memory: `python benchmarks/attention.py`.

Reads a KV cache far larger than the processor's caches once per call. Attention and a plain read of as many bytes take
turns, with the same threads, so that what else the machine does falls on both alike.
"""

import argparse
import os
import statistics
import time

import torch

from engine.attention import HostAttention
from engine.calibration.measure.probes import MemoryReader

SHAPES = {  # query heads, kv heads, head_dim
    "mixtral-8x7b": (32, 8, 128),
    "qwen3-30b-a3b": (32, 4, 128),
    "olmoe-1b-7b (no groups)": (16, 16, 128),
    "small (64 wide)": (8, 2, 64),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def measure(shape, dtype, ragged, threads, options):
    """GB/s of attention and of a plain read, one pair a repeat."""
    query_heads, kv_heads, head_dim = shape
    context = options.context
    requests = max(1, options.cache_mb * 10**6 // (2 * kv_heads * context * head_dim * dtype.itemsize))
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.empty(requests, kv_heads, context, head_dim, dtype=dtype).normal_(generator=generator) for _ in range(2)
    )
    query = torch.randn(requests, query_heads, head_dim, generator=generator).to(dtype)
    starts = torch.zeros(requests, dtype=torch.int64)
    if ragged:
        starts = torch.randint(0, context, (requests,), generator=generator)
    num_bytes = 2 * int((context - starts).sum()) * kv_heads * head_dim * dtype.itemsize
    with HostAttention(threads) as attention, MemoryReader(threads, num_bytes) as reader:
        attention(query, keys, values, starts)
        return [
            (
                num_bytes / seconds(lambda: attention(query, keys, values, starts), threads, options.cpu_time) / 1e9,
                num_bytes / seconds(reader.read, threads, options.cpu_time) / 1e9,
            )
            for _ in range(options.repeats)
        ]


def seconds(work, threads, cpu_time):
    """How long `work` takes; as CPU time, what its threads used divided by their number."""
    clock = time.process_time if cpu_time else time.perf_counter
    start_s = clock()
    work()
    return (clock() - start_s) / (threads if cpu_time else 1)


def spread(numbers, digits=1):
    """Median, and the range that holds the middle half."""
    low, middle, high = statistics.quantiles(numbers, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=512, help="tokens per request")
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--cache-mb", type=int, default=256, help="size of the KV cache: far above the caches'")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time: where others use the processor too")
    options = parser.parse_args()
    cells = [("mixtral-8x7b", dtype, False) for dtype in DTYPES] + [(s, "float32", False) for s in list(SHAPES)[1:]]
    cells.append(("mixtral-8x7b", "float32", True))
    print(f"context {options.context}, {options.cache_mb} MB of keys and values, {options.repeats} repeats")
    print(
        f"{'CPU' if options.cpu_time else 'wall'} time; median (middle half); share = attention / read of that repeat\n"
    )
    print(f"{'shape':24} {'type':9} {'threads':>7} {'attention GB/s':>22} {'read GB/s':>22} {'share':>22}")
    for threads in options.threads:
        for name, dtype, ragged in cells:
            pairs = measure(SHAPES[name], DTYPES[dtype], ragged, threads, options)
            attention, read = zip(*pairs, strict=True)
            shares = [a / r for a, r in pairs]
            label = f"{name}{' ragged' if ragged else ''}"
            print(
                f"{label:24} {dtype:9} {threads:7} {spread(attention):>22} {spread(read):>22} {spread(shares, 2):>22}"
            )


if __name__ == "__main__":
    main()
