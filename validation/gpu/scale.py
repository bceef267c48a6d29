"""How much a proof does: models, requests, repeats and sizes, by the name of a scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sim.schedule import registered
from traces.errors import InputError
from traces.files import read_toml
from validation.campaign import CampaignGrid

FILE = Path(__file__).with_name("scales.toml")

BY_IMPORTANCE = ("cgopipe", "hybrid", "n-cpu-moe", "cpu-experts", "expert-cache", "flexgen", "fastdecode", "zero")
"""The schedules in the order in which they are run: who runs out of time has the first ones."""

LOCKED = {"pin_weights": True}
"""All streamed weights page-locked in place."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model of a proof: a preset with fewer layers, and what of the device it may use.

    `resident_layers` of it fit there whole. `sizes` replace fields of the preset.
    """

    config: str
    layers: int
    resident_layers: int
    device_bytes: int
    sizes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WholeSpec:
    """The run of a whole model: so many layers of a model of the scale, in so much device memory."""

    model: str
    layers: int
    device_bytes: int
    steps: int


@dataclass(frozen=True, slots=True)
class Scale:
    """One scale. `seconds` guesses what one piece of work of a stage takes."""

    micro_batch_size: int
    num_micro_batches: int
    prompt_tokens: int
    gen_len: int
    repeats: int
    calibration_rounds: int
    quick_calibration: bool
    largest_copy_bytes: int
    families: tuple[str, ...]
    profiled_steps: int
    parity_model: str
    parity_layers: int
    parity_requests: int
    models: Mapping[str, ModelSpec]
    whole: WholeSpec
    seconds: Mapping[str, float]
    placements: Sequence[Mapping[str, Any]] = ()
    """Of few requests, as a campaign has them: schedules that leave experts where they are."""
    few_gen_len: int | None = None
    """Tokens that few requests generate."""

    @property
    def order(self) -> list[str]:
        """The names of all registered schedules: those that matter most first."""
        return sorted(registered(), key=lambda one: (*BY_IMPORTANCE, one).index(one))

    @property
    def requests(self) -> int:
        return self.micro_batch_size * self.num_micro_batches

    def grid(self, models: Mapping[str, Any] | None = None) -> CampaignGrid:
        """The runs of stage 4 as a campaign's grid: every schedule with the same requests, its weights locked."""
        sizes = {"requests": self.requests, "micro_batch_size": self.micro_batch_size}
        lengths = {"prompt_tokens": self.prompt_tokens, "gen_len": self.gen_len}
        named = dict.fromkeys(self.models) if models is None else models
        few = {"placements": self.placements, "few_gen_len": self.few_gen_len, "shared": LOCKED}
        return CampaignGrid(named, **sizes, **lengths, policies=(), others=(), **few)  # type: ignore[arg-type]


def scale_named(name: str) -> Scale:
    """A scale by its name. Raises InputError."""
    tables = read_toml(FILE)
    if name not in tables:
        raise InputError(f"--scale: {name!r} is not known; give one of {', '.join(tables)}")
    return msgspec.convert(tables[name], Scale)
