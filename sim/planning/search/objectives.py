"""What the best policy is best at, and which of several is the best of them."""

from collections.abc import Iterable
from enum import StrEnum

from sim.planning.search.candidate import Candidate

SAME_LATENCY = 0.01
"""Decode steps that are longer than the shortest by at most so much count as equally short."""

ENOUGH_THROUGHPUT = 0.95
"""Share of the best throughput that the policy of least device memory must reach."""


class Objective(StrEnum):
    """What the best policy is best at."""

    THROUGHPUT = "throughput"  # tokens per second of the whole generation
    LATENCY = "latency"  # seconds of a decode step, the time between two tokens of a request; then throughput
    MEMORY = "memory"  # bytes on the device, among policies that reach ENOUGH_THROUGHPUT of the best throughput


MEANING = {
    Objective.THROUGHPUT: "most generated tokens a second of all requests, over prefill and decode",
    Objective.LATENCY: f"the shortest decode step, to {SAME_LATENCY:.0%}; among those, the most tokens a second",
    Objective.MEMORY: f"the fewest bytes on the device that reach {ENOUGH_THROUGHPUT:.0%} of the best throughput",
}
"""What each objective asks for, in words."""


def ranked(found: Iterable[Candidate], objective: Objective) -> list[Candidate]:
    """Candidates of one or several schedules, the best first."""
    by_throughput = sorted(found, key=lambda one: -one.throughput_tokens_per_s)
    if objective is Objective.LATENCY:
        least = min(one.token_s for one in by_throughput) * (1 + SAME_LATENCY)
        return sorted(by_throughput, key=lambda one: max(one.token_s, least))
    if objective is Objective.MEMORY:
        floor = ENOUGH_THROUGHPUT * by_throughput[0].throughput_tokens_per_s
        return sorted(by_throughput, key=lambda one: (one.throughput_tokens_per_s < floor, one.device_bytes))
    return by_throughput
