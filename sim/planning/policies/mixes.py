"""How many experts are in which place, and what the weights of each such mix take: the same for all batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from sim.planning.policies.grid import Ints, PolicyGrid
from sim.problem import Model, Placement, Policy, Problem
from sim.schedule import ON_DEVICE, ExpertPlace, Place, Schedule, System

PREFILLS = (Place.GPU, Place.CPU)
"""Where prefill may compute the experts of the host; tables have both, in this order."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Experts of all layers together that are resident, on the host, and fetched; the others where the system has such.

    With whole layers, `resident` counts layers.
    """

    resident: int
    on_host: int
    fetched: int

    def fields(self, system: System, total: int) -> dict[str, Any]:
        """The fields of a policy that places `total` experts, or layers, so."""
        if system.whole_layers:
            return {"host_layers": (0, total - self.resident)}
        named = {
            "experts_on_host": (ExpertPlace.HOST, self.on_host),
            "experts_fetched": (ExpertPlace.FETCHED, self.fetched),
        }
        shares = {name: count / total for name, (place, count) in named.items() if place != system.others}
        return {"experts_on_device": self.resident / total, "deal_experts": True, **shares}


def total_of(model: Model, schedule: Schedule) -> int:
    """What mixes deal out: experts of all layers together, or whole layers."""
    layers = model.layers
    return len(layers) if schedule.system.whole_layers else sum(layer.num_experts for layer in layers)


@dataclass(frozen=True, slots=True)
class Mixes:
    """Mixes by how many experts are resident, at most [level], and how the rest is divided [parts]."""

    levels: Ints
    """Numbers of resident experts, growing."""
    every: list[Mix]
    at: Ints
    """Which of these. [level, parts]."""
    resident_bytes: Ints
    """The following are [mix]. Bytes of experts in each place, `streamed_bytes` with all that is fetched or streams."""
    streamed_bytes: Ints
    host_bytes: Ints
    most_fetched: Ints
    """Experts of a layer."""
    working: Ints
    """Whether prefill finds routed experts of a layer on the device, and if so in parts: 0 to 2. [mix, prefill]."""
    exchanges: Ints
    """Which of the device's (beside shared ones, if any layer has such), the host's and fetched ones: 0 to 7."""
    slot_bytes: Ints
    """What streams of a layer, in prefill too. [mix, prefill on GPU or CPU, kind of layer]; kinds that lack are 0."""
    moved_bytes: Ints
    """What of a layer ever comes over the link; the first of it is page-locked. The same shape."""
    layers: Ints
    """How many layers are of that kind."""
    placements: list[Placement]

    @staticmethod
    def of(problem: Problem, schedule: Schedule, base: Policy, grid: PolicyGrid) -> "Mixes":
        """All mixes of a grid. What prefill computes on the host is looked at both ways."""
        usual = Policy.usual(schedule, 1, 1, weight_bits=base.weight_bits, stream_non_experts=base.stream_non_experts)
        places = PolicyGrid(levels=grid.levels, host_parts=grid.host_parts, fetched_parts=grid.fetched_parts)
        places = replace(places, stream_non_experts=grid.stream_non_experts)
        return _mixes(problem.model, schedule, usual, places)


@lru_cache(maxsize=4)
def _mixes(model: Model, schedule: Schedule, base: Policy, grid: PolicyGrid) -> Mixes:
    total, system = total_of(model, schedule), schedule.system
    levels = grid.resident_levels(total)
    parts = [
        (host, fetched)
        for host in _parts(system, ExpertPlace.HOST, grid.host_parts)
        for fetched in _parts(system, ExpertPlace.FETCHED, grid.fetched_parts)
    ]
    found: dict[Mix, int] = {}
    at = [[found.setdefault(_mix(level, total, *one), len(found)) for one in parts] for level in levels]
    every = list(found)
    placed = [_placements(model, schedule, base, mix.fields(system, total)) for mix in every]
    first = [both[0] for both in placed]
    width = max(len(one.counts) for one in first)
    place = ExpertPlace
    return Mixes(
        np.array(levels), every, np.array(at),
        np.array([one.experts_bytes(place.DEVICE) for one in first]),
        np.array([one.experts_bytes(_copied(one, system)) for one in first]),
        np.array([one.experts_bytes(place.HOST) for one in first]),
        np.array([max(split.fetched for split in one.splits) for one in first]),
        np.array([[_working(one) for one in both] for both in placed]),
        np.array([_exchanges(one) for one in first]),
        np.array([[_padded((one.streamed_bytes(kind, in_prefill=True) for kind in range(len(one.counts))), width)
                   for one in both] for both in placed]),
        np.array([[_padded(map(one.moved_bytes, range(len(one.counts))), width)
                   for one in both] for both in placed]),
        np.array([_padded(one.counts, width) for one in first]),
        first,
    )  # fmt: skip


def _parts(system: System, place: ExpertPlace, parts: Sequence[float]) -> Sequence[float]:
    """Shares of what is left that are in a place: none where the system has no such, or has all others there."""
    return parts if system.experts & place and system.others != place and not system.whole_layers else (0.0,)


def _mix(resident: int, total: int, host: float, fetched: float) -> Mix:
    on_host = round(host * (total - resident))
    return Mix(resident, on_host, round(fetched * (total - resident - on_host)))


def _placements(model: Model, schedule: Schedule, base: Policy, fields: dict[str, Any]) -> list[Placement]:
    """With prefill as in `PREFILLS`, where the schedule can."""
    one = Placement.of(replace(base, **fields), schedule, model)
    can = schedule.system.prefill_experts
    return [replace(one, prefill_on_host=(place if place in can else can[0]) is Place.CPU) for place in PREFILLS]


def _exchanges(one: Placement) -> int:
    shared = any(layer.num_experts and layer.shared for layer in one.model.layers)
    device = any(split.places & ON_DEVICE for layer, split in one.distinct if layer.shared or not shared)
    host, fetched = (
        any(split.places & kind for _, split in one.distinct) for kind in (ExpertPlace.HOST, ExpertPlace.FETCHED)
    )
    return int(device) + 2 * host + 4 * fetched


def _working(one: Placement) -> int:
    found = 0
    for layer, split in one.distinct:
        there = layer.num_experts - split.on_host if one.prefill_on_host else layer.num_experts
        found = max(found, int(there > 0) + (0 < split.resident < there))
    return found


def _copied(one: Placement, system: System) -> ExpertPlace:
    """Places of experts that the host keeps for the device: those of a cache too, which it may drop."""
    fetches = any(split.fetched for _, split in one.distinct)
    kept = ExpertPlace.DEVICE if system.caches_experts and fetches else ExpertPlace(0)
    return ExpertPlace.STREAMED | ExpertPlace.FETCHED | kept


def _padded(values: Any, width: int) -> list[int]:
    found = list(values)
    return found + [0] * (width - len(found))
