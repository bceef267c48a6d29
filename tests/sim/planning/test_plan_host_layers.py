"""What fits no device otherwise is planned with whole layers on the host."""

import pytest
from sim_examples import preset, round_machine

from sim.planning import best_policy
from sim.problem import Problem, Workload
from sim.schedule import by_name


def problem(device_bytes):
    machine = round_machine(device_memory__capacity=device_bytes)
    return Problem(preset("mixtral-8x7b"), machine, Workload.fixed(100, 4))


@pytest.mark.parametrize("schedule", ["n-cpu-moe"])
def test_a_device_that_holds_little_more_than_the_head_is_enough(schedule):
    plan = best_policy(problem(1.3e9), by_name(schedule), num_requests=1)
    first, stop = plan.best.policy.layers_on_host
    assert first == 0 < stop <= 32
    assert plan.best.throughput_tokens_per_s <= plan.best.bound_tokens_per_s


def test_where_all_fits_no_layer_is_left_to_the_host():
    assert best_policy(problem(64e9), by_name("n-cpu-moe"), num_requests=1).best.policy.layers_on_host is None
