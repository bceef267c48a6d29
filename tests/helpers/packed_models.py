"""Tiny models whose experts can be packed, and what is left of them in 4 or 8 bits."""

import copy
import functools

import torch
from engine_models import FAMILIES, make
from transformers import PreTrainedModel

from engine.model import NUMBER_BITS, Anatomy, PackedFormat, can_split

COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
SIZES = {"intermediate_size": 64, "num_hidden_layers": 2}
NOT_PACKED = ("llama4_text", "jetmoe", "doge", "dbrx")
PACKED_FAMILIES = [family for family in FAMILIES if family not in NOT_PACKED]


def packable(family: str, num_experts: int = 4) -> PreTrainedModel:
    """A new model of the family with so many experts, whose inputs are whole groups."""
    sizes = {**SIZES, **{name: num_experts for name in FAMILIES[family] if name in COUNTS}}
    if "moe_intermediate_size" in FAMILIES[family]:
        sizes["moe_intermediate_size"] = 32
    layers = ("layer_types", "mlp_layer_types", "is_moe_layer")
    shorter = {name: FAMILIES[family][name][1:] for name in layers if name in FAMILIES[family]}
    return make.__wrapped__(family, **sizes, **shorter)


@functools.lru_cache(maxsize=8)
def unpacked(family: str, weight_bits: float, num_experts: int = 4) -> PreTrainedModel:
    """The same model with the weights that so many bits keep of its routed experts."""
    return what_is_left(packable(family, num_experts), weight_bits)


def what_is_left(model: PreTrainedModel, weight_bits: float) -> PreTrainedModel:
    """A copy of the model with the weights that so many bits keep of its routed experts."""
    model = copy.deepcopy(model)
    anatomy = Anatomy.of(model)
    for experts in filter(None, anatomy.experts):
        assert can_split(experts, anatomy.num_experts)
        for one in experts:
            shape, dtype = tuple(one.tensor.shape[1:]), one.tensor.dtype
            form = PackedFormat(NUMBER_BITS[weight_bits], shape, dtype, bool(one.owner.is_transposed))
            packed = torch.empty(len(one.tensor), form.num_bytes, dtype=torch.uint8)
            form.pack(one.tensor.detach(), packed)
            form.unpack(packed, one.tensor.data)
    return model


def same_weights(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two models have the same numbers everywhere."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)
