"""A model's weights for XLA: what stays is on the device, what streams lies on the host in pages.

The pages are in XLA's `pinned_host` memory or, where a schedule stages them, in plain memory. The model in PyTorch
stays as it is; what is placed here are copies.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import PreTrainedModel

from engine.device import XlaDevice
from engine.memory import StreamedLayer, streamed_layers
from engine.model import Anatomy
from engine.running.xla.host_cache import Numbers
from engine.running.xla.model import LayerLayout, ParameterPiece
from sim.problem import Policy
from sim.schedule import MemoryPart, PipelineShape, Schedule, Tier

IN_DECODE = 1
"""A step: schedules that leave experts on the host alone cut layers otherwise in prefill."""

Page: TypeAlias = "jax.Array | Numbers"
"""In page-locked memory of XLA's, or in pageable memory of NumPy's."""


class XlaLayer(NamedTuple):
    """One layer: where its parameters are, those on the device, and its pages on the host."""

    layout: LayerLayout
    resident: dict[str, jax.Array]
    pages: tuple[Page, ...]


class XlaWeights:
    """All weights of a model, placed by a policy. Raises InputError where the engine could not place them so."""

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        schedule: Schedule,
        policy: Policy,
        shape: PipelineShape,
        device: XlaDevice,
    ) -> None:
        self._at_end = contextlib.ExitStack()
        self._device, self.num_pages, self._pinned = device, shape.num_pages, shape.weights_pinned
        orders = [range(count) for count in anatomy.expert_counts]
        streamed = streamed_layers(model, anatomy, policy, schedule, [None] * len(orders), orders)
        self.layers = [self._layer(anatomy, i, one) for i, one in enumerate(streamed)]
        self.streamed_bytes = [sum(page.nbytes for page in layer.pages) for layer in self.layers]
        base = model.model
        self.table = self._resident(MemoryPart.EMBEDDING_AND_HEAD, base.embed_tokens.weight)
        tied = model.lm_head.weight is base.embed_tokens.weight
        self.head = self.table if tied else self._resident(MemoryPart.EMBEDDING_AND_HEAD, model.lm_head.weight)
        self.norm = self._resident(MemoryPart.NON_EXPERTS, base.norm.weight)
        self.inverse_frequencies = self._resident(MemoryPart.NON_EXPERTS, base.rotary_emb.inv_freq)

    def close(self) -> None:
        """Gives back all memory."""
        self._at_end.close()

    def _layer(self, anatomy: Anatomy, index: int, streamed: StreamedLayer | None) -> XlaLayer:
        names = {id(tensor): name for name, tensor in anatomy.layers[index].named_parameters()}
        experts = {id(one.tensor) for one in anatomy.experts[index]}
        moved = {} if streamed is None else {names[id(piece.parameter.tensor)]: piece for piece in streamed.pieces}
        away = {expert for piece in moved.values() for expert in piece.experts or ()}
        rows = tuple(expert for expert in range(anatomy.expert_counts[index]) if expert not in away)
        resident: dict[str, jax.Array] = {}
        stay: tuple[int, ...] = ()
        for name, tensor in anatomy.layers[index].named_parameters():
            routed = id(tensor) in experts
            if name in moved and moved[name].experts is None:
                continue
            if routed:
                stay = rows
            part = MemoryPart.RESIDENT_EXPERTS if routed else MemoryPart.NON_EXPERTS
            resident[name] = self._resident(part, tensor[list(rows)] if routed else tensor)
        if streamed is None:
            return XlaLayer(LayerLayout((), (), stay), resident, ())
        size = next(iter(moved.values())).dtype.itemsize
        pieces = tuple(
            ParameterPiece(name, one.experts, tuple(one.shape), one.start // size) for name, one in moved.items()
        )
        cuts = [streamed.page(IN_DECODE, page, self.num_pages) for page in range(self.num_pages)]
        layout = LayerLayout(pieces, tuple((start // size, stop // size) for start, stop in cuts), stay)
        return XlaLayer(layout, resident, tuple(self._pages(streamed, layout)))

    def _pages(self, streamed: StreamedLayer, layout: LayerLayout) -> Sequence[Page]:
        first = streamed.pieces[0].parameter.tensor
        flat = np.zeros(streamed.decode_bytes // first.itemsize, as_numpy(first).dtype)
        for piece, placed in zip(streamed.pieces, layout.pieces, strict=True):
            rows = as_numpy(piece.parameter.tensor)
            content = rows if piece.experts is None else rows[list(piece.experts)]
            flat[placed.start : placed.start + content.size] = content.ravel()
        pages, part = [flat[start:stop] for start, stop in layout.cuts], MemoryPart.STREAMED_WEIGHTS
        if self._pinned:
            return [self._placed(part, page, Tier.PINNED) for page in pages]
        self._at_end.enter_context(self._device.host.holding(part, flat.nbytes))
        return pages

    def _resident(self, part: str, tensor: torch.Tensor) -> jax.Array:
        return self._placed(part, as_numpy(tensor), Tier.DEVICE)

    def _placed(self, part: str, content: Numbers, tier: Tier) -> jax.Array:
        ledger = self._device.ledger_of(tier)
        ledger.charge(part, content.nbytes)
        array = self._device.put(content, tier)
        self._at_end.callback(array.delete)
        self._at_end.callback(ledger.refund, part, content.nbytes)
        return array


def as_numpy(tensor: torch.Tensor) -> Numbers:
    """The numbers of a tensor in host memory, also of a type that NumPy has not of itself."""
    plain = tensor.detach().contiguous()
    if plain.dtype is not torch.bfloat16:
        return plain.numpy()
    shared: np.ndarray[Any, Any] = plain.view(torch.int16).numpy()
    return shared.view(jnp.bfloat16)
