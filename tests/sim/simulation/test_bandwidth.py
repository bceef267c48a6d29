"""Fair sharing: the max-min fair rates of progress, against their definition and against closed forms."""

import pytest
from exact_sharing import filled_exactly
from hypothesis import given, strategies as st
from schedule_rules import examples

from sim.simulation import fair_rates

TOLERANCE = 1e-9
POOLS = 3
CAPACITIES = st.lists(st.integers(1, 200), min_size=POOLS, max_size=POOLS)
DEMANDS = st.lists(
    st.dictionaries(st.integers(0, POOLS - 1), st.integers(1, 100), max_size=POOLS).map(lambda one: tuple(one.items())),
    max_size=7,
)


def load(demands, rates, pool):
    return sum(rate * dict(one).get(pool, 0) for one, rate in zip(demands, rates, strict=True))


def fastest_in(pool, demands, rates):
    return max(rate for one, rate in zip(demands, rates, strict=True) if pool in dict(one))


def lexicographic(rates):
    return [round(rate, 7) for rate in sorted(rates)]


# closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demands", "capacities", "rates"),
    [
        pytest.param([], [100], [], id="nothing runs"),
        pytest.param([()], [100], [1], id="no demands"),
        pytest.param([()], [], [1], id="no pools"),
        pytest.param([((0, 100),)], [100], [1], id="alone and exactly full"),
        pytest.param([((0, 200),)], [100], [0.5], id="alone and too much"),
        pytest.param([((0, 40),), ((0, 60),)], [100], [1, 1], id="both fit"),
        pytest.param([((0, 100),), ((0, 100),)], [100], [0.5, 0.5], id="equal halves"),
        pytest.param([((0, 20),), ((0, 40),), ((0, 140),)], [100], [0.5] * 3, id="fair in progress, not in bytes"),
        pytest.param([((0, 20),), ((0, 100),)], [100], [1 / 1.2, 1 / 1.2], id="MoE-Lens: 5 s of weights take 6 s"),
        pytest.param([((0, 1236),), ((0, 1236),)], [2232], [1116 / 1236] * 2, id="PCIe both ways: 12.36 to 11.16"),
        # pool 1 fills first, at one half, and leaves pool 0 enough for the first
        pytest.param(
            [((0, 60),), ((0, 60), (1, 60)), ((1, 140),)], [100, 100], [1, 0.5, 0.5], id="one freed by another pool"
        ),
        # pool 1 fills at 1/4; the others share what is left of pool 0: (100 - 20) / 160
        pytest.param(
            [((0, 80),), ((0, 80),), ((0, 80), (1, 80))], [100, 20], [0.5, 0.5, 0.25], id="the rest is shared again"
        ),
        pytest.param([((0, 0),), ((0, 200),)], [100], [1, 0.5], id="a demand of zero is none"),
    ],
)
def test_rates(demands, capacities, rates):
    assert fair_rates(demands, capacities) == pytest.approx(rates, abs=1e-12)


# the definition ------------------------------------------------------------------------------------------------------


@examples(100)
@given(demands=DEMANDS, capacities=CAPACITIES)
def test_no_pool_gives_more_than_it_has_and_no_task_runs_faster_than_alone(demands, capacities):
    rates = fair_rates(demands, capacities)
    assert all(0 < rate <= 1 for rate in rates)
    for pool, capacity in enumerate(capacities):
        assert load(demands, rates, pool) <= capacity * (1 + TOLERANCE)


@examples(100)
@given(demands=DEMANDS, capacities=CAPACITIES)
def test_who_is_slowed_uses_a_full_pool_in_which_nobody_is_faster(demands, capacities):
    """The definition of max-min fairness by bottlenecks, which also says that no pool idles while its users wait."""
    rates = fair_rates(demands, capacities)
    for one, rate in zip(demands, rates, strict=True):
        if rate < 1:
            full = [pool for pool, _ in one if load(demands, rates, pool) >= capacities[pool] * (1 - TOLERANCE)]
            assert any(rate >= fastest_in(pool, demands, rates) - TOLERANCE for pool in full)


@examples(100)
@given(demands=DEMANDS, capacities=CAPACITIES)
def test_rates_are_those_of_exact_progressive_filling(demands, capacities):
    assert fair_rates(demands, capacities) == pytest.approx(list(map(float, filled_exactly(demands, capacities))))


# what follows from it ----------------------------------------------------------------------------------------------


@examples(50)
@given(demands=DEMANDS, capacities=CAPACITIES, data=st.data())
def test_the_order_of_tasks_does_not_matter(demands, capacities, data):
    order = data.draw(st.permutations(range(len(demands))))
    rates = fair_rates(demands, capacities)
    assert fair_rates([demands[i] for i in order], capacities) == pytest.approx([rates[i] for i in order])


@examples(50)
@given(demands=DEMANDS, capacities=CAPACITIES, pool=st.integers(0, POOLS - 1), more=st.integers(1, 100))
def test_a_larger_pool_never_makes_the_slowest_slower(demands, capacities, pool, more):
    """Max-min fair is largest in the order that looks at the slowest task first, then at the next."""
    larger = [capacity + more * (number == pool) for number, capacity in enumerate(capacities)]
    assert lexicographic(fair_rates(demands, larger)) >= lexicographic(fair_rates(demands, capacities))


@examples(50)
@given(demands=DEMANDS, capacities=CAPACITIES, extra=DEMANDS)
def test_another_task_never_makes_the_slowest_faster(demands, capacities, extra):
    if demands:
        together = fair_rates([*demands, *extra], capacities)[: len(demands)]
        assert min(together) <= min(fair_rates(demands, capacities)) + TOLERANCE


@examples(50)
@given(wanted=st.lists(st.integers(1, 100), min_size=1, max_size=6), capacity=st.integers(1, 300))
def test_in_one_pool_all_slow_down_alike(wanted, capacity):
    expected = min(1.0, capacity / sum(wanted))
    assert fair_rates([((0, amount),) for amount in wanted], [capacity]) == pytest.approx([expected] * len(wanted))


@examples(50)
@given(demands=DEMANDS, capacities=CAPACITIES, factor=st.integers(2, 10**9))
def test_units_do_not_matter(demands, capacities, factor):
    larger = [tuple((pool, amount * factor) for pool, amount in one) for one in demands]
    scaled = fair_rates(larger, [capacity * factor for capacity in capacities])
    assert scaled == pytest.approx(fair_rates(demands, capacities))
