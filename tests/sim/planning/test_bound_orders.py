"""Bounds of schedules that no one knew when the bounds were written: what holds of them is seen in their own order."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from own_slots import TwoAhead
from plan_examples import SMALL, assert_nothing_is_faster, problems
from schedule_rules import Backwards

from sim.planning.bounds.order import DecodeOrder
from sim.planning.policies import candidates_of
from sim.schedule import by_name, registered

ROOT = Path(__file__).resolve().parents[3]
(SOURCE,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/schedules.md").read_text("utf-8"), re.M | re.S)

DOCS: dict[str, object] = {}
exec(SOURCE, DOCS)
OTHERS = {"two-ahead": TwoAhead(), "docs": DOCS["Eager"](), "backwards": Backwards()}


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(problem=problems(), at=st.floats(0, 1))
def test_nothing_is_simulated_to_be_faster(name, problem, at):
    found = candidates_of(problem, OTHERS[name], SMALL)
    if len(found):
        assert_nothing_is_faster(found, at)


def test_the_order_says_what_the_system_does():
    orders = {
        name: DecodeOrder.of(schedule) for name, schedule in registered().items() if not schedule.system.splits_experts
    }
    assert [name for name, order in orders.items() if order.meets] == ["flexgen-c", "flexgen", "accelerate"]
    assert [name for name, order in orders.items() if order.stages] == ["cgopipe", "fastdecode"]
    assert [name for name, order in orders.items() if order.beside_hidden] == ["cgopipe", "fastdecode"]
    assert orders["cgopipe"].lookahead == orders["fastdecode"].lookahead == 2
    assert orders["zero"].lookahead == 1
    assert DecodeOrder.of(Backwards()).lookahead is None
    assert DecodeOrder.of(by_name("cgopipe")).outside == 1
