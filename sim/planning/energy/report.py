"""What a plan tells of energy and money."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.planning.energy.caps import PowerCap
from sim.planning.energy.front import Front, FrontPoint
from sim.planning.energy.prices import MILLION, MONEY, Prices
from sim.planning.energy.under_caps import PlanUnderCaps
from sim.planning.report import in_short, seconds
from sim.problem import LAW_OF_CAPS
from traces.cli import TEXT, WORDS, Report


def print_speed_and_energy(found: PlanUnderCaps, prices: Prices, top: int) -> None:
    """Print the front, if it was asked for, and what tokens of each schedule's best cost, if there are prices."""
    if found.front is not None:
        print_front(found.front, found.caps, prices, top)
    if prices.given:
        gen_len = found.choice.problem.workload.gen_len
        bests = ((name, plan.best.to_dict()) for name, plan in found.choice.plans.items())
        print_money((name, {**one, **prices.cells(one, gen_len)}) for name, one in bests)


def print_front(front: Front, caps: Sequence[PowerCap], prices: Prices, top: int) -> None:
    """Print the points of the front, what moves along it, and what becomes of the machine under each cap."""
    out = Report()
    cap = {"cap W": ",.4g"} if caps else {}
    money = {"money/M": ",.4g"} if prices.given else {}
    core = {"schedule": TEXT, "policy": WORDS, "tokens/s": ",.2f", "J/token": ",.4g", **money}
    where = {"W": ",.0f", **cap, "a token": ">", "experts on CPU": ".0%", "attention": TEXT, "requests": ","}
    shown = front.some(top)
    of_all = f"{len(shown)} of {len(front.points)}" if len(shown) < len(front.points) else "all"
    rows = (_row(point, prices, with_cap=bool(caps)) for point in shown)
    out.table([core, where], rows, f"speed against energy: {of_all} policies than which none is better in both", keys=2)
    out.say(_sentence("; ".join(front.moves)), *map(_sentence, front.alternatives), *map(str, caps))
    if caps:
        out.say(f"Clocks under a cap: {LAW_OF_CAPS}.")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def print_money(results: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Print what the tokens of some results cost, as JSON values that have been given it."""
    columns = {"schedule": TEXT, "tokens/s": ",.2f", "J/token": ",.4g", "money/M": ",.4g", "money a request": ",.3g"}
    names = ("throughput_tokens_per_s", "energy_j_per_token", *MONEY)
    rows = ((name, *(one[field] for field in names)) for name, one in results)
    Report().table(columns, rows, "what generated tokens cost")


def _row(point: FrontPoint, prices: Prices, *, with_cap: bool) -> tuple[Any, ...]:
    one = point.candidate
    money = (prices.of_a_token(point.tokens_per_s, point.joules) * MILLION,) if prices.given else ()
    cap = (point.power_cap_w,) if with_cap else ()
    rates = (point.tokens_per_s, point.joules, *money, point.watts, *cap, seconds(one.seconds_per_token))
    return one.schedule, in_short(one.policy), *rates, point.experts_on_cpu, one.policy.attention, one.num_requests
