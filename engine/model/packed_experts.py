"""The packed routed experts of a layer, unpacked where they are computed: into room that all layers share.

Room for all experts of a layer keeps them for every micro-batch that uses the layer. Room for fewer takes as many at a
time, and what they make of their own (token, expert) pairs adds up.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from engine.model.coroutine import current
from engine.model.experts import IMPLEMENTATION, all_pairs, own_pairs, rows_are_known, with_experts
from engine.model.packing import PackedFormat

Packed = Mapping[str, torch.Tensor]
"""By the name of a parameter: experts as [experts, bytes]."""


class UnpackedRoom:
    """Device memory for unpacked experts, and which of which layer are in it."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory
        self._layer = -1
        self._held = set[int]()

    def missing(self, layer: int, wanted: Iterable[int]) -> list[int]:
        """Those of the wanted experts of a layer that must be unpacked; they count as held from now on."""
        if self._layer != layer:
            self._layer, self._held = layer, set()
        found = [expert for expert in wanted if expert not in self._held]
        self._held.update(found)
        return found


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """The experts of one layer. The first ones are `resident` on the device; the others are where they stream to.

    `streamed` gives these. `at_once` are unpacked by one call, and `in_room` of the layer's `num_experts` at a time.
    """

    layer: int
    module: nn.Module
    formats: Mapping[str, PackedFormat]
    num_experts: int
    resident: Packed
    streamed: Callable[[], Packed]
    room: UnpackedRoom
    in_room: int
    at_once: int

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """While entered, the module computes with unpacked experts."""
        original = self.module.forward

        def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, *_: Any) -> torch.Tensor:
            micro_batch = current()
            in_prefill = micro_batch is not None and micro_batch.step == 0
            streamed, known = self.streamed(), rows_are_known(hidden, in_prefill=in_prefill)
            if self.in_room == self.num_experts:
                missing = self.room.missing(self.layer, _used(index) if known else range(self.num_experts))
                self._unpack(streamed, missing, missing)
                with with_experts(self.module, self._parameters(self.num_experts), self.num_experts):
                    result: torch.Tensor = original(hidden, index, weights)
                return result
            if known:
                return self._by_known_rows(streamed, hidden, index, weights)
            if index.numel() <= self.num_experts:
                return self._by_pairs(streamed, hidden, index, weights)
            return self._by_experts(streamed, hidden, index, weights)

        self.module.forward = forward
        try:
            yield
        finally:
            del self.module.forward

    def _by_known_rows(
        self, streamed: Packed, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Only the experts that tokens use."""
        result = torch.zeros_like(hidden)
        for experts in _in_parts(_used(index), self.in_room):
            self._unpack(streamed, experts, range(len(experts)))
            place = torch.full((self.num_experts,), len(experts), device=index.device)
            place[experts] = torch.arange(len(experts), device=index.device)
            parameters = self._parameters(len(experts))
            result.add_(own_pairs(self.module, parameters, len(experts), hidden, place[index], weights))
        return result

    def _by_pairs(
        self, streamed: Packed, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """For each (token, expert) pair its expert, without a word to the host: pairs are fewer than experts."""
        result, (tokens, top_k) = torch.zeros_like(hidden), index.shape
        rows = torch.arange(tokens, device=index.device).repeat_interleave(top_k)
        pairs = (torch.split(one.reshape(-1), self.in_room) for one in (index, weights, rows))
        for experts, own_weights, own_rows in zip(*pairs, strict=True):
            for name, view in self._views(len(experts)).items():
                self.formats[name].unpack(self._selected(name, streamed, experts), view)
            own = torch.arange(len(experts), device=index.device).unsqueeze(-1), own_weights.unsqueeze(-1)
            with with_experts(self.module, self._parameters(len(experts)), len(experts)):
                made = ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](self.module, hidden[own_rows], *own)
            result.index_add_(0, own_rows, made)
        return result

    def _by_experts(
        self, streamed: Packed, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """All experts, whoever uses them, without a word to the host."""
        result = torch.zeros_like(hidden)
        for experts in _in_parts(range(self.num_experts), self.in_room):
            self._unpack(streamed, experts, range(len(experts)))
            of_these = (index - experts[0]) % self.num_experts  # those of other experts come behind the last
            parameters = self._parameters(len(experts))
            result.add_(all_pairs(self.module, parameters, len(experts), hidden, of_these, weights))
        return result

    def _unpack(self, streamed: Packed, experts: Sequence[int], places: Sequence[int]) -> None:
        """Unpacks experts into places of the room; what lies side by side, in one call."""
        for first, place, length in _runs(experts, places, self._num_resident, self.at_once):
            for name, view in self._views(place + length).items():
                here = first < self._num_resident
                packed, at = (self.resident, first) if here else (streamed, first - self._num_resident)
                self.formats[name].unpack(packed[name][at : at + length], view[place:])

    def _selected(self, name: str, streamed: Packed, experts: torch.Tensor) -> torch.Tensor:
        """Packed experts whose numbers only the device knows."""
        if not self._num_resident:
            return streamed[name][experts]
        if self._num_resident == self.num_experts:
            return self.resident[name][experts]
        here = experts.clamp(max=self._num_resident - 1)
        there = (experts - self._num_resident).clamp(min=0)
        is_resident = (experts < self._num_resident).unsqueeze(-1)
        return torch.where(is_resident, self.resident[name][here], streamed[name][there])

    @property
    def _num_resident(self) -> int:
        return next((len(tensor) for tensor in self.resident.values()), 0)

    def _views(self, length: int) -> dict[str, torch.Tensor]:
        """The first places of the room for each parameter; those of one parameter lie one behind the other."""
        views, start = {}, 0
        for name, form in self.formats.items():
            room = self.room.memory[start : start + length * form.unpacked_bytes]
            views[name] = room.view(form.dtype).view(length, *form.shape)
            start += self.in_room * form.unpacked_bytes
        return views

    def _parameters(self, length: int) -> dict[str, nn.Parameter]:
        return {name: nn.Parameter(view, requires_grad=False) for name, view in self._views(length).items()}


def _used(index: torch.Tensor) -> list[int]:
    """The experts that any token uses, in order; the host waits for the device to learn it."""
    return sorted(set(index.flatten().tolist()))


def _in_parts(things: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    return (things[first : first + most] for first in range(0, len(things), most))


def _runs(
    experts: Sequence[int], places: Sequence[int], num_resident: int, most: int
) -> Iterator[tuple[int, int, int]]:
    """(first expert, its place, how many): experts that lie side by side where they are and where they go."""
    first = 0
    for at in range(1, len(experts) + 1):
        goes_on = (
            at < len(experts)
            and at - first < most
            and experts[at] - experts[first] == places[at] - places[first] == at - first
            and experts[at] != num_resident
        )
        if not goes_on:
            yield experts[first], places[first], at - first
            first = at
