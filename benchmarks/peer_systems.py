"""Systems that generate for the same model and prompts, each as a user would run it, and the models.

Each is used in a process of its own: it opens the model once, then makes one run after the other. What is timed is a
whole call for all prompts, from their ids to the last new one. All systems that use torch have an allocator that keeps
freed memory, as the engine has, which makes plain `generate()` faster too.
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import engine
from engine.device import make_device
from engine.device.emulated import keep_freed_memory
from sim.problem import Policy

GIGA = 1e9
VOCABULARY = 4096
DEVICE_BYTES = 8 << 30

_BASE = {"vocab_size": VOCABULARY, "max_position_embeddings": 1024, "eos_token_id": None, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {
        **_BASE,
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        **_BASE,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
    "deepseek_v3": {
        **_BASE,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 256,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 32,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}
"""Few large experts; many small ones; attention on latent keys and values, with a layer that has no experts."""


def save_model(name: str, folder: Path) -> int:
    """A random model of this shape in 32 bits, saved; its number of parameters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **MODELS[name]), dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def load_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make_prompts(requests: int, prompt_tokens: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (requests, prompt_tokens), generator=generator).tolist()


@dataclass(frozen=True)
class Ran:
    """What a run generated, in how many seconds; what else is to be told of it."""

    tokens: list[list[int]]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


Run = Callable[[], Ran]


def in_plain_calls(model: PreTrainedModel, prompts: list[list[int]], args: argparse.Namespace) -> Run:
    ids = torch.tensor(prompts)

    def run() -> Ran:
        started = time.perf_counter()
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.steps, do_sample=False)
        seconds = time.perf_counter() - started
        return Ran(made[:, ids.shape[1] :].tolist(), seconds)

    return run


def plain(folder: Path, prompts: list[list[int]], args: argparse.Namespace) -> Run:
    """Transformers' `generate()`, the model in memory."""
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    return in_plain_calls(load_model(folder), prompts, args)


def cpu_offload(folder: Path, prompts: list[list[int]], args: argparse.Namespace) -> Run:
    """The same with accelerate's hooks, which bring each layer's weights: here within memory, without a link."""
    from accelerate import cpu_offload as offload

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    model = load_model(folder)
    offload(model, torch.device("cpu"))
    return in_plain_calls(model, prompts, args)


def disk_offload(folder: Path, prompts: list[list[int]], args: argparse.Namespace) -> Run:
    """The same from files, which are in the system's cache after the first run."""
    from accelerate import disk_offload as offload

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    model = load_model(folder)
    offload(model, folder / "offloaded", torch.device("cpu"))
    return in_plain_calls(model, prompts, args)


def llama_cpp(folder: Path, prompts: list[list[int]], args: argparse.Namespace, *, flash: bool = False) -> Run:
    """llama.cpp on the same weights, a KV cache of 32 bits too; all requests in a batch."""
    from llama_cpp_peer import open_llama_cpp

    decode = open_llama_cpp(folder, prompts, args.steps, args.threads, flash=flash)

    def run() -> Ran:
        started = time.perf_counter()
        tokens = decode()
        return Ran(tokens, time.perf_counter() - started)

    return run


def ours(folder: Path, prompts: list[list[int]], args: argparse.Namespace, policy: Policy, link: float | None) -> Run:
    """The engine on an emulated device, which has the cores that plain `generate()` has, link and host included."""
    torch.set_num_threads(1)  # the engine's lanes have threads of their own
    model = load_model(folder)
    options = {} if link is None else {"h2d_bytes_per_s": link, "d2h_bytes_per_s": link}
    device = make_device("emulated", memory_bytes=DEVICE_BYTES, **options)

    def run() -> Ran:
        started = time.perf_counter()
        result = engine.run(model, prompts, "cgopipe", policy, max_new_tokens=args.steps, device=device)
        whole_s = time.perf_counter() - started
        stats = result.stats
        moved = sum(span.bytes for span in result.trace.spans if span.lane == "H2D")
        used = {name: result.trace.metadata["device"][f"{name}_threads"] for name in ("gpu", "cpu", "staging")}
        facts = {"call_s": whole_s, "threads": used if link else {"gpu": used["gpu"]}}
        if link is not None:
            facts |= {"link_s": moved / link}
        return Ran(result.sequences, stats.prefill_s + stats.decode_s, facts)

    return run


def resident(folder: Path, prompts: list[list[int]], args: argparse.Namespace) -> Run:
    """Ours, with all weights and the KV cache on the device, one micro-batch."""
    count = len(prompts)
    return ours(
        folder, prompts, args, Policy(count, count, attention="gpu", experts_on_device=1.0, kv_on_device=1.0), None
    )


def streamed(folder: Path, prompts: list[list[int]], args: argparse.Namespace) -> Run:
    """Ours, with all routed experts on the host, which come over a link of `--h2d-gbs`, and attention there."""
    count = len(prompts)
    policy = Policy(count, count // args.num_micro_batches, attention="cpu", experts_on_device=0.0)
    return ours(folder, prompts, args, policy, args.h2d_gbs * GIGA)


SYSTEMS: dict[str, Callable[[Path, list[list[int]], argparse.Namespace], Run]] = {
    "plain": plain,
    "cpu_offload": cpu_offload,
    "disk_offload": disk_offload,
    "llama.cpp": llama_cpp,
    "llama.cpp flash": functools.partial(llama_cpp, flash=True),
    "ours resident": resident,
    "ours streamed": streamed,
}
