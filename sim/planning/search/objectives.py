"""What the best policy is best at, and which of several is the best of them."""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from sim.planning.search.candidate import Candidate

SAME_LATENCY = 0.01
"""Decode steps that are longer than the shortest by at most so much count as equally short."""

SAME_ENERGY = 0.01
"""Policies that use more joules a token than the least by at most so much count as equally thrifty."""

ENOUGH_THROUGHPUT = 0.95
"""Share of the best throughput that the policy of least device memory must reach."""


class Objective(StrEnum):
    """What the best policy is best at."""

    THROUGHPUT = "throughput"  # tokens per second of the whole generation
    LATENCY = "latency"  # seconds of a decode step, the time between two tokens of a request; then throughput
    MEMORY = "memory"  # bytes on the device, among policies that reach ENOUGH_THROUGHPUT of the best throughput
    ENERGY = "energy"  # joules of the whole machine for a generated token; then throughput


MEANING = {
    Objective.THROUGHPUT: "most generated tokens a second of all requests, over prefill and decode",
    Objective.LATENCY: f"the shortest decode step, to {SAME_LATENCY:.0%}; among those, the most tokens a second",
    Objective.MEMORY: f"the fewest bytes on the device that reach {ENOUGH_THROUGHPUT:.0%} of the best throughput",
    Objective.ENERGY: (
        f"the fewest joules of the whole machine a generated token, to {SAME_ENERGY:.0%}; among those, the most tokens "
        "a second"
    ),
}
"""What each objective asks for, in words."""


def ranked(found: Iterable[Candidate], objective: Objective, most_joules: float | None = None) -> list[Candidate]:
    """Candidates of one or several schedules, the best first.

    Those that use more than `most_joules` a token come behind all others, the thriftiest first.
    """
    by_throughput = sorted(found, key=lambda one: -one.throughput_tokens_per_s)
    if most_joules is not None:
        within, above = list[Candidate](), list[Candidate]()
        for one in by_throughput:
            (within if one.joules_per_token <= most_joules else above).append(one)
        return [*ranked(within, objective), *sorted(above, key=lambda one: one.joules_per_token)]
    if not by_throughput:
        return []
    if objective is Objective.LATENCY:
        return _least_first(by_throughput, lambda one: one.token_s, SAME_LATENCY)
    if objective is Objective.ENERGY:
        return _least_first(by_throughput, lambda one: one.joules_per_token, SAME_ENERGY)
    if objective is Objective.MEMORY:
        floor = ENOUGH_THROUGHPUT * by_throughput[0].throughput_tokens_per_s
        return sorted(by_throughput, key=lambda one: (one.throughput_tokens_per_s < floor, one.device_bytes))
    return by_throughput


def _least_first(found: Sequence[Candidate], value: Callable[[Candidate], float], same: float) -> list[Candidate]:
    """In their order where they are within a share of the least, the others behind them."""
    least = min(map(value, found)) * (1 + same)
    return sorted(found, key=lambda one: max(value(one), least))
