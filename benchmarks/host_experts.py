"""Routed experts on the host against the speed of its memory: `python benchmarks/host_experts.py`.

A layer's experts are far larger than the caches, and each call takes others. For each number of tokens, experts of
every type, the library's own experts and a plain read take turns, with the same threads, so that what else the machine
does falls on all alike; shares are taken within a turn. What is read counts once for each expert that a token uses.
"""

import argparse
import contextlib
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from in_turns import GIGA, begin, keep, options_of, quartiles, seconds, spread
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from engine.calibration.measure.probes import MemoryReader
from engine.device import intra_op_threads
from engine.host import HostExperts, HostThreads

SHAPES = {  # module, hidden size, what lies between the matrices, experts, experts of a token
    "qwen3-30b-a3b": (Qwen3MoeExperts, 2048, 768, 128, 8),
    "gpt-oss-120b (12 of 128)": (GptOssExperts, 2880, 2880, 12, 4),
}
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8.5 bits": 8, "4.5 bits": 4}
GROUP = 32
SCALE = 0.001
READ_MB = 200
ROUTINGS = 8


@dataclass(frozen=True)
class RandomPacking:
    """Any numbers, all with one scale."""

    bits: int
    shape: tuple[int, int]

    def experts(self, count, generator):
        weights = self.shape[0] * self.shape[1]
        num_bytes = weights * self.bits // 8
        packed = torch.randint(
            0, 256, (count, num_bytes + 2 * weights // GROUP), dtype=torch.uint8, generator=generator
        )
        packed[:, num_bytes:].view(torch.float16).fill_(SCALE)
        return packed


def experts_of(shape, weights, threads):
    """What computes, the library's own module of the same weights if it has any, and the bytes of an expert."""
    kind, hidden, between, count, _ = shape
    config = SimpleNamespace(
        **dict.fromkeys(("num_experts", "num_local_experts"), count),
        **dict.fromkeys(("moe_intermediate_size", "intermediate_size"), between),
        hidden_size=hidden,
        hidden_act="silu",
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        _experts_implementation="grouped_mm",
    )
    with torch.device("meta"):
        module = kind(config)
    generator = torch.Generator().manual_seed(0)
    parameters, packings = {}, {}
    for name, parameter in list(module.named_parameters()):
        _, *sizes = parameter.shape
        if len(sizes) == 1:
            tensor = torch.zeros(parameter.shape)
        elif isinstance(weights, int):
            packings[name] = RandomPacking(weights, tuple(sizes))
            tensor = packings[name].experts(count, generator)
        else:
            tensor = torch.empty(parameter.shape, dtype=weights).normal_(0, SCALE, generator=generator)
        parameters[name] = tensor
        if not packings:
            setattr(module, name, torch.nn.Parameter(tensor.to(weights), requires_grad=False))
    num_bytes = sum(tensor[0].nbytes for name, tensor in parameters.items() if "bias" not in name)
    experts = HostExperts.of(module, parameters, range(count), threads, packings)
    return experts, None if packings else module, num_bytes


def calls_of(shape, tokens, weights):
    """Tokens and their experts, different ones each time."""
    _, hidden, _, count, top_k = shape
    dtype = torch.float32 if isinstance(weights, int) else weights
    generator = torch.Generator().manual_seed(tokens)
    for _ in range(ROUTINGS):
        index = torch.rand(tokens, count, generator=generator).topk(top_k).indices
        share = torch.full((tokens, top_k), 1 / top_k, dtype=dtype)
        yield torch.randn(tokens, hidden, generator=generator).to(dtype), index, share


def measure(shape, threads, options):
    """For each number of tokens, turns of {what: (GB/s, GB/s of the library's own experts)}."""
    with contextlib.ExitStack() as stack:
        host_threads = stack.enter_context(contextlib.closing(HostThreads(threads)))
        reader = stack.enter_context(MemoryReader(threads, READ_MB * 10**6))
        stack.enter_context(torch.inference_mode())
        made = {name: experts_of(shape, weights, host_threads) for name, weights in WEIGHTS.items()}
        for tokens in options.tokens:
            calls = {name: list(calls_of(shape, tokens, weights)) for name, weights in WEIGHTS.items()}
            for name, (experts, *_) in made.items():
                experts(*calls[name][0])
            turns = [turn(made, calls, number, reader, threads, options) for number in range(options.repeats)]
            yield tokens, turns


def turn(made, calls, number, reader, threads, options):
    found = {"read": READ_MB * 10**6 / seconds(reader.read, threads, options.cpu_time) / GIGA}
    for name, (experts, module, num_bytes) in made.items():
        call = calls[name][number % ROUTINGS]
        read = num_bytes * len(call[1].unique())
        found[name] = (
            read / seconds(lambda experts=experts, call=call: experts(*call), threads, options.cpu_time) / GIGA
        )
        spins = options.cpu_time and threads > 1  # torch's helpers do while they wait, and CPU time would count it
        if module is not None and number < options.library_repeats and not spins:
            with intra_op_threads(threads, 1):
                library_s = seconds(lambda module=module, call=call: module(*call), threads, options.cpu_time)
            found[f"{name} library"] = read / library_s / GIGA
    return found


def summary(turns):
    """Quartiles for each type: GB/s, the share of the read, and of the library's own experts in the same turn."""
    for name in WEIGHTS:
        own = f"{name} library"
        beside = [turn for turn in turns if own in turn]
        found = {
            "gb_per_s": quartiles([turn[name] for turn in turns]),
            "of_read": quartiles([turn[name] / turn["read"] for turn in turns]),
        }
        if len(beside) > 1:
            found["of_library"] = quartiles([turn[name] / turn[own] for turn in beside])
        yield name, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--library-repeats", type=int, default=3, help="turns that the library's experts take part in")
    options = options_of(parser)
    begin(options, "a plain read, and of the library's own experts,")
    print(f"{'shape':24} {'weights':9} {'threads':>7} {'tokens':>6} {'GB/s':>22} {'of read':>22} {'of library':>24}")
    rows = []
    for threads in options.threads:
        for name in options.shapes:
            for tokens, turns in measure(SHAPES[name], threads, options):
                read = quartiles([turn["read"] for turn in turns])
                for weights, found in summary(turns):
                    rows.append({"shape": name, "threads": threads, "tokens": tokens, "weights": weights, **found})
                    rows[-1]["read_gb_per_s"] = read
                    shown = [spread(found["gb_per_s"], 1), spread(found["of_read"])]
                    shown += [spread(found["of_library"], 1)] if "of_library" in found else ["-"]
                    print(
                        f"{name:24} {weights:9} {threads:7} {tokens:6} {shown[0]:>22} {shown[1]:>22} {shown[2]:>24}",
                        flush=True,
                    )
    keep(options, rows)


if __name__ == "__main__":
    main()
