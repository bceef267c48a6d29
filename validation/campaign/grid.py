"""What a campaign runs: two random models, every schedule, several policies."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

import engine
from engine.device import Device
from sim.problem import Policy
from sim.schedule import Schedule, by_name, registered
from traces.files import read_toml
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a model of the campaign, a schedule, and a policy for equal prompts."""

    model: str
    schedule: str
    batch_size: int
    micro_batch_size: int
    prompt_tokens: int
    gen_len: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the policy other than its sizes."""
    label: str = ""

    @property
    def name(self) -> str:
        """Names the run in files and tables."""
        given = [] if self.label else [f"{key}-{value}" for key, value in self.fields.items()]
        sizes = f"{self.micro_batch_size}x{self.policy.num_micro_batches}"
        return "_".join([self.model, self.label or self.schedule, sizes, *given])

    @property
    def chosen_schedule(self) -> Schedule:
        return by_name(self.schedule)

    @property
    def policy(self) -> Policy:
        return Policy.usual(self.chosen_schedule, self.batch_size, self.micro_batch_size, **self.fields)

    def run(self, model: PreTrainedModel, device: Device) -> Trace:
        """The trace of its one batch."""
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        run = (model, self.prompts(vocabulary), self.chosen_schedule, self.policy)
        return engine.run(*run, max_new_tokens=self.gen_len, device=device, do_sample=False, energy=True).trace

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Random token ids, the same each time."""
        generator = torch.Generator().manual_seed(self.batch_size)
        shape = (self.batch_size, self.prompt_tokens)
        rows: list[list[int]] = torch.randint(0, vocabulary, shape, generator=generator).tolist()
        return rows


@dataclass(frozen=True, slots=True)
class CampaignGrid:
    """The models, and what is run of each. `requests` is the batch that schedules are ranked with, and planned for."""

    models: Mapping[str, Callable[[], PreTrainedModel]]
    requests: int
    micro_batch_size: int
    prompt_tokens: int
    gen_len: int
    policies: Sequence[Mapping[str, Any]]
    """Policies of the paged schedule: each with `batch_size`, `micro_batch_size` and other fields."""
    others: Sequence[Mapping[str, int]]
    """`batch_size` and `micro_batch_size` of the schedules that cut their batch up, beside the usual one."""
    placements: Sequence[Mapping[str, Any]] = ()
    """Of few requests: each with `schedule`, `batch_sizes` and other fields; one micro-batch if they give no size."""
    few_gen_len: int | None = None
    """Tokens that few requests generate, if not as many as all others."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every policy has."""

    def cases(self) -> list[Case]:
        """Every run, model by model."""
        return [case for model in self.models for case in self._of_model(model)]

    def usual_cases(self, model: str) -> list[Case]:
        """Every schedule with the same requests."""
        sizes = {True: self.requests, False: self.micro_batch_size}
        return [
            self._case(model, name, self.requests, sizes[one.system.one_batch]) for name, one in registered().items()
        ]

    @property
    def small_batches(self) -> list[int]:
        """Few requests, with which schedules are ranked and planned for, too."""
        return sorted({size for one in self.placements for size in one["batch_sizes"]})

    def gen_len_of(self, requests: int) -> int:
        """Tokens that each of so many requests generates."""
        few = requests != self.requests and requests in self.small_batches
        return self.few_gen_len or self.gen_len if few else self.gen_len

    def cases_of(self, model: str, requests: int) -> list[Case]:
        """Those with so few requests."""
        return [case for case in self._placed(model) if case.batch_size == requests]

    def _placed(self, model: str) -> Iterator[Case]:
        for one in self.placements:
            fields = dict(one)
            schedule, sizes, own = (fields.pop(name, None) for name in ("schedule", "batch_sizes", "micro_batch_size"))
            for size in sizes:
                yield self._case(model, schedule, size, own or size, **fields)

    def _of_model(self, model: str) -> list[Case]:
        cut_up = [name for name, one in registered().items() if not one.system.one_batch]
        others = [*self._placed(model), *(self._case(model, name, **sizes) for sizes in self.others for name in cut_up)]
        policies = [self._case(model, "cgopipe", **policy) for policy in self.policies]
        return list({case.name: case for case in (*self.usual_cases(model), *policies, *others)}.values())

    def _case(self, model: str, schedule: str, batch_size: int, micro_batch_size: int, **fields: Any) -> Case:
        whole, gen_len = {**self.shared, **fields}, self.gen_len_of(batch_size)
        return Case(model, schedule, batch_size, micro_batch_size, self.prompt_tokens, gen_len, whole)


def few_large_experts(hidden_size: int = 384, num_layers: int = 6) -> PreTrainedModel:
    """A random Mixtral: 2 of 8 experts a token."""
    experts = {"intermediate_size": hidden_size * 7 // 2, "num_local_experts": 8, "num_experts_per_tok": 2}
    return _random(0, MixtralConfig, MixtralForCausalLM, hidden_size, num_layers, **experts)


def many_small_experts(hidden_size: int = 256, num_layers: int = 8) -> PreTrainedModel:
    """A random Qwen3-MoE: 4 of 32 experts a token."""
    sizes = {"intermediate_size": 2 * hidden_size, "head_dim": hidden_size // 8}
    experts = {"moe_intermediate_size": hidden_size * 3 // 4, "num_experts": 32, "num_experts_per_tok": 4}
    return _random(1, Qwen3MoeConfig, Qwen3MoeForCausalLM, hidden_size, num_layers, **sizes, **experts)


SHARED: dict[str, Any] = {"vocab_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2}
"""What the two models have in common."""


def _random(seed: int, config: Any, make: Any, hidden_size: int, num_layers: int, **more: int) -> PreTrainedModel:
    """No end token: every request generates all its tokens."""
    torch.manual_seed(seed)
    model: PreTrainedModel = make(config(**SHARED, hidden_size=hidden_size, num_hidden_layers=num_layers, **more))
    model.eval()  # type: ignore[no-untyped-call]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


STANDARD = CampaignGrid(
    {"few-large-experts": few_large_experts, "many-small-experts": many_small_experts},
    **read_toml(Path(__file__).with_name("standard.toml")),
)
"""80 runs, more than half of them of 16 requests or fewer."""
