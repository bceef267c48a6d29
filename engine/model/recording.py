"""What a run's tokens use of the routed experts, counted as the model's own router chooses them."""

import contextlib
import functools
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.model.anatomy import Anatomy
from engine.model.coroutine import GenerateCoroutine, current
from engine.model.experts import can_split
from sim.problem import Histogram, LayerHistogram, TokenCounts
from traces.errors import InputError


@contextlib.contextmanager
def recorded_routing(model: PreTrainedModel, anatomy: Anatomy, ends: Collection[int]) -> Iterator["RoutingRecord"]:
    """While entered, counts the experts that tokens of micro-batches use.

    A request is over with the first of `ends` that it generates. Raises InputError for a model whose experts are not
    told which tokens use them.
    """
    layers = [i for i, experts in enumerate(anatomy.experts) if experts]
    if not all(can_split(anatomy.experts[i], anatomy.num_experts) for i in layers):
        raise InputError(
            f"record_routing: {type(model).__name__} does not tell its experts which tokens use them: leave it out"
        )
    record = RoutingRecord(len(anatomy.layers), anatomy.num_experts, ends)
    with contextlib.ExitStack() as hooks:
        hooks.callback(model.get_input_embeddings().register_forward_pre_hook(record.begin).remove)
        for i in layers:
            count = functools.partial(record.count, i)
            hooks.callback(anatomy.experts[i][0].owner.register_forward_pre_hook(count).remove)
        yield record


class RoutingRecord:
    """Counts on the device that computes, which nobody waits for until they are asked for.

    What fills prompts up is not counted, nor what a request goes through the layers with after its end.
    """

    def __init__(self, num_layers: int, num_experts: int, ends: Collection[int]) -> None:
        self._num_experts, self._ends = num_experts, sorted(ends)
        self._top_k: list[int | None] = [None] * num_layers
        self._counts: dict[tuple[int, bool], torch.Tensor] = {}  # by layer and whether of decode
        self._passes: dict[int, tuple[GenerateCoroutine, torch.Tensor, torch.Tensor]] = {}

    def begin(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Token ids [request, token] are about to go through all layers."""
        micro_batch, ids = current(), args[0]
        if micro_batch is None or micro_batch.passes_layers:
            return
        known = self._passes.get(micro_batch.index)
        if known is None or known[0] is not micro_batch:
            padding = torch.tensor(micro_batch.padding, device=ids.device)
            real = torch.arange(ids.shape[1], device=ids.device) >= padding.unsqueeze(1)
            goes_on = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        else:
            goes_on = known[2] & ~torch.isin(ids[:, -1], torch.tensor(self._ends, device=ids.device))
            real = goes_on.unsqueeze(1)
        self._passes[micro_batch.index] = (micro_batch, real.flatten(), goes_on)

    def count(self, layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        """The experts of a layer are about to be told what each token uses: index [token, k]."""
        micro_batch, index = current(), args[1]
        if micro_batch is None:
            return
        self._top_k[layer] = index.shape[1]
        real = self._real(micro_batch, index).unsqueeze(1).expand_as(index)
        key = layer, micro_batch.step > 0
        if key not in self._counts:
            self._counts[key] = torch.zeros(self._num_experts, dtype=torch.int64, device=index.device)
        self._counts[key].scatter_add_(0, index.flatten().to(torch.int64), real.flatten().to(torch.int64))

    def _real(self, micro_batch: GenerateCoroutine, index: torch.Tensor) -> torch.Tensor:
        """Which tokens count: all of those that come from several micro-batches, as none of them has ended."""
        known = self._passes.get(micro_batch.index)
        if known is not None and known[0] is micro_batch:
            return known[1]
        return torch.ones(len(index), dtype=torch.bool, device=index.device)

    def histogram(self, model: str) -> Histogram:
        """What was counted."""
        return Histogram(model, tuple(self._layer(at, top_k) for at, top_k in enumerate(self._top_k)))

    def _layer(self, layer: int, top_k: int | None) -> LayerHistogram | None:
        if top_k is None:
            return None
        return LayerHistogram(top_k, self._phase(layer, top_k, False), self._phase(layer, top_k, True))

    def _phase(self, layer: int, top_k: int, decode: bool) -> TokenCounts:
        counts = self._counts.get((layer, decode))
        used = [0] * self._num_experts if counts is None else counts.tolist()
        return TokenCounts(sum(used) // top_k, tuple(used))
