"""What a plan tells of energy and money."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sim.planning.energy.caps import PowerCap
from sim.planning.energy.front import Front, FrontPoint
from sim.planning.energy.prices import MILLION, Prices
from sim.planning.report import in_short, seconds
from sim.problem import LAW_OF_CAPS
from sim.simulation import Prediction
from traces.cli import TEXT, WORDS, Report


def print_front(front: Front, caps: Sequence[PowerCap], prices: Prices, top: int) -> None:
    """Print the points of the front, what moves along it, and what becomes of the machine under each cap."""
    out = Report()
    cap = {"cap W": ",.4g"} if caps else {}
    money = {"money/M": ",.4g"} if prices.given else {}
    core = {"schedule": TEXT, "policy": WORDS, "tokens/s": ",.2f", "J/token": ",.4g", **money}
    where = {"W": ",.0f", **cap, "a token": ">", "on CPU": ".0%", "attention": TEXT, "requests": ","}
    shown = front.some(top)
    of_all = f"{len(shown)} of {len(front.points)} points" if len(shown) < len(front.points) else "all points"
    rows = (_row(point, prices, with_cap=bool(caps)) for point in shown)
    out.table([core, where], rows, f"speed against energy: {of_all} that no other is better than in both", keys=2)
    out.say(_sentence("; ".join(front.moves)), *map(_sentence, front.alternatives), *map(str, caps))
    if caps:
        out.say(f"Clocks under a cap: {LAW_OF_CAPS}.")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def print_money(results: Iterable[tuple[str, Prediction]], prices: Prices) -> None:
    """Print what the tokens of some schedules cost, if there are prices."""
    if not prices.given:
        return
    of_energy = replace(prices, per_hour=None)
    columns = {"schedule": TEXT, "tokens/s": ",.2f", "J/token": ",.4g", "money/M": ",.4g", "of it energy": ".0%"}
    rows = []
    for name, one in results:
        joules = one.energy.j_per_token if one.energy else None
        token, part = (each.of_a_token(one.throughput_tokens_per_s, joules or 0.0) for each in (prices, of_energy))
        per_request = token * one.setup.problem.workload.gen_len
        rows.append((name, one.throughput_tokens_per_s, joules, token * MILLION, token and part / token, per_request))
    Report().table({**columns, "a request": ",.3g"}, rows, "what generated tokens cost")


def _row(point: FrontPoint, prices: Prices, *, with_cap: bool) -> tuple[Any, ...]:
    one = point.candidate
    money = (prices.of_a_token(point.tokens_per_s, point.joules) * MILLION,) if prices.given else ()
    cap = (point.power_cap_w,) if with_cap else ()
    rates = (point.tokens_per_s, point.joules, *money, point.watts, *cap, seconds(one.seconds_per_token))
    return one.schedule, in_short(one.policy), *rates, point.experts_on_cpu, one.policy.attention, one.num_requests
