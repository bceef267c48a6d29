"""Where the experts of a plan are, of each kind of layer, as numbers and in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.problem import Placement, Split

PLACES = {
    "resident": "on the device",
    "streamed": "streamed",
    "fetched": "fetched when asked for",
    "on_host": "on the host",
}
"""Fields of a split, in words."""


@dataclass(frozen=True, slots=True)
class ExpertPlaces:
    """Layers with so many routed experts each: the fewest and the most that a layer has in each place."""

    layers: int
    experts: int
    resident: tuple[int, int]
    streamed: tuple[int, int]
    fetched: tuple[int, int]
    on_host: tuple[int, int]


def placed_experts(placement: Placement) -> tuple[ExpertPlaces, ...]:
    """Layers that differ by no more than how experts are dealt out count as alike; those of whole layers do not."""
    alike: dict[tuple[int, int], list[Split]] = {}
    for layer, split in zip(placement.model.layers, placement.splits, strict=True):
        if layer.num_experts:
            one_place = layer.num_experts in (split.resident, split.on_host)
            alike.setdefault((layer.num_experts, split.places if one_place else 0), []).append(split)
    return tuple(_together(experts, splits) for (experts, _), splits in alike.items())


def _together(experts: int, splits: Sequence[Split]) -> ExpertPlaces:
    ranges = {name: [getattr(split, name) for split in splits] for name in PLACES}
    return ExpertPlaces(len(splits), experts, **{name: (min(of), max(of)) for name, of in ranges.items()})


def in_words(found: Sequence[ExpertPlaces]) -> Iterator[str]:
    """As `31 of 128 a layer on the device, 97 on the host`; of several kinds, of how many layers."""
    for one in found:
        numbers = {place: getattr(one, name) for name, place in PLACES.items() if getattr(one, name)[1]}
        first, *others = (f"{_range(*number)}{{}} {place}" for place, number in numbers.items())
        where = f" in {one.layers} layers" if len(found) > 1 else ""
        yield ", ".join([first.format(f" of {one.experts} a layer"), *(other.format("") for other in others)]) + where


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"
