"""What JAX must know of a model to compute its layers: the families that are written down, and their numbers."""

import math
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedModel

from engine.model import Anatomy
from traces.errors import InputError

FAMILIES = ("mixtral", "qwen3_moe")
ACTIVATION = "silu"


@dataclass(frozen=True, slots=True)
class XlaFamily:
    """The numbers of a model whose layers are computed here. `rotary_scaling` multiplies cosines and sines."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    num_experts: int
    top_k: int
    gates_sum_to_one: bool
    rotary_scaling: float

    @classmethod
    def of(cls, model: PreTrainedModel, anatomy: Anatomy) -> Self:
        """Raises InputError for a model that is not written down here."""
        config = model.config
        if config.model_type not in FAMILIES:
            raise InputError(
                f"jax: {config.model_type} is not among the families that are written in JAX: give a model of "
                f"{' or '.join(FAMILIES)}; the engine itself runs the others"
            )
        if config.hidden_act != ACTIVATION:
            raise InputError(f"jax: hidden_act {config.hidden_act!r} is not written in JAX: only {ACTIVATION} is")
        if windows := sorted({window for window in anatomy.windows if window is not None}):
            raise InputError(
                f"jax: a sliding window of {windows[0]} tokens is not written in JAX: give a model without"
            )
        return cls(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            norm_epsilon=config.rms_norm_eps,
            num_experts=anatomy.num_experts,
            top_k=anatomy.top_k,
            gates_sum_to_one=getattr(config, "norm_topk_prob", True),
            rotary_scaling=float(model.model.rotary_emb.attention_scaling),
        )

    @property
    def scale(self) -> float:
        """What scores of attention are multiplied with."""
        return 1 / math.sqrt(self.head_dim)
