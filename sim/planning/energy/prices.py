"""What generated tokens cost, in whatever money the user counts: for the machine's time, its energy, or both."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from traces.errors import InputError, check_range

if TYPE_CHECKING:
    from sim.problem import Problem

HOUR_S = 3600.0
KWH_J = 3.6e6
MILLION = 1e6
MOST_PRICE = 1e15

OF_ONE_BATCH = "prices are of one batch, and --requests asks for a stream of them"

MONEY = ("money_per_million_tokens", "money_per_request")
"""What results gain where a price is given."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of an hour of the whole machine, and of a kilowatt hour; what is not given costs nothing."""

    per_hour: float | None = None
    per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name in ("per_hour", "per_kwh"):
            if getattr(self, name) is not None:
                check_range(f"--price-{name.replace('_', '-')}", getattr(self, name), 0.0, MOST_PRICE)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """As the options say. Raises InputError for what is no price."""
        return cls(args.price_per_hour, args.price_per_kwh)

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self.per_hour is not None or self.per_kwh is not None

    def of_a_token(self, tokens_per_s: float, joules: float) -> float:
        """Money for one generated token, which takes so many joules of the whole machine."""
        return (self.per_hour or 0.0) / HOUR_S / tokens_per_s + (self.per_kwh or 0.0) / KWH_J * joules

    def to_dict(self) -> dict[str, float | None]:
        """As JSON values."""
        return asdict(self)

    def cells(self, result: Mapping[str, Any], problem: "Problem") -> dict[str, float | None]:
        """What a result as JSON values gains: nothing without a price, and no numbers where it has no rate."""
        rate = result.get("throughput_tokens_per_s")
        if not self.given:
            return {}
        if rate is None:
            return dict.fromkeys(MONEY)
        joules = result["energy_j_per_token"]
        if self.per_kwh and joules is None:
            machine = problem.hardware.name
            raise InputError(f"--price-per-kwh: {machine} does not say what it draws: give it power.device.limit")
        token = self.of_a_token(rate, joules or 0.0)
        return dict(zip(MONEY, (token * MILLION, token * problem.workload.gen_len), strict=True))

    def add_to(self, plan: dict[str, Any], problem: "Problem") -> None:
        """Give a plan's JSON values, and those of all candidates in it, what they cost."""
        front = plan.get("energy_front", {}).get("points", ())
        for one in (plan, *plan["top"], *front):
            one.update(self.cells(one, problem))
        if self.given:
            plan["prices"] = self.to_dict()


def add_prices(group: Any) -> None:
    """Add both to a parser or a group of it."""
    hour = "of the whole machine: adds money per million generated tokens and per request to results"
    group.add_argument("--price-per-hour", type=float, metavar="MONEY", help=hour)
    group.add_argument("--price-per-kwh", type=float, metavar="MONEY", help="of energy, beside it or alone")


def refuse_prices(args: argparse.Namespace, why: str) -> None:
    """Raise InputError for a price where results have no use of it."""
    for option, price in (("--price-per-hour", args.price_per_hour), ("--price-per-kwh", args.price_per_kwh)):
        if price is not None:
            raise InputError(f"{option}: {why}: leave it out")
