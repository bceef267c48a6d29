"""A stream of requests, whose places are filled as they end, beside batch after batch, in one run by turns.

    python benchmarks/stream.py --repeats 5 --output stream.json

A random Mixtral-shaped model of about 200M parameters on an emulated device. Prompts and what requests generate are of
lognormal lengths; each ends by itself after its own number of tokens, of which nobody knows before: both ways may
generate `--most-tokens` for each. A prompt says in its first two tokens how long it is and how long its answer will be,
which a logits processor turns into the token that ends it. Both ways get the longest prompts first, so that little is
padded. `ratio` is tokens/s of the stream over those of the batches in the same repeat. Busy shares are of the whole
time; `occupancy` is how many of the places decode in a mean step.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_schedules import make_model
from transformers import LogitsProcessorList, PreTrainedModel

import engine
from engine.device import EmulatedDevice
from sim.problem import Policy
from sim.schedule import by_name
from traces.trace import Trace
from validation.campaign.streams import END, FIRST_TOKEN, PAD, EndsAsToldByPrompt

GIGA = 1e9
VOCABULARY = 4096


def make_ending_model(hidden_size: int) -> PreTrainedModel:
    """The same as of the benchmark of schedules, but that requests may end."""
    model = make_model(hidden_size)
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = PAD
    return model


def lognormal(mean: float, sigma: float, most: int, count: int, draws: np.random.Generator) -> list[int]:
    drawn = draws.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.rint(drawn), 2, most).astype(int).tolist()


def make_prompts(args: argparse.Namespace) -> list[list[int]]:
    draws = np.random.default_rng(1)
    lengths = lognormal(args.prompt_tokens, args.sigma, 4 * args.prompt_tokens, args.requests, draws)
    wanted = lognormal(args.mean_tokens, args.sigma, args.most_tokens, args.requests, draws)
    told = zip(lengths, wanted, strict=True)
    prompts = [
        [FIRST_TOKEN + length, FIRST_TOKEN + tokens, *draws.integers(FIRST_TOKEN, VOCABULARY, length - 2).tolist()]
        for length, tokens in told
    ]
    return prompts if args.order == "given" else sorted(prompts, key=len, reverse=True)


def options(args: argparse.Namespace) -> dict[str, Any]:
    size, count = args.micro_batch_size, args.num_micro_batches
    return {
        "schedule": args.schedule,
        "policy": Policy.usual(by_name(args.schedule), size * count, size),
        "max_new_tokens": args.most_tokens,
        "logits_processor": LogitsProcessorList([EndsAsToldByPrompt()]),
    }


def in_batches(model: PreTrainedModel, prompts: list[list[int]], args: argparse.Namespace) -> dict[str, float]:
    traces: list[Trace] = []
    with make_device(args) as device:
        stats = engine.run(
            model, prompts, device=device, on_batch=lambda batch: traces.append(batch.trace), **options(args)
        ).stats
    seconds = stats.prefill_s + stats.decode_s
    return {"tokens": stats.generated_tokens, "tokens_per_s": stats.tokens_per_s, **busy(traces, seconds)}


def as_stream(model: PreTrainedModel, prompts: list[list[int]], args: argparse.Namespace) -> dict[str, float]:
    with make_device(args) as device:
        stream = engine.stream(
            model,
            prompts,
            device=device,
            num_prompts=args.num_prompts,
            prefill_chunk=args.prefill_chunk,
            traced_steps=1 << 20,
            **options(args),
        )
        failed = [output.error for output in stream if output.error]
    assert not failed, failed[0]
    assert stream.stats is not None
    assert stream.trace is not None
    decoding = [counter.values for counter in stream.trace.counters if counter.name == "stream (requests)"]
    return {
        "tokens": stream.stats.generated_tokens,
        "tokens_per_s": stream.stats.tokens_per_s,
        "steps": stream.stats.num_steps,
        "occupancy": statistics.mean(one["decoding"] / one["places"] for one in decoding),
        **busy([stream.trace], stream.stats.total_s),
    }


def busy(traces: list[Trace], seconds: float) -> dict[str, float]:
    """The share of the time in which each lane works."""
    found: dict[str, float] = {}
    for trace in traces:
        for (lane, _), ns in trace.busy_ns().items():
            found[f"busy_{lane}"] = found.get(f"busy_{lane}", 0.0) + ns / GIGA / seconds
    return found


def make_device(args: argparse.Namespace) -> EmulatedDevice:
    link = args.h2d_gbs * GIGA
    return EmulatedDevice(link, link, 8 << 30, gpu_threads=args.gpu_threads, cpu_threads=args.cpu_threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="cgopipe")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--prompt-tokens", type=int, default=16, help="in the mean")
    parser.add_argument("--mean-tokens", type=float, default=7, help="that a request generates")
    parser.add_argument("--most-tokens", type=int, default=20, help="that a request may generate")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the logarithms of lengths")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--num-micro-batches", type=int, default=4)
    parser.add_argument("--num-prompts", type=int, default=1)
    parser.add_argument("--prefill-chunk", type=int, help="tokens of prompts in a micro-batch, what fills up included")
    parser.add_argument("--order", choices=["longest", "given"], default="longest", help="of the prompts")
    parser.add_argument("--h2d-gbs", type=float, default=2.0)
    parser.add_argument("--gpu-threads", type=int, default=1)
    parser.add_argument("--cpu-threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, prompts = make_ending_model(args.hidden_size), make_prompts(args)
    ways = {"batches": in_batches, "stream": as_stream}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for repeat in range(args.repeats):
        for name, way in ways.items():  # by turns, so that a slow spell of the machine hits both
            runs[name].append(way(model, prompts, args))
            print(repeat, name, {key: round(value, 3) for key, value in runs[name][-1].items()}, flush=True)
    pairs = zip(runs["stream"], runs["batches"], strict=True)
    ratios = [stream["tokens_per_s"] / batches["tokens_per_s"] for stream, batches in pairs]
    assert len({run["tokens"] for measured in runs.values() for run in measured}) == 1, "all generate the same"
    print(f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    if args.output:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        given = {name: value for name, value in vars(args).items() if name != "output"}
        found = {"origin": "emulated device", "given": given, **machine, "ratios": ratios, "runs": runs}
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
