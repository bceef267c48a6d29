"""The best plan under several power caps, and the front of speed against energy over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim.planning.energy.caps import PowerCap
from sim.planning.energy.front import Front
from sim.planning.energy.prices import Prices
from sim.planning.search import AboveLimitError, Candidate, Choice, ranked
from sim.problem import Problem


@dataclass(frozen=True, slots=True)
class PlanUnderCaps:
    """The choice, the cap that it is under, if any, and the front, if it was asked for."""

    choice: Choice
    cap: PowerCap | None
    caps: tuple[PowerCap, ...]
    front: Front | None

    def add_to(self, answer: dict[str, Any], prices: Prices) -> None:
        """Give a plan as JSON values the cap and the front, and all results in it what they cost."""
        if self.cap is not None:
            answer["power_cap"] = self.cap.to_dict()
        points = [] if self.front is None else self.front.rows()
        if self.front is not None:
            answer["energy_front"] = {**self.front.to_dict(), "points": points}
        prices.add_to(answer, [answer, *answer["top"], *points], self.choice.problem.workload.gen_len)


def plan_under_caps(
    problem: Problem, watts: Sequence[float], choose: Callable[[Problem], Choice], *, with_front: bool
) -> PlanUnderCaps:
    """Plan with each device held to each of these watts, or with the machine as it is where there are none.

    Raises InputError for watts so few that nothing is known of the clocks, AboveLimitError with the fewest joules of
    any cap, and NothingFitsError, which no cap changes.
    """
    caps = tuple(PowerCap.of(problem.hardware, one) for one in watts)
    choices, above = list[tuple[PowerCap | None, Choice]](), list[AboveLimitError]()
    simulated = list[tuple[float | None, list[Candidate]]]()
    for cap in caps or (None,):
        try:
            choice = choose(problem if cap is None else replace(problem, hardware=cap.after))
        except AboveLimitError as error:
            above.append(error)
            plans = error.plans
        else:
            choices.append((cap, choice))
            plans = (*choice.plans.values(), *choice.above.values())
        found = [one for plan in plans for one in plan.found.values()] if with_front else []
        simulated.append((cap.watts if cap else None, found))
    if not choices:
        raise min(above, key=lambda one: one.least_joules)
    first = choices[0][1]
    best = ranked([choice.best for _, choice in choices], first.objective, first.most_joules)[0]
    cap, choice = next(one for one in choices if one[1].best is best)
    return PlanUnderCaps(choice, cap, caps, Front.of(simulated) if with_front else None)
