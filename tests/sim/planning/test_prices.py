"""What generated tokens cost: for the machine's time, for its energy, and for both."""

import pytest
from sim_examples import round_machine

from sim.planning import MONEY, Prices
from traces.errors import InputError

RESULT = {"throughput_tokens_per_s": 20.0, "energy_j_per_token": 3.6}


def test_a_million_tokens_and_a_request():
    """50,000 s at 0.36 an hour are 5; 3.6 MJ are a kilowatt hour. A request generates 50 tokens."""
    assert Prices(0.36, 0.25).cells(RESULT, 50) == pytest.approx({MONEY[0]: 5.25, MONEY[1]: 5.25 * 50e-6})
    assert Prices(per_hour=0.36).cells(RESULT, 50)[MONEY[0]] == pytest.approx(5.0)
    assert Prices(per_kwh=0.25).cells(RESULT, 50)[MONEY[0]] == pytest.approx(0.25)


def test_without_a_price_results_are_as_they_were():
    assert Prices().cells(RESULT, 50) == {}
    assert not Prices().given
    assert Prices(per_hour=0.0).given


def test_what_does_not_fit_costs_nothing_that_is_known():
    assert Prices(1.0).cells({"throughput_tokens_per_s": None, "energy_j_per_token": None}, 50) == dict.fromkeys(MONEY)


def test_energy_of_a_machine_of_unknown_watts_has_no_price():
    unknown = {**RESULT, "energy_j_per_token": None}
    assert Prices(0.36).cells(unknown, 50)[MONEY[0]] == pytest.approx(5.0)
    assert Prices(0.36, 0.2).cells(unknown, 50) == dict.fromkeys(MONEY)
    Prices(0.36).check(round_machine())
    with pytest.raises(InputError, match=r"^--price-per-kwh: round does not say what it draws"):
        Prices(0.36, 0.2).check(round_machine())


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_what_is_no_price_is_refused_by_name(price):
    with pytest.raises(InputError, match=r"^--price-per-kwh: .* is not allowed"):
        Prices(per_kwh=price)
