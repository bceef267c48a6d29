"""Where the experts of a plan are, of each kind of layer, as numbers and in words, and which layers run on the host."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.cost import Setup
from sim.problem import Placement, Split
from sim.schedule import MemoryPart

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
    """Layers that differ by no more than how experts are dealt out count as alike; those of whole layers do not.

    Of layers that run on the host whole nothing is said, see `host_layers_in_words`.
    """
    alike: dict[tuple[int, int], list[Split]] = {}
    for layer, split in zip(placement.model.layers, placement.splits, strict=True):
        if layer.num_experts and not split.layer_on_host:
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


def share_on_host(placement: Placement) -> float:
    """Share of all routed experts that decode computes on the host, those of layers that run there among them."""
    both = list(zip(placement.model.layers, placement.splits, strict=True))
    there = sum(layer.num_experts if split.layer_on_host else split.on_host for layer, split in both)
    return there / max(1, sum(layer.num_experts for layer, _ in both))


def remarks(setup: Setup) -> list[str]:
    """What to say of a policy on its machine: what it does for nothing, and what it drops."""
    return [one for one in (_travels_for_nothing(setup), _drops(setup)) if one]


def _drops(setup: Setup) -> str:
    """Where experts compute a fixed capacity, what of a decode step's largest group comes beyond it."""
    ratio, share = setup.problem.hardware.device.expert_capacity_ratio, setup.dropped_share
    if ratio is None or not share:
        return ""
    enough = max(one.num_experts / one.top_k for one in setup.problem.model.layers if one.num_experts)
    return (
        f"experts compute {ratio:g} times their even share of tokens (device.expert_capacity_ratio), and {share:.2%} "
        f"of what decode asks of them is dropped, which changes the model's outputs; from {enough:g} on nothing is"
    )


def _travels_for_nothing(setup: Setup) -> str:
    """What to say of weights that stream where device and host are one memory; else nothing."""
    size = setup.memory.host.get(MemoryPart.STREAMED_WEIGHTS, 0)
    if not setup.problem.hardware.unified or not size:
        return ""
    return (
        f"device and host are one memory, where nothing needs to travel: {size / 1e9:.1f} GB of weights are copied "
        "within it for nothing"
    )


def host_layers_in_words(placement: Placement) -> str:
    """As `the first 28 of 32 layers whole on the host`; nothing where there are none."""
    on_host = [layer for layer, split in enumerate(placement.splits) if split.layer_on_host]
    if not on_host:
        return ""
    first, stop, layers = on_host[0], on_host[-1] + 1, len(placement.splits)
    if first > 0 and stop < layers:
        which = f"layers {_range(first, stop - 1)} of {layers}"
    elif stop - first < layers:
        which = f"the {'last' if first else 'first'} {stop - first} of {layers} layers"
    else:
        which = f"all {layers} layers"
    return f"{which} whole on the host"


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"
