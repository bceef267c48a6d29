"""Where things are in a model: its decoder layers, and which parameters of a layer belong to routed experts."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.model.kvcache import windows_of
from traces.errors import InputError

NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")
"""What configurations call a layer's routed experts, and those of them that a token uses."""

OF_CACHE = ("k_proj", "v_proj")
"""Modules whose outputs most models keep, as they are, as keys and values."""

ATTENTION_NAMES = ("attn", "attention", "temporal_block")
MIXER = "mixer"
"""What a layer calls what it has of attention, a state or experts."""


class OwnedParameter(NamedTuple):
    """A parameter and the module whose attribute it is."""

    owner: nn.Module
    name: str
    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of a model that the engine handles apart."""

    path: str
    """Where the model has its list of decoder layers: `model.layers`."""
    layers: tuple[nn.Module, ...]
    experts: tuple[tuple[OwnedParameter, ...], ...]
    """Per layer, the parameters of its routed experts."""
    shared: tuple[bool, ...]
    """Per layer, whether it has shared experts beside them."""
    num_experts: int
    top_k: int
    """Experts that a token uses in a layer, or an upper bound of that."""
    kinds: tuple[int, ...]
    """Per layer, a number that it shares with the layers that compute alike."""
    kv_widths: tuple[tuple[int, int] | None, ...]
    """Per layer, numbers of a token's keys and of its values, where that can be seen of the layer."""
    windows: tuple[int | None, ...]
    """Per layer, how many tokens its cache keeps of a request; None: all."""

    @staticmethod
    def of(model: PreTrainedModel) -> "Anatomy":
        """Find the parts. Raises InputError if the model is no decoder-only Mixture of Experts."""
        if model.config.is_encoder_decoder or not model.can_generate():
            raise InputError(f"{type(model).__name__}: only decoder-only language models can be run")
        path, layers = _decoder_layers(model)
        num_experts = _number(model, NUM_EXPERTS)
        experts = tuple(tuple(_routed(layer, num_experts)) for layer in layers)
        if not any(experts):
            raise InputError(f"{type(model).__name__} holds no routed experts: it must be a Mixture of Experts")
        shared = tuple(bool(some) and _has_shared(layer) for layer, some in zip(layers, experts, strict=True))
        top_k = min(num_experts, _number(model, TOP_K) or num_experts)
        kinds, widths = tuple(_kinds(model, layers)), tuple(map(_kv_widths, layers))
        known = windows_of(model)
        windows = tuple(known.get(i) for i in range(len(layers)))
        return Anatomy(path, layers, experts, shared, num_experts, top_k, kinds, widths, windows)

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """Per layer, how many routed experts it has."""
        return tuple(self.num_experts if some else 0 for some in self.experts)

    def tensors(self, layers: Iterable[int]) -> set[int]:
        """All parameters and buffers of some layers, by identity."""
        modules = [self.layers[layer] for layer in layers]
        return {id(one) for module in modules for one in (*module.parameters(), *module.buffers())}

    def parameters(self, layer: int) -> tuple[OwnedParameter, ...]:
        """All parameters of a layer."""
        return tuple(
            OwnedParameter(module, name, tensor)
            for module in self.layers[layer].modules()
            for name, tensor in module.named_parameters(recurse=False)
        )


def _decoder_layers(model: PreTrainedModel) -> tuple[str, tuple[nn.Module, ...]]:
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for path, found in model.named_modules():
        kinds = {type(layer).__name__ for layer in found} if isinstance(found, nn.ModuleList) else set()
        if kinds and len(found) == count and any(kind.endswith(("DecoderLayer", "Block", "Layer")) for kind in kinds):
            return path, tuple(found)
    raise InputError(f"{type(model).__name__}: its {count} decoder layers were not found; the engine cannot run it")


def _kinds(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[int]:
    """By what the layers are made of, and by the kind of attention that the configuration gives them."""
    attention = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [None] * len(layers)
    known: dict[Hashable, int] = {}
    for layer, kind in zip(layers, attention, strict=False):
        types = tuple(type(owner).__name__ for owner in layer.modules())
        shapes = tuple((path, tensor.shape) for path, tensor in layer.named_parameters())
        yield known.setdefault((kind, types, shapes), len(known))


def _kv_widths(layer: nn.Module) -> tuple[int, int] | None:
    found = {path.rpartition(".")[2]: module for path, module in layer.named_modules()}
    keys, values = (getattr(found.get(name), "out_features", None) for name in OF_CACHE)
    return None if keys is None or values is None else (keys, values)


def _number(model: PreTrainedModel, names: Sequence[str]) -> int:
    """The largest number that the configuration has under one of these names; 0 without any."""
    config = model.config.get_text_config(decoder=True)
    holders = [config, *(getattr(config, name, None) for name in ("ffn_config", "moe"))]
    counts = [getattr(holder, name, None) for holder in holders if holder is not None for name in names]
    found = [count if isinstance(count, int) else max(count) for count in counts if count]
    return max(found, default=0)


def _routed(layer: nn.Module, num_experts: int) -> Iterator[OwnedParameter]:
    for path, module in layer.named_modules():
        parts = path.split(".")
        if any(name in part for part in parts for name in ATTENTION_NAMES) or any("shared" in part for part in parts):
            continue
        if MIXER in parts and "experts" not in parts:
            continue
        for name, tensor in module.named_parameters(recurse=False):
            fused = tensor.dim() == 3 and tensor.shape[0] == num_experts
            if "experts" in parts or fused or isinstance(module, nn.Embedding):
                yield OwnedParameter(module, name, tensor)


def _has_shared(layer: nn.Module) -> bool:
    return any("shared" in part for path, _ in layer.named_parameters() for part in path.split("."))


def end_tokens(model: PreTrainedModel, given: int | Sequence[int] | None = None) -> set[int]:
    """The tokens that end a sequence: those given, else the model's own."""
    ends = model.generation_config.eos_token_id if given is None else given
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
