"""What a setup asks of any program, in the numbers that programs take."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.cost import Setup
from sim.problem import Model, find_checkpoint
from sim.schedule import MemoryPart, Tier

STAYS = (
    MemoryPart.EMBEDDING_AND_HEAD,
    MemoryPart.NON_EXPERTS,
    MemoryPart.RESIDENT_EXPERTS,
    MemoryPart.FETCHED_EXPERTS,
    MemoryPart.KV_CACHE,
)
"""What of the device's memory is set aside before any request comes."""


@dataclass(frozen=True, slots=True)
class ServedSetup:
    """A setup as other programs see it."""

    setup: Setup
    checkpoint: str
    """Where its weights are: a Hub id, a folder or a file, as a user would give it."""

    @property
    def requests(self) -> int:
        """At once."""
        return self.setup.batch.num_requests

    @property
    def tokens_of_a_request(self) -> int:
        """At most, its prompt and what it generates."""
        return self.prompt_tokens_of_a_request + self.setup.problem.workload.gen_len

    @property
    def prompt_tokens_of_a_request(self) -> int:
        """At most."""
        return max(one.max_prompt_tokens for one in self.setup.batch.alike)

    @property
    def prompt_tokens(self) -> int:
        """Of the requests that go through prefill together."""
        return max(one.prompt_tokens for one in self.setup.batch.alike)

    @property
    def num_layers(self) -> int:
        return self.setup.problem.model.num_layers

    @property
    def whole_layers_on_host(self) -> list[int]:
        """Layers that the host runs whole."""
        return [layer for layer, split in enumerate(self.setup.placement.splits) if split.layer_on_host]

    @property
    def expert_layers(self) -> list[int]:
        """Layers that have routed experts."""
        return [layer for layer, one in enumerate(self.setup.problem.model.layers) if one.num_experts]

    @property
    def experts_on_host(self) -> list[int]:
        """Layers that the device runs, all but their routed experts, which the host computes."""
        splits = self.setup.placement.splits
        return [at for at in self.expert_layers if splits[at].on_host and not splits[at].layer_on_host]

    @property
    def resident_experts(self) -> Sequence[int]:
        """Of each layer with experts, how many are on the device."""
        splits = self.setup.placement.splits
        return [splits[layer].resident for layer in self.expert_layers]

    @property
    def cache_bits(self) -> float:
        return self.setup.policy.cache_bits(self.setup.problem.model)

    @property
    def expert_bits(self) -> float:
        return self.setup.placement.widths.experts

    @property
    def num_devices(self) -> int:
        return self.setup.problem.hardware.num_devices

    def share_of_device(self, digits: int, parts: Sequence[str] | None = None) -> float:
        """What the plan holds of a device's memory, or these parts of it, rounded up to so many digits."""
        held = self.setup.memory.tiers()[Tier.DEVICE]
        used = sum(size for part, size in held.items() if parts is None or part in parts)
        step: int = 10**digits
        return min(1.0, math.ceil(used * step / int(self.setup.problem.hardware.device_memory.capacity_bytes)) / step)


def checkpoint_of(model: str) -> str:
    """Where other programs find the weights of a model that a user named: of a preset, its Hub id."""
    path = Path(model)
    if path.name == "config.json":
        return str(path.parent)
    if model.lower() not in Model.presets():
        return model
    config = find_checkpoint(model).config
    found = re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", str(config.get("_source", "")))
    return found[1] if found else model
