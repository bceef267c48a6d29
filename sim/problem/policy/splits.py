"""Where each routed expert is: one function of a policy's shares and the layers, for the simulator and the engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, Self

from sim.schedule import ExpertPlace, System

ROUNDING = 1e-9
"""m / E as a float is meant to be m of E experts."""


class ExpertShares(Protocol):
    """What a policy says of places of experts."""

    @property
    def experts_on_device(self) -> float: ...
    @property
    def experts_on_host(self) -> float: ...
    @property
    def experts_fetched(self) -> float: ...
    @property
    def deal_experts(self) -> bool: ...
    @property
    def host_layers(self) -> tuple[int, int] | None: ...
    @property
    def layers_on_host(self) -> tuple[int, int] | None: ...


class Shares(NamedTuple):
    """That and nothing else, so that policies which differ in other things are answered once."""

    experts_on_device: float
    experts_on_host: float
    experts_fetched: float
    deal_experts: bool
    host_layers: tuple[int, int] | None
    layers_on_host: tuple[int, int] | None

    @classmethod
    def of(cls, policy: ExpertShares) -> Self:
        """Those of a policy."""
        return cls(*(getattr(policy, name) for name in cls._fields))


@dataclass(frozen=True, slots=True)
class Split:
    """How many of a layer's routed experts are in each place; by rank they follow each other in this order.

    Ranks go by how often tokens use an expert, if that is known, else by its number.
    """

    resident: int = 0
    streamed: int = 0
    fetched: int = 0
    on_host: int = 0
    layer_on_host: bool = False
    """Whether the host runs the layer whole, so that all its experts are there."""

    @property
    def places(self) -> ExpertPlace:
        """Those that are not empty."""
        flags = {
            ExpertPlace.DEVICE: self.resident,
            ExpertPlace.STREAMED: self.streamed,
            ExpertPlace.FETCHED: self.fetched,
            ExpertPlace.HOST: self.on_host,
        }
        return ExpertPlace(sum(place for place, count in flags.items() if count))

    @property
    def places_apart(self) -> ExpertPlace:
        """The same, of experts that are computed apart from the rest of their layer."""
        return ExpertPlace(0) if self.layer_on_host else self.places

    def ranks(self, places: ExpertPlace) -> tuple[int, int]:
        """First and behind the last rank of the experts in these places, which must lie side by side."""
        edges = list(accumulate((self.resident, self.streamed, self.fetched, self.on_host), initial=0))
        inside = [pair for place, pair in zip(ExpertPlace, pairwise(edges), strict=True) if place & places]
        return inside[0][0], inside[-1][1]


def splits_of(policy: ExpertShares, system: System, expert_counts: Sequence[int]) -> tuple[Split, ...]:
    """The split of each layer; `expert_counts` says how many routed experts it has, none in a dense layer."""
    return _splits(Shares.of(policy), system, tuple(expert_counts))


@lru_cache(maxsize=4096)
def _splits(policy: Shares, system: System, expert_counts: tuple[int, ...]) -> tuple[Split, ...]:
    first, stop = policy.layers_on_host or (0, 0)
    apart = _splits_apart(policy, system, expert_counts)
    return tuple(
        Split(on_host=count, layer_on_host=True) if first <= layer < stop else split
        for layer, (count, split) in enumerate(zip(expert_counts, apart, strict=True))
    )


def _splits_apart(policy: Shares, system: System, expert_counts: tuple[int, ...]) -> tuple[Split, ...]:
    """The same without layers that run on the host whole, which take no part of shares that are dealt out."""
    layers = len(expert_counts)
    whole = range(*(policy.layers_on_host or (0, 0)))
    first, stop = policy.host_layers or (0, 0)
    if system.whole_layers:
        mine = [layer for layer in range(layers) if layer not in whole]
        of_host = mine[: len(mine) - int(len(mine) * policy.experts_on_device + ROUNDING)]
        if policy.host_layers is not None:
            of_host = list(range(first, stop))
        return tuple(
            Split(on_host=count) if layer in of_host else Split(resident=count)
            for layer, count in enumerate(expert_counts)
        )
    room = [0 if first <= layer < stop or layer in whole else count for layer, count in enumerate(expert_counts)]
    deal = partial(_dealt, expert_counts, finely=policy.deal_experts)
    resident = deal(room, policy.experts_on_device)
    room = [count - taken for count, taken in zip(room, resident, strict=True)]
    on_host = deal(room, policy.experts_on_host, last_first=True)
    room = [count - taken for count, taken in zip(room, on_host, strict=True)]
    fetched = deal(room, policy.experts_fetched)
    given = list(zip(expert_counts, resident, fetched, on_host, strict=True))
    splits = {one: _with_others(system, *one) for one in set(given)}
    return tuple(Split(on_host=one[0]) if first <= layer < stop else splits[one] for layer, one in enumerate(given))


def _with_others(system: System, count: int, resident: int, fetched: int, on_host: int) -> Split:
    """A layer's experts, those that no share names where the system has such."""
    others = {system.others: count - resident - fetched - on_host}
    named = {ExpertPlace.STREAMED: 0, ExpertPlace.FETCHED: fetched, ExpertPlace.HOST: on_host}
    streamed, fetched, on_host = (some + others.get(place, 0) for place, some in named.items())
    return Split(resident, streamed, fetched, on_host)


def _dealt(
    counts: Sequence[int], room: Sequence[int], share: float, *, finely: bool, last_first: bool = False
) -> list[int]:
    """Whole experts of each layer: the share of its own, or its turn of the share of all layers' together.

    What a layer has no room for goes to the next one. Turns come late in a round, or early if the last comes first, so
    that two shares that make up all of them never meet.
    """
    if not finely:
        return [min(space, int(count * share + ROUNDING)) for count, space in zip(counts, room, strict=True)]
    found, given, before = list[int](), 0, 0
    for count, space in zip(counts, room, strict=True):
        before += count
        due = math.ceil(before * share - ROUNDING) if last_first else int(before * share + ROUNDING)
        found.append(max(0, min(space, due - given)))
        given += found[-1]
    return found
