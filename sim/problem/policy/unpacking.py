"""Experts stored at another width than the model has: how many of a layer a device holds as wide as it computes."""

from sim.problem.model import Model
from sim.problem.policy.policy import Policy

UNPACKED_AT_ONCE = 4
"""Experts that one call unpacks: enough to be worth it, few enough to find room on any device."""


def unpacks_experts(policy: Policy, model: Model) -> bool:
    """Whether a policy stores routed experts at another width than the model has."""
    return policy.expert_bits(model) != model.expert_bits


def unpacked_experts(num_experts: int, num_micro_batches: int) -> int:
    """Of a layer, the experts that are there unpacked at a time: all of them, which micro-batches share, or a few."""
    return num_experts if num_micro_batches > 1 else min(num_experts, UNPACKED_AT_ONCE)
