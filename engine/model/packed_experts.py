"""The packed routed experts of a layer, unpacked where they are computed: into room that all layers share.

Room for all experts of a layer keeps them for everyone who uses the layer. Room for fewer takes as many at a time, and
what they make of their own (token, expert) pairs adds up.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from engine.model.experts import (
    IMPLEMENTATION,
    ExpertPart,
    PartCode,
    PlacedExperts,
    all_pairs,
    own_pairs,
    rows_are_known,
    with_experts,
)

_Rows = Mapping[int, tuple[ExpertPart, int]]
"""By the number of an expert that is on the device: the part that it is in, and its row there."""


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


@dataclass(slots=True, eq=False, kw_only=True)
class PackedExperts(PlacedExperts):
    """The experts of one layer, packed wherever they are.

    `at_once` are unpacked by one call, and `in_room` of the layer's `num_experts` at a time.
    """

    layer: int
    room: UnpackedRoom
    in_room: int
    at_once: int

    def compute(
        self,
        parts: Iterable[ExpertPart],
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        *,
        in_prefill: bool,
        in_decode_by: PartCode | None = None,
    ) -> torch.Tensor:
        """What the experts of some parts make of tokens: always unpacked, and by the library's code."""
        parts = list(parts)
        if not parts:
            return torch.zeros_like(hidden)
        known = rows_are_known(hidden, in_prefill=in_prefill)
        if self.in_room == self.num_experts:
            return self._in_their_places(parts, hidden, index, weights, known=known)
        if known:
            return self._by_known_rows(_rows_of(parts), hidden, index, weights)
        if index.numel() <= self.num_experts:
            return self._by_pairs(parts, hidden, index, weights)
        return self._by_experts(parts, hidden, index, weights)

    def _in_their_places(
        self,
        parts: Sequence[ExpertPart],
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        *,
        known: bool,
    ) -> torch.Tensor:
        """All that are there at once, each in the place of its number."""
        there, parameters = _rows_of(parts), self._parameters(self.num_experts)
        missing = self.room.missing(self.layer, _used(index, there) if known else there)
        self._unpack(there, missing, missing)
        if len(there) == self.num_experts:
            with with_experts(self.module, parameters, self.num_experts):
                result: torch.Tensor = ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](self.module, hidden, index, weights)
            return result
        pairs = own_pairs if known else all_pairs
        here = torch.where(_are_there(parts, index), index, self.num_experts)
        return pairs(self.module, parameters, self.num_experts, hidden, here, weights)

    def _by_known_rows(
        self, there: _Rows, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Only the experts that tokens use."""
        result, used = torch.zeros_like(hidden), _used(index, there)
        for first in range(0, len(used), self.in_room):
            experts = used[first : first + self.in_room]
            self._unpack(there, experts, range(len(experts)))
            place = torch.full((self.num_experts,), len(experts), device=index.device)
            place[experts] = torch.arange(len(experts), device=index.device)
            parameters = self._parameters(len(experts))
            result.add_(own_pairs(self.module, parameters, len(experts), hidden, place[index], weights))
        return result

    def _by_pairs(
        self, parts: Sequence[ExpertPart], hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """For each (token, expert) pair its expert, without a word to the host: pairs are fewer than experts."""
        result, (tokens, top_k) = torch.zeros_like(hidden), index.shape
        rows = torch.arange(tokens, device=index.device).repeat_interleave(top_k)
        pairs = (torch.split(one.reshape(-1), self.in_room) for one in (index, weights, rows))
        for experts, own_weights, own_rows in zip(*pairs, strict=True):
            for name, view in self._views(len(experts)).items():
                self.formats[name].unpack(_selected(name, parts, experts), view)
            own = torch.arange(len(experts), device=index.device).unsqueeze(-1), own_weights.unsqueeze(-1)
            with with_experts(self.module, self._parameters(len(experts)), len(experts)):
                made = ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION](self.module, hidden[own_rows], *own)
            foreign = ~_are_there(parts, experts)
            result.index_add_(0, own_rows, made.masked_fill_(foreign.unsqueeze(-1), 0))
        return result

    def _by_experts(
        self, parts: Sequence[ExpertPart], hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """All experts that are there, a few at a time, without a word to the host."""
        result, there = torch.zeros_like(hidden), _rows_of(parts)
        for part in parts:
            for first in range(0, len(part.numbers), self.in_room):
                experts = part.numbers[first : first + self.in_room]
                self._unpack(there, experts, range(len(experts)))
                of_these = (part.rows[index] - first) % (part.count + 1)  # rows of other experts come behind the last
                parameters = self._parameters(len(experts))
                result.add_(all_pairs(self.module, parameters, len(experts), hidden, of_these, weights))
        return result

    def _unpack(self, there: _Rows, experts: Sequence[int], places: Sequence[int]) -> None:
        """Unpacks experts into places of the room; what lies side by side, in one call."""
        for part, row, place, length in _runs([there[expert] for expert in experts], places, self.at_once):
            for name, view in self._views(place + length).items():
                packed = part.parameters[name]
                assert packed is not None, "experts that are packed have all parameters"
                self.formats[name].unpack(packed[row : row + length], view[place:])

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


def _rows_of(parts: Iterable[ExpertPart]) -> _Rows:
    return {number: (part, row) for part in parts for row, number in enumerate(part.numbers)}


def _used(index: torch.Tensor, there: _Rows) -> list[int]:
    """The experts that are there and that any token uses, in order; the host waits for the device to learn it."""
    return sorted(there.keys() & set(index.flatten().tolist()))


def _are_there(parts: Iterable[ExpertPart], experts: torch.Tensor) -> torch.Tensor:
    """For experts whose numbers only the device knows, whether they are in any of the parts."""
    return torch.stack([part.rows[experts] < part.count for part in parts]).any(0)


def _selected(name: str, parts: Iterable[ExpertPart], experts: torch.Tensor) -> torch.Tensor:
    """Packed experts whose numbers only the device knows; anything for those that are in no part."""
    found: torch.Tensor | None = None
    for part in parts:
        packed, rows = part.parameters[name], part.rows[experts]
        assert packed is not None, "experts that are packed have all parameters"
        mine = packed[rows.clamp(max=part.count - 1)]
        found = mine if found is None else torch.where((rows < part.count).unsqueeze(-1), mine, found)
    assert found is not None, "there is a part"
    return found


def _runs(
    sources: Sequence[tuple[ExpertPart, int]], places: Sequence[int], most: int
) -> Iterator[tuple[ExpertPart, int, int, int]]:
    """(part, first row, its place, how many): experts that lie side by side where they are and where they go."""
    first = 0
    for at in range(1, len(sources) + 1):
        part, row = sources[first]
        goes_on = (
            at < len(sources)
            and at - first < most
            and sources[at][0] is part
            and sources[at][1] - row == places[at] - places[first] == at - first
        )
        if not goes_on:
            yield part, row, places[first], at - first
            first = at
