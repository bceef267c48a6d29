"""Errors, rankings, regret and spread, against hand-computed values and what must hold of them."""

import math

import pytest
from hypothesis import given, strategies as st
from schedule_rules import examples

from traces.errors import InputError
from validation.metrics import Ranking, bias, kendall_tau, mape, regret, relative_error, spread_of, wape

POSITIVE = st.floats(1e-3, 1e6)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=12)
DISTINCT = st.lists(st.integers(1, 10**6), min_size=2, max_size=9, unique=True)


def split(pairs):
    return [p for p, _ in pairs], [m for _, m in pairs]


# errors ------------------------------------------------------------------------------------------------------------


def test_errors_by_hand():
    """Off by +10 of 100, by -10 of 50, and by nothing: 10 % + 20 % + 0 % in the mean; 20 of 200 in all; they cancel."""
    predicted, measured = [110, 40, 50], [100, 50, 50]
    assert mape(predicted, measured) == pytest.approx(0.1)
    assert wape(predicted, measured) == pytest.approx(0.1)
    assert bias(predicted, measured) == 0
    assert mape([2, 100], [1, 100]) == pytest.approx(0.5)
    assert wape([2, 100], [1, 100]) == pytest.approx(1 / 101)
    assert bias([2, 100], [1, 100]) == pytest.approx(1 / 101)
    assert bias([1, 100], [2, 100]) == pytest.approx(-1 / 102)


def test_a_relative_error_has_the_sign_of_the_prediction_s_mistake():
    assert relative_error(110, 100) == pytest.approx(0.1)
    assert relative_error(90, 100) == pytest.approx(-0.1)


@examples(60)
@given(pairs=PAIRS)
def test_errors_of_the_same_kind_are_ordered(pairs):
    predicted, measured = split(pairs)
    assert abs(bias(predicted, measured)) <= wape(predicted, measured) * (1 + 1e-9)
    worst = max(abs(p - m) / m for p, m in pairs)
    assert wape(predicted, measured) <= worst * (1 + 1e-9)
    assert mape(predicted, measured) <= worst * (1 + 1e-9)


@examples(60)
@given(pairs=PAIRS, unit=st.floats(1e-3, 1e3))
def test_errors_have_no_unit(pairs, unit):
    predicted, measured = split(pairs)
    for error in (mape, wape, bias):
        scaled = error([unit * p for p in predicted], [unit * m for m in measured])
        assert scaled == pytest.approx(error(predicted, measured), rel=1e-9, abs=1e-9)


@examples(60)
@given(measured=st.lists(POSITIVE, min_size=1, max_size=12), factor=st.floats(0.1, 10))
def test_a_prediction_that_is_off_by_a_factor_is_off_by_it_in_every_sense(measured, factor):
    predicted = [factor * m for m in measured]
    assert mape(predicted, measured) == pytest.approx(abs(factor - 1), abs=1e-9)
    assert wape(predicted, measured) == pytest.approx(abs(factor - 1), abs=1e-9)
    assert bias(predicted, measured) == pytest.approx(factor - 1, abs=1e-9)


@pytest.mark.parametrize("error", [mape, wape, bias, regret])
@pytest.mark.parametrize(
    ("predicted", "measured", "said"),
    [
        ([1, 2], [1], "2 values for 1 measured"),
        ([], [], "no measured values"),
        ([1, 1], [1, 0], r"measured\[1\] is 0"),
        ([1], [math.nan], "is nan"),
    ],
)
def test_what_has_no_relative_error_is_refused(error, predicted, measured, said):
    with pytest.raises(InputError, match=said):
        error(predicted, measured)


# rankings ----------------------------------------------------------------------------------------------------------


def test_tau_by_hand():
    """Of the six pairs of 1, 2, 3, 4 ranked as 1, 3, 2, 4 one is the wrong way round: (5 - 1) / 6."""
    assert kendall_tau([1, 3, 2, 4], [1, 2, 3, 4]) == Ranking(pytest.approx(4 / 6), 6, 0)
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == Ranking(1.0, 3, 0)
    assert kendall_tau([3, 2, 1], [10, 20, 30]) == Ranking(-1.0, 3, 0)


def test_a_predicted_tie_is_half_right():
    assert kendall_tau([1, 1, 2], [10, 20, 30]).tau == pytest.approx(2 / 3)


def test_pairs_within_the_noise_do_not_count():
    """100 ± 3 and 105 ± 2 touch, so that their order says nothing; both are clearly below 120 ± 1."""
    ranking = kendall_tau([9, 8, 20], [100, 105, 120], [3, 2, 1])
    assert ranking == Ranking(1.0, 2, 1)
    assert kendall_tau([9, 8, 20], [100, 105, 120], [3, 1.9, 1]) == Ranking(pytest.approx(1 / 3), 3, 0)


def test_without_a_pair_to_tell_apart_there_is_no_tau():
    assert kendall_tau([1, 2], [5, 5]) == Ranking(None, 0, 1)
    assert kendall_tau([1], [5]) == Ranking(None, 0, 0)
    assert kendall_tau([], []) == Ranking(None, 0, 0)


@examples(60)
@given(measured=DISTINCT, data=st.data())
def test_tau_without_ties_is_that_of_scipy(measured, data):
    from scipy.stats import kendalltau

    predicted = data.draw(st.permutations(measured))
    assert kendall_tau(predicted, measured).tau == pytest.approx(kendalltau(predicted, measured).statistic)


@examples(60)
@given(measured=DISTINCT, data=st.data())
def test_tau_changes_its_sign_with_the_order_and_sees_ranks_only(measured, data):
    predicted = data.draw(st.permutations(measured))
    tau = kendall_tau(predicted, measured).tau
    assert kendall_tau([-p for p in predicted], measured).tau == pytest.approx(-tau)
    assert kendall_tau([p**3 for p in predicted], measured).tau == tau


def test_each_value_has_its_own_spread():
    with pytest.raises(InputError, match="1 values for 2"):
        kendall_tau([1, 2], [1, 2], [0.1])


# regret ------------------------------------------------------------------------------------------------------------


def test_regret_is_what_the_chosen_one_lacks_of_the_best():
    assert regret([5, 9, 7], [100, 90, 80]) == pytest.approx(0.1)
    assert regret([9, 5, 7], [100, 90, 80]) == 0
    assert regret([7, 7], [80, 100]) == pytest.approx(0.2)


@examples(60)
@given(pairs=PAIRS)
def test_regret_is_a_share_and_zero_for_the_right_choice(pairs):
    predicted, measured = split(pairs)
    assert 0 <= regret(predicted, measured) < 1
    assert regret(measured, measured) == 0


# spread ------------------------------------------------------------------------------------------------------------


def test_spread_by_hand():
    spread = spread_of([4, 10, 5])
    assert (spread.median, spread.low, spread.high, spread.count) == (5, 4, 10, 3)
    assert spread.half_width == 3
    assert spread_of([7]).half_width == 0
    with pytest.raises(InputError, match="no values"):
        spread_of([])
