"""Laws that plans keep: never below policies drawn at random, never worse with more, long prompts first or last."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from plan_examples import SMALL, planned, problems, simple_problem
from setup_examples import split_policies
from sim_examples import few_layers, round_machine

from sim.cost import Setup
from sim.planning import NothingFitsError, best_policy, plan
from sim.problem import Policy, Problem, Workload
from sim.schedule import by_name, registered
from sim.simulation import predict
from traces.errors import InputError

ALL = sorted(registered())
ONE_BATCH = [name for name in ALL if by_name(name).system.one_batch]
FEW = settings(deadline=None, derandomize=True, max_examples=12)
MANY = settings(FEW, max_examples=150)

LONG_FIRST = Workload("long first", (1000, 20, 30), 8)

OFF_THE_GRID = 0.02
"""What sizes between those of the grid may gain."""


@st.composite
def policies(draw, schedule):
    """Any policy that a schedule takes."""
    system, size = schedule.system, draw(st.sampled_from([1, 3, 8, 33, 100, 300]))
    count = draw(st.sampled_from([1, 1, 2, 4, 10]))
    fields = {"pin_weights": draw(st.sampled_from([0.0, 0.5, 1.0]))}
    if system.splits_experts:
        fields |= draw(split_policies(system, count))
    else:
        fields["experts_on_device"] = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    return Policy.usual(schedule, size * count, size, **fields)


def beaten_by(problem, schedule, drawn):
    """How much faster the best of some policies is than the plan, as a ratio; 0 where none fits."""
    rates = [0.0]
    for policy in drawn:
        with suppress(InputError):  # what the schedule does not do, or what does not fit
            rates.append(predict(Setup(problem, schedule, policy), compiled=True).throughput_tokens_per_s)
    try:
        best = best_policy(problem, schedule, mix_attention=True).best
    except NothingFitsError:
        assert max(rates) == 0, "a plan is refused that there is"
        return 0.0
    return max(rates) / best.throughput_tokens_per_s


def check_drawn(problem, data, names):
    schedule = by_name(data.draw(st.sampled_from(names)))
    drawn = data.draw(st.lists(policies(schedule), min_size=5, max_size=10))
    assert beaten_by(problem, schedule, drawn) <= 1 + OFF_THE_GRID


@given(problem=problems(most_gen_len=6, most_layers=3), data=st.data())
@FEW
def test_a_plan_is_not_below_policies_drawn_at_random(problem, data):
    check_drawn(problem, data, ONE_BATCH)


@pytest.mark.exhaustive
@given(problem=problems(most_gen_len=6, most_layers=3), data=st.data())
@MANY
def test_no_schedules_plan_is_below_policies_drawn_at_random(problem, data):
    check_drawn(problem, data, ALL)


@pytest.mark.parametrize("name", ONE_BATCH)
def test_a_schedule_of_one_batch_takes_no_several_micro_batches(name):
    """They would share a layer's weights, which the system does not do, and be faster than any plan of it."""
    problem, schedule = simple_problem(), by_name(name)
    with pytest.raises(InputError, match=rf"num_micro_batches: 3 is not what {name} does.*give micro_batch_size 6"):
        Setup(problem, schedule, Policy.usual(schedule, 6, 2))
    assert Setup(problem, schedule, Policy.usual(schedule, 6, 6)).shape.num_micro_batches == 1


@pytest.mark.parametrize("name", ALL)
def test_a_first_prompt_longer_than_the_average_room_is_planned_for(name):
    """A batch of its first request alone holds none, and is passed over; permuted, the same requests fit all."""
    problem = Problem(few_layers("mixtral-8x7b", 3), round_machine(), LONG_FIRST)
    assert planned(problem, by_name(name)).best.num_requests >= 1


def test_where_no_size_holds_the_first_prompt_that_is_why():
    problem = Problem(few_layers("mixtral-8x7b", 3), round_machine(), LONG_FIRST)
    for name in ("cgopipe", "hybrid"):
        with pytest.raises(NothingFitsError, match=f"{name}: kv budget of 358 tokens a micro-batch: holds no request"):
            planned(problem, by_name(name), micro_batch_size=1, num_micro_batches=1)


@pytest.mark.parametrize("name", ["cgopipe", "zero", "hybrid"])
@pytest.mark.parametrize("path", ["link.h2d", "device.peak", "host_memory.capacity", "device_memory.capacity"])
def test_more_of_a_resource_never_lowers_the_best_plan(name, path):
    problem = simple_problem(gen_len=4, num_layers=2)
    problem = replace(problem, hardware=problem.hardware.with_value("device_memory.capacity", 9e9))
    more = replace(problem, hardware=problem.hardware.scaled(path, 1.7))
    rates = [
        best_policy(one, by_name(name), grid=SMALL, refine=False).best.throughput_tokens_per_s
        for one in (problem, more)
    ]
    assert rates[1] >= rates[0] * (1 - 1e-3)


def test_the_same_plan_from_any_number_of_processes():
    found = [
        plan(simple_problem(), ["cgopipe", "zero"], grid=SMALL, refine=False, jobs=jobs).to_dict() for jobs in (1, 2)
    ]
    assert found[0] == found[1]
