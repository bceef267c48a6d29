"""What generated tokens cost, in whatever money the user counts: for the machine's time, its energy, or both."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from traces.errors import InputError, check_range

if TYPE_CHECKING:
    from sim.problem import Hardware

HOUR_S = 3600.0
KWH_J = 3.6e6
MILLION = 1e6
MOST_PRICE = 1e15

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

    def check(self, hardware: "Hardware") -> None:
        """Raise InputError for a price of energy on a machine that does not say what it draws."""
        if self.per_kwh and hardware.power is None:
            raise InputError(f"--price-per-kwh: {hardware.name} does not say what it draws: give it power.device.limit")

    def cells(self, result: Mapping[str, Any], tokens_per_request: float) -> dict[str, float | None]:
        """What a result as JSON values gains: nothing without a price, and no numbers where it has none."""
        rate, joules = result["throughput_tokens_per_s"], result["energy_j_per_token"]
        if not self.given:
            return {}
        if rate is None or (self.per_kwh and joules is None):
            return dict.fromkeys(MONEY)
        token = self.of_a_token(rate, joules or 0.0)
        return dict(zip(MONEY, (token * MILLION, token * tokens_per_request), strict=True))

    def add_to(self, answer: dict[str, Any], results: Iterable[dict[str, Any]], tokens_per_request: float) -> None:
        """Give results what they cost, and an answer as JSON values the prices; nothing where there are none."""
        for one in results:
            one.update(self.cells(one, tokens_per_request))
        if self.given:
            answer["prices"] = self.to_dict()


def add_prices(group: Any) -> None:
    """Add both to a parser or a group of it."""
    hour = "of the whole machine: adds money per million generated tokens and per request to results"
    group.add_argument("--price-per-hour", type=float, metavar="MONEY", help=hour)
    group.add_argument("--price-per-kwh", type=float, metavar="MONEY", help="of energy, beside it or alone")
