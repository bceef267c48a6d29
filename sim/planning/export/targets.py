"""The programs that a plan is exported for: which of our schedules each runs, and how its best setting is found."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim.cost import Setup
from sim.planning.export.programs import (
    MOST_SEQUENCES,
    Launch,
    ServedSetup,
    expert_server,
    groupings,
    llama_server,
    num_layers_on_host,
    paging_server,
    prefetching_server,
    reading_server,
)
from sim.planning.policies import PolicyGrid, sizes_up_to
from sim.planning.search import Candidate, Choice, NothingFitsError, best_policy, ranked
from sim.problem import MOST_REQUESTS, Policy
from sim.schedule import Place, by_name

MOST_OF_VLLM = 8192
"""Requests at once that are looked at: far more than a device's memory has KV caches for."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One way in which a program can run a model whose weights do not fit the device."""

    find: Callable[[Choice, int], Candidate]
    """The best setting of so many requests at most. Raises NothingFitsError."""
    launch: Callable[[ServedSetup], Launch]
    in_words: Callable[[ServedSetup], Mapping[str, str]] = lambda _: {}
    """What it does otherwise than the schedule that stands for it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A program."""

    name: str
    known_as: str
    """What the flags of its server are listed under."""
    modes: tuple[Mode, ...]
    most_requests: int = MOST_REQUESTS
    one_device: str = ""
    """Why it takes one device only, if it does."""


def planned(schedule: str, choice: Choice, most_requests: int, *, prefill: Place | None = None) -> Candidate:
    """The best policy of one of our schedules, the one that was planned if the program can run it.

    `prefill` is where the program computes experts of the host in prefill, if it leaves no choice.
    """
    own = choice.plans.get(schedule)
    if own is not None and own.best.num_requests <= most_requests:
        place = own.best.policy.prefills_on(own.best.setup.schedule.system)
        if prefill in (None, place):
            return own.best
    widths = choice.best.policy
    given: dict[str, Any] = {"weight_bits": widths.weight_bits, "kv_bits": widths.kv_bits}
    grid = PolicyGrid(**given, most_requests=most_requests, prefill_experts=prefill)
    asked = choice.num_requests and min(choice.num_requests, most_requests)
    options: dict[str, Any] = {"objective": choice.objective, "num_requests": asked, "grid": grid}
    return best_policy(choice.problem, by_name(schedule), **options).best


def offloaded(choice: Choice, most_requests: int, *, fetched: bool) -> Candidate:
    """vLLM's: as many layers as must have their experts on the host, and all else on the device.

    They come before their layer runs, all of them, or when tokens ask for them, those that are asked for.
    """
    model = choice.problem.model
    layers = [at for at, one in enumerate(model.layers) if one.num_experts]
    counts = [0, *groupings(model.num_layers, layers)]
    found = []
    for requests in _batches(choice, most_requests):
        setups = (_offloaded(choice, requests, count / len(layers), fetched=fetched) for count in counts)
        fitting = next((one for one in setups if not one.shortages), None)
        if fitting is None:
            break
        found.append(Candidate.of(fitting, math.inf))
    if not found:
        raise NothingFitsError("the KV cache of one request does not fit beside what stays on the device")
    return ranked(found, choice.objective)[0] if choice.num_requests is None else found[-1]


def _batches(choice: Choice, most: int) -> list[int]:
    """Numbers of requests, growing; up to those that are asked for."""
    asked = choice.num_requests
    limit = min(most, MOST_OF_VLLM if asked is None else asked)
    return sorted({*sizes_up_to(limit, 2), limit})


def _offloaded(choice: Choice, requests: int, share: float, *, fetched: bool) -> Setup:
    planned_policy = choice.best.policy
    policy = Policy(
        requests,
        requests,
        Place.GPU,
        experts_on_device=1 - share,
        experts_fetched=share if fetched else 0.0,
        deal_experts=True,
        kv_on_device=1.0,
        pages=1,
        groups=1,
        pin_weights=1.0,
        weight_bits=planned_policy.weight_bits,
        kv_bits=planned_policy.kv_bits,
    )
    return Setup(choice.problem, by_name("hybrid"), policy)


def _prefetched_in_words(setting: ServedSetup) -> dict[str, str]:
    how = "experts of layers on the host come while the layer before computes, all of them"
    return {"order": how, **_layers_in_words(setting)}


def _read_in_words(setting: ServedSetup) -> dict[str, str]:
    how = "experts on the host are read over the link by the kernel that computes with them"
    return {"order": how, **_layers_in_words(setting)}


def _layers_in_words(setting: ServedSetup) -> dict[str, str]:
    on_host, layers = num_layers_on_host(setting), len(setting.expert_layers)
    return {"routed experts": f"of {on_host} of {layers} layers in host memory, of others on the device"}


TARGETS = {
    one.name: one
    for one in (
        Target("llama.cpp", "llama-server", (Mode(partial(planned, "n-cpu-moe"), llama_server),), MOST_SEQUENCES),
        Target(
            "vllm",
            "vllm serve",
            (
                Mode(partial(offloaded, fetched=False), prefetching_server, _prefetched_in_words),
                Mode(partial(offloaded, fetched=True), reading_server, _read_in_words),
            ),
        ),
        Target(
            "sglang",
            "python -m sglang.launch_server",
            (Mode(partial(planned, "expert-cache"), paging_server),),
            one_device="its paged experts work on one device",
        ),
        Target(
            "ktransformers",
            "python -m sglang.launch_server (sglang-kt)",
            (Mode(partial(planned, "cpu-experts", prefill=Place.CPU), expert_server),),
        ),
    )
}
"""By the name that a user gives."""
