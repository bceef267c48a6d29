"""Experts stored at another width than the model has: how many of a layer a device holds as wide as it computes."""

from sim.problem.model import Model
from sim.problem.policy.policy import Policy
from sim.problem.policy.splits import Split

MOST_AT_ONCE = 4
"""Experts that one call unpacks at most: enough to be worth it where experts are small."""
MOST_BYTES_AT_ONCE = 256 << 20
"""What these may take as wide as they are computed: large experts are worth a call each."""


def unpacks_experts(policy: Policy, model: Model) -> bool:
    """Whether a policy stores routed experts at another width than the model has."""
    return policy.widths(model).experts != model.widths.experts


def are_unpacked(split: Split, *, prefill_on_host: bool) -> bool:
    """Whether the device ever computes any of a layer's experts, so that they must be unpacked there."""
    return split.resident + split.streamed + split.fetched > 0 or (split.on_host > 0 and not prefill_on_host)


def unpacked_at_once(num_experts: int, expert_bytes: int) -> int:
    """Experts of a layer that one call unpacks; one takes `expert_bytes` as wide as it is computed."""
    return max(1, min(num_experts, MOST_AT_ONCE, MOST_BYTES_AT_ONCE // max(1, expert_bytes)))


def unpacked_experts(num_experts: int, num_micro_batches: int, expert_bytes: int) -> int:
    """Of a layer, the experts that are there unpacked at a time: all of them, which micro-batches share, or a few."""
    return num_experts if num_micro_batches > 1 else unpacked_at_once(num_experts, expert_bytes)
