"""Where each routed expert is: one function of policy and layers, for the simulator and the engine alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from sim.problem.model import Layer, Model
from sim.schedule import ExpertPlace, Place, Schedule, System

if TYPE_CHECKING:
    from sim.problem.policy import Policy

ROUNDING = 1e-9
"""m / E as a float is meant to be m of E experts."""


@dataclass(frozen=True, slots=True)
class Split:
    """How many of a layer's routed experts are in each place; by rank they follow each other in this order.

    Ranks go by how often tokens use an expert, if that is known, else by its number.
    """

    resident: int = 0
    streamed: int = 0
    fetched: int = 0
    on_host: int = 0

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

    def ranks(self, places: ExpertPlace) -> tuple[int, int]:
        """First and behind the last rank of the experts in these places, which must lie side by side."""
        edges = list(accumulate((self.resident, self.streamed, self.fetched, self.on_host), initial=0))
        inside = [pair for place, pair in zip(ExpertPlace, pairwise(edges), strict=True) if place & places]
        return inside[0][0], inside[-1][1]


def splits_of(policy: "Policy", system: System, expert_counts: Sequence[int]) -> tuple[Split, ...]:
    """The split of each layer; `expert_counts` says how many routed experts it has, none in a dense layer."""
    layers = len(expert_counts)
    first, stop = policy.host_layers or (0, 0)
    if system.whole_layers:
        if policy.host_layers is None:
            stop = layers - int(layers * policy.experts_on_device + ROUNDING)
        return tuple(
            Split(on_host=count) if first <= layer < stop else Split(resident=count)
            for layer, count in enumerate(expert_counts)
        )
    room = [0 if first <= layer < stop else count for layer, count in enumerate(expert_counts)]
    deal = partial(_dealt, expert_counts, finely=policy.deal_experts)
    resident = deal(room, policy.experts_on_device)
    room = [count - taken for count, taken in zip(room, resident, strict=True)]
    on_host = deal(room, policy.experts_on_host, last_first=True)
    room = [count - taken for count, taken in zip(room, on_host, strict=True)]
    fetched = deal(room, policy.experts_fetched)
    return tuple(
        Split(on_host=count) if first <= layer < stop else _with_others(system, count, *given)
        for layer, (count, *given) in enumerate(zip(expert_counts, resident, fetched, on_host, strict=True))
    )


def _with_others(system: System, count: int, resident: int, fetched: int, on_host: int) -> Split:
    """A layer's experts, those that no share names where the system has such."""
    others = {system.others: count - resident - fetched - on_host}
    named = {ExpertPlace.STREAMED: 0, ExpertPlace.FETCHED: fetched, ExpertPlace.HOST: on_host}
    return Split(resident, *(some + others.get(place, 0) for place, some in named.items()))


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


@dataclass(frozen=True, slots=True)
class Placement:
    """The experts of a model with their bytes, placed by a policy.

    Bytes are of all devices together.
    """

    model: Model
    splits: tuple[Split, ...]
    expert_bits: float
    streams_non_experts: bool
    prefill_on_host: bool
    """Whether prefill leaves the host's experts on the host."""
    kinds: tuple[int, ...] = field(init=False)
    """Per layer a number that it shares with layers of the same kind whose experts are placed alike."""
    distinct: tuple[tuple[Layer, Split], ...] = field(init=False)
    """By that number."""
    counts: tuple[int, ...] = field(init=False)
    """How many layers have it."""

    def __post_init__(self) -> None:
        found: dict[tuple[int, Split], int] = {}
        kinds = [found.setdefault(one, len(found)) for one in zip(self.model.layer_kinds, self.splits, strict=True)]
        object.__setattr__(self, "kinds", tuple(kinds))
        distinct = tuple((self.model.distinct_layers[kind], split) for kind, split in found)
        object.__setattr__(self, "distinct", distinct)
        object.__setattr__(self, "counts", tuple(kinds.count(kind) for kind in range(len(found))))

    @staticmethod
    def of(policy: "Policy", schedule: Schedule, model: Model) -> "Placement":
        """Where a policy has a model's experts under a schedule."""
        return _placement(policy, schedule.system, model)

    def streamed_bytes(self, kind: int, *, in_prefill: bool = False) -> int:
        """What of a layer comes over the link each time it runs, asked for or not."""
        layer, split = self.distinct[kind]
        experts = split.streamed
        if in_prefill and not self.prefill_on_host:
            experts += split.fetched + split.on_host
        others = layer.non_expert_bytes(self.model.other_bits) if self.streams_non_experts else 0
        return experts * layer.expert_bytes(self.expert_bits) + others

    def moved_bytes(self, kind: int) -> int:
        """What of a layer ever comes over the link: of these bytes a share may be page-locked, the first ones first.

        The streamed ones come first, then those that are fetched, then those of the host.
        """
        layer, split = self.distinct[kind]
        fetched = split.fetched * self.prefill_on_host * layer.expert_bytes(self.expert_bits)
        return self.streamed_bytes(kind, in_prefill=True) + fetched

    def experts_bytes(self, places: ExpertPlace) -> int:
        """Routed experts of all layers that are in these places."""
        total = 0
        for (layer, split), count in zip(self.distinct, self.counts, strict=True):
            held = zip(ExpertPlace, (split.resident, split.streamed, split.fetched, split.on_host), strict=True)
            experts = sum(some for place, some in held if place & places)
            total += count * experts * layer.expert_bytes(self.expert_bits)
        return total


@lru_cache(maxsize=4096)
def _placement(policy: "Policy", system: System, model: Model) -> Placement:
    counts = tuple(layer.num_experts for layer in model.layers)
    streams = system.streams_non_experts or policy.stream_non_experts
    on_host = policy.prefills_on(system) is Place.CPU
    return Placement(model, splits_of(policy, system, counts), policy.expert_bits(model), streams, on_host)
