"""No number that a command gives changes by accident: each answer equals the one that was stored."""

import pytest
from cases import CASES
from golden import answer, differences, known, stored

SLOWEST = "compare-four-devices"
"""Half a minute for what compare-two-devices touches too."""

ALL = [pytest.param(one, id=one.name, marks=[pytest.mark.exhaustive] * (one.name == SLOWEST)) for one in CASES]


@pytest.mark.parametrize("case", ALL)
def test_a_command_says_what_it_said(case):
    assert list(differences(stored(case.name), answer(case))) == []


def test_what_is_known_is_what_was_known():
    assert list(differences(stored("list"), known())) == []


def test_a_difference_is_seen_wherever_it_is():
    was = {"a": [1.0, {"b": 2}], "c": "x"}
    assert list(differences(was, {"a": [1.0 + 1e-12, {"b": 2}], "c": "x"})) == []
    assert list(differences(was, {"a": [1.0 + 1e-8, {"b": 3}], "d": "x"})) == [
        ".a[0]: 1.0 became 1.00000001",
        ".a[1].b: 2 became 3",
        ".c: only before",
        ".d: only now",
    ]
