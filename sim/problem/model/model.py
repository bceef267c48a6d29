"""The model as the simulator sees it: a tuple of layers between an embedding and a head.

All counts follow from the dimensions in a Hugging Face `config.json` (read by `config.py`), so a preset and a
user's own model go the same way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from sim.problem.checkpoint import Checkpoint, find_checkpoint
from sim.problem.model.attention import check_at_least
from sim.problem.model.config import model_fields
from sim.problem.model.layer import Layer
from sim.problem.model.modules import modules_of
from sim.problem.presets import MODELS
from sim.problem.widths import Module, Widths, check_numbers, packed_bytes, stored_widths
from traces.errors import InputError, error_prefix, shown

MOST_PARAMETERS = 10**15
"""The largest models have a few 10**12."""


@dataclass(frozen=True, slots=True)
class Model:
    """A Mixture-of-Experts language model.

    `widths` are those of its checkpoint; `activation_bits` is what it computes in. Layers that predict further tokens
    (MTP) and encoders of other modalities are not part of it. Raises InputError for an empty or dense model.
    """

    name: str
    vocab_size: int
    layers: tuple[Layer, ...] = field(compare=False)
    """Compared by which are alike, and each different one once."""
    tie_embeddings: bool = False
    widths: Widths = field(default_factory=Widths)
    activation_bits: float = 16.0
    final_norm_params: int = 0
    head_bias: bool = False
    mtp_layers: int = 0
    """Layers that predict further tokens (MTP): they are not run and not counted."""
    distinct_layers: tuple[Layer, ...] = field(init=False, repr=False)
    """Each different layer once, in order of first use."""
    layer_kinds: tuple[int, ...] = field(init=False, repr=False)
    """Per layer, its place in `distinct_layers`: equal kinds cost the same."""
    layer_counts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Of each distinct layer, how many the model has."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "vocab_size", "activation_bits")
        if not any(layer.num_experts for layer in self.layers):
            raise InputError(f"Model.layers of {shown(self.name)} hold no experts; it must be a Mixture of Experts")
        if len({layer.hidden_size for layer in self.layers}) > 1:
            raise InputError(f"Model.layers of {shown(self.name)} differ in hidden_size")
        kinds: dict[Layer, int] = {}
        object.__setattr__(self, "layer_kinds", tuple(kinds.setdefault(layer, len(kinds)) for layer in self.layers))
        object.__setattr__(self, "distinct_layers", tuple(kinds))
        object.__setattr__(self, "layer_counts", tuple(self.layer_kinds.count(kind) for kind in kinds.values()))
        if self.total_params > MOST_PARAMETERS:
            given = f"Model {shown(self.name)} has {self.total_params:.3g} parameters"
            raise InputError(f"{given}; at most {MOST_PARAMETERS:.0e} are handled")

    def __hash__(self) -> int:
        """Of little, because tables by model are asked often; layers have their say where two are compared."""
        return hash((self.name, self.widths, self.layer_kinds))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Read a preset by its name, a file or folder, or a repository of the Hub, as `find_checkpoint`.

        Where the tensors of the checkpoint are there, widths are read off them. Raises InputError.
        """
        return cls.of_checkpoint(find_checkpoint(name_or_path))

    @classmethod
    def of_checkpoint(cls, found: Checkpoint) -> Self:
        """The model of a checkpoint. Raises InputError where its tensors are not those that its configuration says."""
        model = cls.of_config(found.config, found.name, found.source)
        if not found.tensors:
            return model
        with error_prefix(f"{found.source}: "):
            if found.is_gguf:
                check_numbers(found.tensors, model.total_params, model.num_layers)
            return replace(model, widths=stored_widths(found.tensors, model.modules, model.num_layers, model.widths))

    @classmethod
    def of_config(cls, config: Mapping[str, Any], name: str, source: str) -> Self:
        """The model that the content of a `config.json` describes; `source` stands first in every InputError."""
        return cls(name, **model_fields(config, source))

    @staticmethod
    def presets() -> tuple[str, ...]:
        return MODELS.names()

    @property
    def modules(self) -> tuple[Module, ...]:
        """Its matrices, as quantisers see them."""
        return modules_of(self.layers, self.vocab_size, tied=self.tie_embeddings)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return self.layers[0].hidden_size

    @property
    def embedding_params(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def head_params(self) -> int:
        """What the head stores of its own: nothing where it is the embedding."""
        bias = self.vocab_size if self.head_bias else 0
        return bias + (0 if self.tie_embeddings else self.embedding_params)

    @property
    def _ends_params(self) -> int:
        return self.embedding_params + self.head_params + self.final_norm_params

    def over_layers(self, amount: Callable[[Layer], int]) -> int:
        """The sum over all layers of an amount that equal layers share."""
        return sum(count * amount(layer) for layer, count in zip(self.distinct_layers, self.layer_counts, strict=True))

    @property
    def total_params(self) -> int:
        return self._ends_params + self.over_layers(lambda layer: layer.total_params)

    @property
    def active_params(self) -> int:
        """Parameters that one token uses, the whole embedding counted, as model cards mostly do."""
        return self._ends_params + self.over_layers(lambda layer: layer.active_params)

    @property
    def num_experts(self) -> int:
        """Routed experts of a layer: of the layer that has most."""
        return max(layer.num_experts for layer in self.layers)

    @property
    def top_k(self) -> int:
        return max(layer.top_k for layer in self.layers)

    def experts_bytes(self, widths: Widths | None = None) -> int:
        """Routed experts of all layers, at these widths or at their native ones."""
        return self.over_layers(lambda layer: layer.experts_bytes((widths or self.widths).experts))

    def non_expert_bytes(self, widths: Widths | None = None) -> int:
        """All else that layers have."""
        return self.over_layers(lambda layer: layer.non_expert_bytes(widths or self.widths))

    def ends_bytes(self, widths: Widths | None = None) -> int:
        """Embedding, last norm and head."""
        head, norm = self.head_params, self.final_norm_params
        return (widths or self.widths).bytes_of(embedding=self.embedding_params, head=head, router=norm)

    def resident_bytes(self, widths: Widths | None = None) -> int:
        """Everything but routed experts, head and embedding included: what stays on the device in MoE-Lightning."""
        return self.non_expert_bytes(widths) + self.ends_bytes(widths)

    def kv_bytes_per_token(self, bits: float) -> int:
        """What the KV caches of all layers keep of one token, before any window drops it."""
        return self.over_layers(lambda layer: layer.kv_bytes_per_token(bits))

    def head_bytes(self, widths: Widths | None = None) -> int:
        """Weights that the head reads, shared with the embedding or not."""
        there = widths or self.widths
        return packed_bytes(self.embedding_params, there.embedding if self.tie_embeddings else there.head)

    def head_flops(self, tokens: float) -> float:
        return 2.0 * tokens * self.embedding_params

    def __str__(self) -> str:
        sparse = max(self.layers, key=lambda layer: layer.num_experts)
        shared = " + shared" if sparse.shared else ""
        layers = "layer" if self.mtp_layers == 1 else "layers"
        further = f", {self.mtp_layers} further {layers} (MTP) not run" if self.mtp_layers else ""
        widths = "" if self.widths == Widths() else f", weights: {self.widths}"
        return (
            f"{self.name}: {self.total_params / 1e9:.1f} B parameters, {self.active_params / 1e9:.1f} B active, "
            f"{self.num_layers} layers, {self.top_k} of {self.num_experts} experts{shared}{further}{widths}"
        )
