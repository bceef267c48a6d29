"""Decode of a model whose experts do not fit the device: computed where they live, beside all other ways.

    python benchmarks/split_experts.py --repeats 5 --output split_experts.json

A random model in the shape of Qwen3-MoE with about 700M parameters on an emulated device, 1, 4 and 16 requests. The
machine is calibrated first; then the simulator tells for each schedule which policies of a small grid fit and how fast
each decodes. Of the six schedules that move whole layers, those that it expects within `--close` of their best are run
once, and the fastest takes part in the repeats; so it is with up to `--tries` policies of each other schedule. All take
turns, so that a slow time of the machine hits all alike. accelerate's `cpu_offload` and the model's own `generate()`
compute on all cores of the host, without an emulated link.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

import engine
from engine.calibration import calibrate, described
from engine.device import EmulatedDevice
from sim.cost import Setup
from sim.problem import Hardware, Policy, Problem, Workload, make_batch
from sim.schedule import Schedule, by_name, registered
from sim.simulation import predict
from traces.errors import InputError
from traces.trace import Trace

GIGA = 1e9
VOCABULARY = 4096
WHOLE_LAYERS = ("cgopipe", "fastdecode", "flexgen-c", "flexgen", "zero", "accelerate")
SPLIT_EXPERTS = ("hybrid", "n-cpu-moe", "cpu-experts", "expert-cache")
SHARES = (0.0, 0.125, 0.25, 0.375)
"""Shares of the experts on the device that the grids try: more do not fit."""


def make_model(num_layers: int, num_experts: int) -> PreTrainedModel:
    """A random Qwen3-MoE; 18 layers of 128 experts have about 700M parameters."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        moe_intermediate_size=192,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=num_experts,
        num_experts_per_tok=8,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def policies(schedule: Schedule, requests: int, num_layers: int) -> Iterator[Policy]:
    """The small grid: shares of experts in each place that the schedule has, and micro-batches."""
    system = schedule.system
    sizes = {requests, -(-requests // 2)} if not system.one_batch else {requests}
    for size, attention in itertools.product(sizes, system.attention):
        for kv_on_device in {float(system.kv_on_device), float(attention == "gpu")}:
            for more in _places(schedule, num_layers, size < requests):
                with suppress(InputError):
                    fields = {"attention": attention, "kv_on_device": kv_on_device, **more}
                    policy = Policy.usual(schedule, requests, size, **fields)
                    policy.check_places(schedule)
                    yield policy


def _places(schedule: Schedule, num_layers: int, several: bool) -> Iterator[dict[str, Any]]:
    """Where experts are, and where those of the host are computed in prefill."""
    system = schedule.system
    if schedule.name == "hybrid":
        placed = [*_split(several), *_by_layers(num_layers)]
    elif system.splits_experts and not (system.whole_layers or system.caches_experts):
        placed = [{"experts_on_device": share, "deal_experts": True} for share in SHARES]
    else:
        placed = [{"experts_on_device": share, "pin_weights": system.pins_weights} for share in SHARES]
    for one, place in itertools.product(placed, system.prefill_experts):
        yield {**one, "prefill_experts": place if system.splits_experts else None}


def _split(several: bool) -> Iterator[dict[str, Any]]:
    """Each layer's experts in several places."""
    for on_device, part, groups in itertools.product(SHARES, (1.0, 0.75), (1, 2) if several else (None,)):
        left = 1 - on_device
        usual = {"experts_on_device": on_device, "groups": groups, "deal_experts": True, "experts_on_host": left * part}
        yield {**usual, "pin_weights": True}
        if part < 1:
            yield {**usual, "experts_fetched": left * (1 - part)}


def _by_layers(num_layers: int) -> Iterator[dict[str, Any]]:
    """All of some layers' on the host, the others' on the device."""
    for share in SHARES[1:]:
        yield {"experts_on_device": 1.0, "host_layers": (0, num_layers - int(num_layers * share)), "groups": 1}


def best_policies(
    model: PreTrainedModel, hardware: Hardware, name: str, requests: int, args: argparse.Namespace
) -> list[tuple[float, Policy]]:
    """Of the grid, what the simulator expects to decode within `--close` of the fastest, with the tokens per second.

    Of policies that differ in prefill alone, one.
    """
    schedule = by_name(name)
    workload = Workload("requests", (args.prompt_tokens,) * requests, args.steps)
    problem = Problem(described(model), hardware, workload)
    found: list[tuple[float, Policy]] = []
    for policy in policies(schedule, requests, args.layers):
        with suppress(InputError):
            setup = Setup(problem, schedule, policy, make_batch(workload, requests, policy.micro_batch_size))
            if not setup.shortages:
                found.append((requests / predict(setup).token_s, policy))
    found.sort(key=lambda one: -one[0])
    alike = {replace(policy, prefill_experts=None): (rate, policy) for rate, policy in reversed(found)}
    return [one for one in found if one[0] >= args.close * found[0][0] and one in alike.values()]


def prompts(requests: int, args: argparse.Namespace) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    rows: list[list[int]] = torch.randint(3, VOCABULARY, (requests, args.prompt_tokens), generator=generator).tolist()
    return rows


def decode_rate(trace: Trace, requests: int) -> float:
    """Tokens per second from the second decode step on: the first one still makes what is kept for the others."""
    begin = max(span.end_ns for span in trace.spans if span.step == 1 and span.op == "Head")
    steps = max(span.step for span in trace.spans) - 1
    return requests * steps / ((trace.end_ns - begin) / GIGA)


def by_engine(
    model: PreTrainedModel, name: str, policy: Policy, requests: int, args: argparse.Namespace
) -> Callable[[], float]:
    def run() -> float:
        with make_device(args) as device:
            chosen = prompts(requests, args), by_name(name), policy
            trace = engine.run(model, *chosen, max_new_tokens=args.steps, device=device, do_sample=False).trace
        return decode_rate(trace, requests)

    return run


class Clock(LogitsProcessor):
    """Notes when the model has computed each token."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.times_s.append(time.perf_counter())
        return scores


def by_generate(
    model: PreTrainedModel, requests: int, args: argparse.Namespace, *, offloaded: bool
) -> Callable[[], float]:
    """The model's own generate(), with accelerate's hooks or without."""

    def run() -> float:
        clock = Clock()
        if offloaded:
            from accelerate import cpu_offload

            cpu_offload(model, execution_device=torch.device("cpu"))
        try:
            inputs = torch.tensor(prompts(requests, args))
            with torch.inference_mode():
                model.generate(  # type: ignore[operator]
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=args.steps,
                    do_sample=False,
                    logits_processor=LogitsProcessorList([clock]),
                )
        finally:
            if offloaded:
                from accelerate.hooks import remove_hook_from_submodules

                remove_hook_from_submodules(model)
        return requests * (len(clock.times_s) - 2) / (clock.times_s[-1] - clock.times_s[1])

    return run


def make_device(args: argparse.Namespace) -> EmulatedDevice:
    rate = args.link_gbs * GIGA
    return EmulatedDevice(rate, rate, round(args.device_memory_gb * GIGA))


def contestants(
    model: PreTrainedModel, hardware: Hardware, requests: int, args: argparse.Namespace
) -> tuple[dict[str, Callable[[], float]], list[dict[str, Any]]]:
    """What is run in turn, and all policies that were tried, with what the simulator expects of them."""
    known = {name: best_policies(model, hardware, name, requests, args) for name in (*WHOLE_LAYERS, *SPLIT_EXPERTS)}
    most = max(known[name][0][0] for name in WHOLE_LAYERS if known[name])
    tried = {
        (name, policy): (expected, by_engine(model, name, policy, requests, args)())
        for name, found in known.items()
        for expected, policy in (found[: args.tries] if name in SPLIT_EXPERTS else found[:1])
        if name in SPLIT_EXPERTS or expected >= args.close * most
    }
    runs = dict[str, Callable[[], float]]()
    for label, names in {"best of the six": WHOLE_LAYERS, **{name: (name,) for name in SPLIT_EXPERTS}}.items():
        mine = [one for one in tried if one[0] in names]
        if mine:
            name, policy = max(mine, key=lambda one: tried[one][1])
            runs[f"{label}: {name}" if label != name else name] = by_engine(model, name, policy, requests, args)
    runs["accelerate cpu_offload"] = by_generate(model, requests, args, offloaded=True)
    runs["generate()"] = by_generate(model, requests, args, offloaded=False)
    told = [
        {"schedule": name, "policy": policy.to_dict(), "expected": expected, "tried": rate}
        for (name, policy), (expected, rate) in tried.items()
    ]
    return runs, told


def show(requests: int, runs: dict[str, list[float]]) -> None:
    """A table of one number of requests, and the two ratios that are asked for."""
    middle = {name: statistics.median(rates) for name, rates in runs.items()}
    print(f"\n{requests} requests: {'decode tok/s':>27} {'min':>8} {'max':>8}")
    for name, rates in runs.items():
        print(f"  {name:26} {middle[name]:10.1f} {min(rates):8.1f} {max(rates):8.1f}")
    six = next(rate for name, rate in middle.items() if name.startswith("best of the six"))
    rival = max(middle["n-cpu-moe"], middle["cpu-experts"])
    print(f"  hybrid is {middle['hybrid'] / six:.2f} x the best of the six, {middle['hybrid'] / rival:.2f} x ", end="")
    print("the better of n-cpu-moe and cpu-experts", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--device-memory-gb", type=float, default=1.0)
    parser.add_argument("--link-gbs", type=float, default=1.0)
    parser.add_argument("--close", type=float, default=0.8, help="share of the best expected rate that is tried, too")
    parser.add_argument("--tries", type=int, default=4, help="the most policies that are tried of a schedule")
    parser.add_argument("--machine", type=Path, help="a calibrated machine, instead of a calibration")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    assert set(WHOLE_LAYERS) | set(SPLIT_EXPERTS) <= set(registered())
    model = make_model(args.layers, args.experts)
    if args.machine is not None:
        hardware = Hardware.load(args.machine)
    else:
        with make_device(args) as device:
            hardware = calibrate(model, device, "here", quick=True).hardware
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.0f}M parameters; load {os.getloadavg()[0]:.1f}; {hardware.description}")
    setting = {name: value for name, value in vars(args).items() if name not in ("output", "machine")}
    setting |= {"torch": torch.__version__, "machine": hardware.description, "python": platform.python_version()}
    results: dict[str, Any] = {}
    for requests in args.requests:
        kept, told = contestants(model, hardware, requests, args)
        runs: dict[str, list[float]] = {name: [] for name in kept}
        for _ in range(args.repeats):
            for name, run in kept.items():
                runs[name].append(run())
        show(requests, runs)
        results[str(requests)] = {"decode_tokens_per_s": runs, "tried": told, "load_average": os.getloadavg()[0]}
        if args.output:
            args.output.write_text(
                json.dumps({"setting": setting, "results": results}, indent=1) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()
