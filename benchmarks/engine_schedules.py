"""Throughput of every schedule on the emulated device, and how close a decode step comes to its busiest lane.

    python benchmarks/engine_schedules.py --repeats 5 --output engine_schedules.json

A random Mixtral-shaped model of about 200M parameters, 6 micro-batches of 16 requests with 64-token prompts. Without
`--h2d-gbs`, the link is chosen so that streaming a layer takes about `--link-ratio` times as long as computing it,
measured on this machine. `bound` is the decode time over the busiest lane's work in the same window: 1 is perfect.
"""

import argparse
import json
import platform
import statistics
from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

import engine
from engine.device import EmulatedDevice
from engine.generation import RunResult
from sim.problem import Policy
from sim.schedule import by_name, registered
from traces.trace import Trace

GIGA = 1e9
PROMPT_TOKENS = 64


def make_model(hidden_size: int) -> PreTrainedModel:
    """A random Mixtral; 512 gives about 200M parameters."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=4096,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 7 // 2,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=8,
    )
    model = MixtralForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def window(trace: Trace) -> tuple[int, int]:
    """From the end of prefill to the end."""
    return max(span.end_ns for span in trace.spans if span.step == 0 and span.op == "Head"), trace.end_ns


def busy_ns(trace: Trace) -> dict[str, int]:
    """Each lane's work in decode."""
    start, end = window(trace)
    busy: dict[str, int] = {}
    for span in trace.spans:
        busy[span.lane] = busy.get(span.lane, 0) + max(0, min(span.end_ns, end) - max(span.start_ns, start))
    return busy


def generate(
    model: PreTrainedModel, schedule: str, args: argparse.Namespace, h2d_bytes_per_s: float | None, resident: float
) -> RunResult:
    """One run of a schedule."""
    count = args.micro_batch_size * args.num_micro_batches
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 4096, (count, PROMPT_TOKENS), generator=generator).tolist()
    policy = Policy.usual(by_name(schedule), count, args.micro_batch_size, experts_on_device=resident)
    with EmulatedDevice(h2d_bytes_per_s, h2d_bytes_per_s, 8 << 30, gpu_threads=1, cpu_threads=1) as device:
        return engine.run(model, prompts, schedule, policy, max_new_tokens=args.steps, device=device)


def matching_bandwidth(model: PreTrainedModel, args: argparse.Namespace) -> float:
    """The link on which a step's weights take `link_ratio` times the GPU lane's work, everything resident."""
    result = generate(model, "cgopipe", args, None, resident=1.0)
    gpu_s = busy_ns(result.trace)["GPU"] / GIGA / (args.steps - 1)
    streamed = sum(p.nbytes for name, p in model.named_parameters() if ".experts." in name)
    return streamed / (args.link_ratio * gpu_s)


def measure(model: PreTrainedModel, schedule: str, args: argparse.Namespace, h2d: float) -> dict[str, float]:
    result = generate(model, schedule, args, h2d, resident=0.0)
    start, end = window(result.trace)
    decoded = len(result.sequences) * (args.steps - 1)
    return {
        "decode_tokens_per_s": decoded / ((end - start) / GIGA),
        "tokens_per_s": result.stats.tokens_per_s,
        "bound": (end - start) / max(busy_ns(result.trace).values()),
        **{f"busy_{lane}_s": busy / GIGA for lane, busy in busy_ns(result.trace).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", default=",".join(registered()))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--num-micro-batches", type=int, default=6)
    parser.add_argument("--h2d-gbs", type=float)
    parser.add_argument("--link-ratio", type=float, default=2.0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model = make_model(args.hidden_size)
    h2d = args.h2d_gbs * GIGA if args.h2d_gbs else matching_bandwidth(model, args)
    print(f"link {h2d / GIGA:.2f} GB/s; emulated device on {platform.processor() or platform.machine()}")
    names = args.schedules.split(",")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.repeats):  # interleaved, so that a slow spell of the machine hits all alike
        for name in names:
            runs[name].append(measure(model, name, args, h2d))
    first = statistics.median(run["decode_tokens_per_s"] for run in runs[names[0]])
    print(f"{'schedule':12} {'decode tok/s':>12} {'min':>7} {'max':>7} {'ratio':>6} {'bound':>6} {'min':>6}")
    for name, measured in runs.items():
        rates = [run["decode_tokens_per_s"] for run in measured]
        bounds = [run["bound"] for run in measured]
        middle = statistics.median(rates)
        print(
            f"{name:12} {middle:12.1f} {min(rates):7.1f} {max(rates):7.1f} {middle / first:6.2f} "
            f"{statistics.median(bounds):6.3f} {min(bounds):6.3f}"
        )
    if args.output:
        setting = {**vars(args), "output": str(args.output), "h2d_bytes_per_s": h2d, "torch": torch.__version__}
        args.output.write_text(json.dumps({"setting": setting, "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
