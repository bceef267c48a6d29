"""The proof: one schedule object through the engine and through JAX, and whether both say the same tokens."""

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.device import Callback, XlaDevice, measure_callback, open_device
from engine.generation import run
from engine.running.xla.generate import XlaModel, XlaResult
from sim.problem import Policy
from sim.schedule import Schedule
from traces.trace import Trace

SIZES: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
"""Of a random model: some megabytes a layer, so that pages are more than their overhead."""

EXPERTS: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {"num_local_experts": 8},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 256},
}

WIDE = 0.2
"""The spread of a random model's weights: wide, so that greedy tokens vary."""

LENGTHS = (24, 17, 24, 11, 24, 16)
"""Of prompts: uneven, and of few lengths when padded, each of which XLA compiles for."""


@dataclass(frozen=True, slots=True)
class OpTotal:
    """All tasks of one op on one lane in a run: what they moved, and how long the lane was at it."""

    op: str
    lane: str
    tasks: int
    bytes: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class JaxProof:
    """What came out. `first_run_s` compiles; `run_s` is the same batch once more, of which `result` tells.

    `differing` are the numbers of requests whose tokens are not the engine's in either run.
    """

    num_requests: int
    max_new_tokens: int
    dtype: str
    differing: tuple[int, ...]
    first_run_s: float
    run_s: float
    result: XlaResult
    callback: Callback
    allocator_peak_bytes: int | None

    @property
    def equal(self) -> bool:
        """Whether all tokens are the engine's."""
        return not self.differing

    @property
    def generated_tokens(self) -> int:
        return sum(map(len, self.result.sequences))

    @property
    def ops(self) -> list[OpTotal]:
        """By op and lane, in the order of their first tasks."""
        return _totals(self.result.trace)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, without the trace."""
        said = self.result.trace.metadata
        return {
            **{name: said[name] for name in ("origin", "device", "schedule", "model", "policy", "versions")},
            **{name: getattr(self, name) for name in ("num_requests", "max_new_tokens", "dtype", "generated_tokens")},
            "tokens_equal": self.equal,
            "differing_requests": list(self.differing),
            "first_run_s": self.first_run_s,
            "run_s": self.run_s,
            "peak_bytes": self.result.peak_bytes,
            "allocator_peak_bytes": self.allocator_peak_bytes,
            "temporary_bytes": self.result.temporary_bytes,
            "num_programs": self.result.num_programs,
            "ops": [asdict(one) for one in self.ops],
            "callback": {**asdict(self.callback), "holds_up": self.callback.holds_up},
        }


def prove(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    schedule: Schedule,
    policy: Policy,
    max_new_tokens: int,
    device: XlaDevice,
) -> JaxProof:
    """Generates with the engine on an emulated device, then twice with JAX on `device`. Raises InputError."""
    with closing(XlaModel(model, schedule, policy, device)) as placed:
        with open_device("emulated") as emulated:
            wanted = run(model, prompts, schedule, policy, None, max_new_tokens, emulated, do_sample=False).sequences
        started = time.perf_counter()
        first = placed.generate(prompts, max_new_tokens)
        between = time.perf_counter()
        second = placed.generate(prompts, max_new_tokens)
        ended = time.perf_counter()
    told = zip(wanted, first.sequences, second.sequences, strict=True)
    differing = tuple(number for number, (want, *got) in enumerate(told) if got != [want, want])
    dtype = str(model.dtype).removeprefix("torch.")
    times = between - started, ended - between
    peak = device.allocator_peak_bytes
    return JaxProof(len(prompts), max_new_tokens, dtype, differing, *times, second, measure_callback(device), peak)


def small_model(family: str) -> PreTrainedModel:
    """A small random model in single precision, the same each time. No token ends a sequence."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **EXPERTS[family], eos_token_id=None, pad_token_id=0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, WIDE)
    return model


def uneven_prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Token ids, the same each time."""
    drawn = random.Random(0)
    return [[drawn.randrange(1, vocabulary) for _ in range(LENGTHS[i % len(LENGTHS)])] for i in range(count)]


def _totals(trace: Trace) -> list[OpTotal]:
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for span in sorted(trace.spans, key=lambda span: span.id):
        found.setdefault((span.op, span.lane), []).append((span.bytes, span.duration_ns))
    return [
        OpTotal(op, lane, len(each), sum(count for count, _ in each), sum(ns for _, ns in each) / 1e9)
        for (op, lane), each in found.items()
    ]
