"""Random models of real shapes: numbers made on the accelerator, where that is fast, and moved to the host."""

import contextlib
import itertools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from sim.problem import Model, find_checkpoint
from traces.files import read_toml

FAMILIES = Path(__file__).with_name("families.toml")

FILLERS = 4
"""Threads that fill parameters: one of them alone waits for the host to hand out its pages."""

WIDE = 0.2
"""The spread of a tiny model's weights: wide, so that greedy tokens vary."""

PAD = 0

_MAKE: Any = AutoModelForCausalLM.from_config


def full_config(preset: str, layers: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a preset with so many layers, and `sizes` in place of its own."""
    given = find_checkpoint(preset).config
    kept = {name: value for name, value in given.items() if not name.startswith("_") and "dtype" not in name}
    return {**kept, **sizes, "num_hidden_layers": layers}


def described_config(config: Mapping[str, Any], dtype: torch.dtype, name: str) -> Model:
    """The model of a configuration as the simulator sees it, without making it."""
    whole = json.loads(_auto_config(config).to_json_string(use_diff=False))
    return Model.of_config({**whole, "dtype": str(dtype).removeprefix("torch.")}, name, "the proof's configuration")


def random_model(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device, seed: int = 0) -> PreTrainedModel:
    """A random model in host memory, its numbers made on `device`. No end token: it generates all it is asked for."""
    with no_init_weights():
        model: PreTrainedModel = _MAKE(_auto_config(config), dtype=dtype)
    names, parameters = zip(*model.named_parameters(), strict=True)
    with ThreadPoolExecutor(FILLERS) as fillers:
        list(fillers.map(partial(_fill, device), itertools.count(seed), names, parameters))
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
    return _ready(model)


def tiny_model(family: str) -> PreTrainedModel:
    """A tiny random model of a family, in single precision."""
    tables = read_toml(FAMILIES)
    torch.manual_seed(0)
    config = {**tables["shared"], **tables[family], "eos_token_id": None}
    model: PreTrainedModel = _MAKE(AutoConfig.for_model(family, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, WIDE)
    return _ready(model)


def random_prompts(vocabulary: int, count: int, tokens: int, seed: int = 1) -> list[list[int]]:
    """Random token ids, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = torch.randint(1, vocabulary, (count, tokens), generator=generator).tolist()
    return rows


def _auto_config(config: Mapping[str, Any]) -> Any:
    fields = {name: value for name, value in config.items() if name != "model_type"}
    return AutoConfig.for_model(config["model_type"], **fields)


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def _fill(device: torch.device, seed: int, name: str, parameter: torch.nn.Parameter) -> None:
    """Weights so wide that activations keep their size from layer to layer; norms of one, biases of zero."""
    with torch.no_grad(), _own_stream(device):
        if parameter.dim() < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            return
        generator = torch.Generator(device).manual_seed(seed)
        made = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        parameter.copy_(made.normal_(0, parameter.shape[-1] ** -0.5, generator=generator))


def _own_stream(device: torch.device) -> Any:
    """Copies of several threads go side by side where each has a stream."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
