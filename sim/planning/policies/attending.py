"""A policy's neighbours in which some micro-batches attend on the device beside those that the CPU attends for."""

from dataclasses import replace

from sim.cost import Setup
from sim.planning.policies.grid import locks_weights
from sim.planning.policies.locking import most_locked
from sim.planning.policies.mixes import total_of
from traces.errors import InputError


def attending_beside(setup: Setup, count: int) -> Setup | None:
    """The same with so many micro-batches on the device, and as many of its resident experts as still fit beside."""
    policy, n = setup.policy, setup.shape.num_micro_batches
    mixed = replace(setup, policy=replace(policy, attention_on_device=count / n))
    total = total_of(setup.problem.model, setup.schedule) if policy.deal_experts else setup.problem.model.num_experts
    low, high = -1, round(policy.experts_on_device * total)
    found = _fitting(mixed, policy.experts_on_device)
    while found is None and low + 1 < high:
        middle = (low + high) // 2
        fits = _fitting(mixed, middle / total)
        low, high = (middle, high) if fits else (low, middle)
    return found or (_fitting(mixed, low / total) if low >= 0 else None)


def _fitting(setup: Setup, experts_on_device: float) -> Setup | None:
    """The setup with this share of its experts, and of what streams page-locked what fits; None if that is too much."""
    try:
        tried = replace(setup, policy=replace(setup.policy, experts_on_device=experts_on_device))
    except InputError:  # a schedule that takes all of them or none
        return None
    tried = most_locked(tried) if locks_weights(tried.schedule) and tried.shortages else tried
    return None if tried.shortages else tried
