"""Layer 0: the named cases of the simulator's mechanics, and that they notice a simulator that is wrong."""

import pytest

from sim.schedule import registered
from sim.simulation import simulator
from validation.mechanics import Check, mechanics


def names_of_the_wrong():
    return [check.name for check in mechanics() if not check.exact]


@pytest.mark.parametrize("check", mechanics(), ids=lambda check: check.name)
def test_the_mechanics_hold_exactly(check):
    assert check.got == check.expected


def test_every_mechanism_and_every_schedule_has_a_case():
    names = " ".join(check.name for check in mechanics())
    for what in ("two-stage pipeline", "order of issue", "fair sharing", "work conservation", *registered()):
        assert what in names
    assert all(check.expected > 0 for check in mechanics())


def test_a_case_that_is_off_by_a_nanosecond_is_not_exact():
    assert Check("a", 5, 5).exact
    assert not Check("a", 5, 6).exact


def test_a_simulator_without_sharing_is_found_out(monkeypatch):
    monkeypatch.setattr(simulator, "fair_rates", lambda demands, capacities: [1.0] * len(demands))
    wrong = names_of_the_wrong()
    assert any("fair sharing" in name for name in wrong)
    assert any("work conservation" in name for name in wrong)


def test_a_simulator_that_shares_unfairly_is_found_out(monkeypatch):
    """The first of those who run is served in full, the others get what is left."""

    def greedy(demands, capacities):
        left = list(capacities)
        rates = []
        for one in demands:
            rate = min([1.0, *(left[pool] / amount for pool, amount in one if amount)])
            rates.append(max(rate, 1e-6))
            for pool, amount in one:
                left[pool] -= rate * amount
        return rates

    monkeypatch.setattr(simulator, "fair_rates", greedy)
    wrong = names_of_the_wrong()
    assert any("fair sharing" in name for name in wrong)
    assert not any("recurrence" in name for name in wrong)
