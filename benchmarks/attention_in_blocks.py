"""Decode attention over a KV cache in blocks against one in one piece: `python benchmarks/attention_in_blocks.py`.

The same requests, the same numbers, the same kernel: once each request's tokens lie one behind the other, once in
shuffled blocks of a pool. Both take turns, so that what else the machine does falls on both alike; shares are taken
within a turn. There are as many layers of them as fill memory far beyond the processor's caches.
"""

import argparse
import itertools

import torch
from attention import DTYPES, SHAPES
from in_turns import GIGA, begin, keep, options_of, quartiles, seconds, spread

from engine.device import EmulatedDevice, Ledger
from engine.host import HostAttention
from engine.memory import BLOCK_TOKENS, HostBlocks, KVBlocks
from engine.model import KeysValues

MOST_LAYERS = 64


def host_memory():
    return HostBlocks(EmulatedDevice(None, None, 1), Ledger("host memory", None))


def in_one_piece(shape, dtype, requests, context, cache_mb):
    """Layers of [requests, kv_heads, context, head_dim]."""
    _, kv_heads, head_dim = shape
    whole, host = (requests, kv_heads, context, head_dim), host_memory()
    num_bytes = torch.Size(whole).numel() * dtype.itemsize
    generator = torch.Generator().manual_seed(0)

    def filled(name):
        block = host.take("kv cache", name, num_bytes, locked=False)
        return block.view(whole, dtype).normal_(generator=generator)

    num_layers = max(1, min(MOST_LAYERS, cache_mb * 10**6 // (2 * num_bytes)))
    return [KeysValues(filled(f"keys {layer}"), filled(f"values {layer}")) for layer in range(num_layers)]


def in_blocks(layers, block_tokens):
    """The same in blocks that requests have left in any order, and their table."""
    requests, _, context, _ = layers[0].keys.shape
    num_blocks = requests * -(-context // block_tokens)
    blocks = KVBlocks(dict(enumerate(layers)), num_blocks, host_memory(), block_tokens=block_tokens)
    blocks.extend(range(num_blocks), [1] * num_blocks)
    for request in torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist():
        blocks.release(request)
    table = blocks.extend(range(requests), [context] * requests)
    for layer, content in enumerate(layers):
        blocks.write(layer, table, content)
    return [blocks.room(layer) for layer in range(len(layers))], table


def measure(shape, dtype, requests, context, threads, options):
    """GB/s of attention in one piece and in blocks of each size: turns of {what: GB/s}."""
    layers = in_one_piece(shape, dtype, requests, context, options.cache_mb)
    query = torch.randn(requests, shape[0], shape[2], generator=torch.Generator().manual_seed(1)).to(dtype)
    found = {"one piece": (layers, None)} | {f"blocks of {size}": in_blocks(layers, size) for size in options.blocks}
    out = torch.empty_like(query)
    num_bytes = sum(layer.num_bytes for layer in layers)
    with HostAttention(threads) as kernel:

        def attend(layers, table):
            for layer in layers:
                kernel(query, *layer, out=out, table=table)
            return out.clone()

        expected = attend(layers, None)
        assert all(torch.equal(attend(*one), expected) for one in found.values())
        return [
            {
                name: num_bytes / seconds(lambda one=one: attend(*one), threads, options.cpu_time) / GIGA
                for name, one in found.items()
            }
            for _ in range(options.repeats)
        ]


def summary(turns):
    """Quartiles of each: GB/s, and its share of one piece in the same turn."""
    return {
        name: {
            "gb_per_s": quartiles([turn[name] for turn in turns]),
            "of_one_piece": quartiles([turn[name] / turn["one piece"] for turn in turns]),
        }
        for name in turns[0]
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["mixtral-8x7b", "qwen3-30b-a3b"])
    parser.add_argument("--types", nargs="*", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 512, 4096])
    parser.add_argument("--blocks", type=int, nargs="*", default=[BLOCK_TOKENS], help="tokens of a block")
    parser.add_argument("--cache-mb", type=int, default=200, help="size of all layers, or of one that is larger")
    options = options_of(parser)
    begin(options, "one piece")
    print(f"{'shape':14} {'type':9} {'threads':>7} {'requests':>8} {'context':>7} {'':14} {'GB/s':>22} {'share':>20}")
    rows = []
    cases = itertools.product(options.shapes, options.types, options.threads, options.requests, options.contexts)
    for name, kind, threads, requests, context in cases:
        found = summary(measure(SHAPES[name], DTYPES[kind], requests, context, threads, options))
        case = {"shape": name, "type": kind, "threads": threads, "requests": requests, "context": context}
        rows.append(case | found)
        for what, numbers in found.items():
            shown = f"{spread(numbers['gb_per_s'], 1):>22} {spread(numbers['of_one_piece']):>20}"
            print(f"{name:14} {kind:9} {threads:7} {requests:8} {context:7} {what:14} {shown}", flush=True)
    keep(options, rows)


if __name__ == "__main__":
    main()
