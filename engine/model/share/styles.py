"""How parameters are divided: as a family's own tensor-parallel plan says, or by the names that families share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from transformers import PreTrainedModel

from engine.model.anatomy import Anatomy


class Style(StrEnum):
    """What ranks have of a parameter. The values are those of the library's plans."""

    OUTPUTS = "colwise"
    INPUTS = "rowwise"
    GATED_OUTPUTS = "packed_colwise"  # gate and up stand one behind the other, and of each a part is kept
    GATED_INPUTS = "packed_rowwise"  # the same of what is stored the other way round
    WHOLE_OUTPUTS = "colwise_gather_output"  # all of them are needed by each rank
    WHOLE = "replicated"


OF_PLANS = {one.value: one for one in Style} | {
    "replicated_with_grad_allreduce": Style.WHOLE,
    "mla_kv_a_proj": Style.WHOLE,
    "rowwise_split_input": Style.INPUTS,
}
"""The library's words; those that are not here say nothing of parameters."""

OUT_PROJECTIONS = ("o_proj", "out_proj")
"""What families call the projection behind attention."""

BY_NAME = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj", "sinks"), Style.OUTPUTS),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), Style.OUTPUTS),
    **dict.fromkeys((*OUT_PROJECTIONS, "down_proj", "w2"), Style.INPUTS),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa", "q_a_layernorm", "kv_a_layernorm"), Style.WHOLE),
}
"""What the names say of which a family's plan says nothing."""


@dataclass(frozen=True, slots=True)
class Styles:
    """The styles of a model's parameters."""

    planned: Mapping[str, str]
    layers: str
    """What the plan calls the list of layers."""

    @staticmethod
    def of(model: PreTrainedModel, anatomy: Anatomy) -> "Styles":
        """By its family's plan, if there is one."""
        plan = getattr(model.config.get_text_config(decoder=True), "base_model_tp_plan", None) or {}
        return Styles(plan, anatomy.path.rpartition(".")[2])

    def __call__(self, path: str) -> Style | None:
        """Of a parameter by its path in a layer; None where neither plan nor name says anything."""
        return self.told(path) or BY_NAME.get(_parts(path)[-1])

    def told(self, path: str) -> Style | None:
        """What the plan says."""
        return OF_PLANS.get(self.planned.get(".".join((self.layers, "*", *_parts(path))), ""))


def _parts(path: str) -> list[str]:
    """Plans name modules, and parameters that belong to none of their own."""
    return re.sub(r"\.(weight|bias)$", "", path).split(".")
