"""The policies of which none other is better in both, tokens a second and joules a token, and what moves along them.

A policy that was not simulated is not on the front: its bounds say that a point of the front is as good in both.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sim.planning.policies import share_on_host
from sim.planning.search import Candidate
from traces.data_frame import Tabular


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A policy on the front, and what each device was held to."""

    candidate: Candidate
    power_cap_w: float | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.candidate.throughput_tokens_per_s

    @property
    def joules(self) -> float:
        """For each generated token."""
        return self.candidate.joules_per_token

    @property
    def watts(self) -> float:
        """Of the whole machine, on average."""
        return self.joules * self.tokens_per_s

    @property
    def experts_on_cpu(self) -> float:
        """Share of the routed experts that decode computes on the host."""
        return share_on_host(self.candidate.setup.placement)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        one = self.candidate
        return {
            "schedule": one.schedule,
            "policy": one.policy.to_dict(),
            "num_requests": one.num_requests,
            "throughput_tokens_per_s": self.tokens_per_s,
            "energy_j_per_token": self.joules,
            "average_w": self.watts,
            "seconds_per_token": one.seconds_per_token,
            "experts_on_cpu": self.experts_on_cpu,
            "power_cap_w": self.power_cap_w,
        }


@dataclass(frozen=True, slots=True)
class Front(Tabular):
    """The points, the fastest first and the thriftiest last; `others` are all that were simulated beside them."""

    points: tuple[FrontPoint, ...]
    others: tuple[FrontPoint, ...]

    @classmethod
    def of(cls, simulated: Iterable[tuple[float | None, Sequence[Candidate]]]) -> Self:
        """Of all that was simulated under each power cap."""
        every = [FrontPoint(one, cap) for cap, found in simulated for one in found]
        every.sort(key=lambda point: (-point.tokens_per_s, point.joules))
        points, others = list[FrontPoint](), list[FrontPoint]()
        for point in every:
            (others if points and point.joules >= points[-1].joules else points).append(point)
        return cls(tuple(points), tuple(others))

    @property
    def fastest(self) -> FrontPoint:
        return self.points[0]

    @property
    def thriftiest(self) -> FrontPoint:
        return self.points[-1]

    def some(self, most: int) -> tuple[FrontPoint, ...]:
        """At most so many points, both ends among them, the others as evenly over the joules as they come."""
        if len(self.points) <= most:
            return self.points
        if most == 1:
            return self.points[:1]
        low, high = self.thriftiest.joules, self.fastest.joules
        wanted = [high + (low - high) * at / (most - 1) for at in range(most)]
        used = np.array([point.joules for point in self.points])
        return tuple(self.points[at] for at in sorted({int(np.abs(used - joules).argmin()) for joules in wanted}))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"points": self.rows(), "moves": list(self.moves), "alternatives": list(self.alternatives)}

    def rows(self) -> list[dict[str, Any]]:
        """One for each point, the fastest first."""
        return [point.to_dict() for point in self.points]

    @property
    def moves(self) -> tuple[str, ...]:
        """What differs between the two ends, a sentence each."""
        return tuple(_moves(self.fastest, self.thriftiest))

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The thriftiest that was simulated with experts in either place, and under each cap, in sentences."""
        return tuple(_alternatives((*self.points, *self.others)))


def _alternatives(every: Sequence[FrontPoint]) -> Iterator[str]:
    on_cpu, on_gpu = "some experts on the CPU", "all experts on the GPU"
    places: dict[str, list[FrontPoint]] = {on_cpu: [], on_gpu: []}
    caps = dict[str, list[FrontPoint]]()
    for point in every:
        places[on_cpu if point.experts_on_cpu else on_gpu].append(point)
        if point.power_cap_w is not None:
            caps.setdefault(f"{point.power_cap_w:g} W a device", []).append(point)
    for kinds in (places, caps):
        if sum(map(bool, kinds.values())) > 1:
            yield f"the fewest joules simulated: {'; '.join(_least(*one) for one in kinds.items() if one[1])}"


def _least(kind: str, points: Sequence[FrontPoint]) -> str:
    least = min(points, key=lambda point: point.joules)
    return f"with {kind} {least.joules:.4g} J a token at {least.tokens_per_s:,.2f} tokens/s"


def _moves(fast: FrontPoint, thrifty: FrontPoint) -> Iterator[str]:
    if fast is thrifty:
        yield "one policy is both the fastest and the thriftiest"
        return
    less, slower = 1 - thrifty.joules / fast.joules, 1 - thrifty.tokens_per_s / fast.tokens_per_s
    yield f"the thriftiest takes {less:.1%} fewer joules a token than the fastest, and is {slower:.1%} slower"
    before, after = _traits_of(fast), _traits_of(thrifty)
    for what, at in before.items():
        other = after[what]
        yield f"{what} {at} at both" if at == other else f"{what} {at} at the fastest, {other} at the thriftiest"


def _traits_of(point: FrontPoint) -> dict[str, str]:
    one = point.candidate
    cap = point.power_cap_w
    return {
        "schedule": one.schedule,
        "experts computed on the CPU": f"{point.experts_on_cpu:.0%}",
        "attention": f"on the {one.policy.attention.upper()}",
        "batch": f"{one.num_requests:,} requests",
        "clocks": "as they are" if cap is None else f"at {cap:g} W a device",
    }
