"""What a campaign runs: two random models, every schedule, several policies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from sim.problem import Policy
from sim.schedule import Schedule, by_name, registered


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
    policies: tuple[Mapping[str, Any], ...]
    """Policies of the paged schedule: each with `batch_size`, `micro_batch_size` and other fields."""
    others: tuple[tuple[int, int], ...]
    """(batch size, micro-batch size) of the schedules that cut their batch up, beside the usual one."""

    def cases(self) -> list[Case]:
        """Every run, model by model."""
        return [case for model in self.models for case in self._of_model(model)]

    def _of_model(self, model: str) -> list[Case]:
        usual, whole = (self.requests, self.micro_batch_size), (self.requests, self.requests)
        found = [
            self._case(model, name, *(whole if one.system.one_batch else usual)) for name, one in registered().items()
        ]
        cut_up = [name for name, one in registered().items() if not one.system.one_batch]
        found += [self._case(model, name, *sizes) for sizes in self.others for name in cut_up]
        for policy in self.policies:
            fields = dict(policy)
            sizes = (fields.pop("batch_size"), fields.pop("micro_batch_size"))
            found.append(self._case(model, "cgopipe", *sizes, fields))
        return list({case.name: case for case in found}.values())

    def _case(
        self, model: str, schedule: str, batch_size: int, micro_batch_size: int, fields: Mapping[str, Any] | None = None
    ) -> Case:
        return Case(model, schedule, batch_size, micro_batch_size, self.prompt_tokens, self.gen_len, fields or {})


def few_large_experts(hidden_size: int = 384, num_layers: int = 6) -> PreTrainedModel:
    """A random Mixtral: 2 of 8 experts a token."""
    torch.manual_seed(0)
    config = MixtralConfig(
        **SHARED,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 7 // 2,
        num_hidden_layers=num_layers,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    return _ready(MixtralForCausalLM(config))


def many_small_experts(hidden_size: int = 256, num_layers: int = 8) -> PreTrainedModel:
    """A random Qwen3-MoE: 4 of 32 experts a token."""
    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        **SHARED,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        moe_intermediate_size=hidden_size * 3 // 4,
        num_hidden_layers=num_layers,
        head_dim=hidden_size // 8,  # type: ignore[call-arg]
        num_experts=32,
        num_experts_per_tok=4,
    )
    return _ready(Qwen3MoeForCausalLM(config))


SHARED: dict[str, Any] = {"vocab_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2}
"""What the two models have in common."""


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    """No end token: every request generates all its tokens."""
    model.eval()  # type: ignore[no-untyped-call]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


STANDARD = CampaignGrid(
    models={"few-large-experts": few_large_experts, "many-small-experts": many_small_experts},
    requests=64,
    micro_batch_size=16,
    prompt_tokens=32,
    gen_len=12,
    policies=(
        {"batch_size": 64, "micro_batch_size": 16, "experts_on_device": 0.5},
        {"batch_size": 64, "micro_batch_size": 16, "attention": "gpu"},
        {"batch_size": 64, "micro_batch_size": 32},
        {"batch_size": 96, "micro_batch_size": 16},
        {"batch_size": 64, "micro_batch_size": 16, "pin_weights": True},
    ),
    others=((32, 8),),
)
"""30 runs."""
