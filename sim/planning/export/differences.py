"""How a setup goes about its work, in words for each matter, so that two of them can be held against each other."""

from dataclasses import dataclass

from sim.cost import Setup
from sim.planning.policies import host_layers_in_words, in_words, placed_experts
from sim.schedule import ExpertPlace, Place


@dataclass(frozen=True, slots=True)
class Difference:
    """What a plan has one way and another program another mode."""

    matter: str
    plan: str
    there: str


def differing(plan: dict[str, str], there: dict[str, str]) -> tuple[Difference, ...]:
    """Where the words of `matters` are not the same."""
    return tuple(Difference(name, words, there[name]) for name, words in plan.items() if there[name] != words)


def matters(setup: Setup) -> dict[str, str]:
    """What is done how: all that another program may not be able to do."""
    policy, shape, system = setup.policy, setup.shape, setup.schedule.system
    n = shape.num_micro_batches
    used = {place for split in setup.placement.splits for place in ExpertPlace if split.places_apart & place}
    streams = any(shape.streamed)
    return {
        "order": setup.schedule.summary,
        "requests at once": f"{setup.batch.num_requests:,}",
        "micro-batches": f"{n} that take turns" if n > 1 else "all requests as one",
        "attention in decode": _attention(setup),
        "KV cache": _kv_cache(setup),
        "routed experts": "; ".join(in_words(placed_experts(setup.placement))) or "on the host with their layers",
        "whole layers": host_layers_in_words(setup.placement) or "none on the host",
        "other weights": "streamed, too" if shape.streams_non_experts else "on the device",
        "streamed weights": f"in {shape.num_pages} pages a layer" if streams and shape.num_pages > 1 else "whole",
        "page-locked weights": f"{policy.pin_weights:.0%}" if streams or ExpertPlace.FETCHED in used else "none needed",
        "host's experts in prefill": _prefill(setup, ExpertPlace.HOST in used),
        "deferred experts": f"{policy.defer_experts} of a token" if policy.defer_experts else "none",
        "experts on the device": "those used last" if system.caches_experts else "always the same",
    }


def _attention(setup: Setup) -> str:
    if setup.policy.attention is Place.GPU:
        return "on the device"
    return f"on the host{_beside(setup)}"


def _kv_cache(setup: Setup) -> str:
    share = setup.policy.kv_on_device
    if share == 1:
        return "on the device"
    there = "in host memory"
    return f"{share:.0%} on the device, the rest {there}" if share else f"{there}{_beside(setup)}"


def _beside(setup: Setup) -> str:
    """What is true of most micro-batches is not of those that attend on the device."""
    some, n = setup.shape.attending_on_device, setup.shape.num_micro_batches
    return f", but of {some} of {n} micro-batches on the device" if some else ""


def _prefill(setup: Setup, has_some: bool) -> str:
    if not has_some:
        return "none"
    return "copied to the device" if setup.policy.prefills_on(setup.schedule.system) is Place.GPU else "on the host"
