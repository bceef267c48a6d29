"""What fits no device otherwise is planned with whole layers on the host."""

import pytest
from sim_examples import preset, round_machine

from sim.planning import NothingFitsError, best_policy, plan
from sim.planning.explanation import explain, sentences
from sim.problem import Problem, Workload
from sim.schedule import by_name


def problem(device_bytes):
    machine = round_machine(device_memory__capacity=device_bytes)
    return Problem(preset("mixtral-8x7b"), machine, Workload.fixed(100, 4))


@pytest.mark.parametrize(
    ("schedule", "device_bytes", "layers"),
    [
        ("n-cpu-moe", 1.3e9, (0, 23)),
        ("n-cpu-moe", 0.6e9, (0, 32)),
        ("hybrid", 0.6e9, (0, 32)),
    ],
)
def test_a_device_that_holds_little_more_than_the_head_is_enough(schedule, device_bytes, layers):
    plan = best_policy(problem(device_bytes), by_name(schedule), num_requests=1)
    assert plan.best.policy.layers_on_host == layers
    assert plan.best.throughput_tokens_per_s <= plan.best.bound_tokens_per_s


def test_hybrid_streams_all_weights_where_there_is_room_for_their_slots():
    policy = best_policy(problem(1.3e9), by_name("hybrid"), num_requests=1).best.policy
    assert (policy.layers_on_host, policy.stream_non_experts) == (None, True)


def test_where_all_fits_no_layer_is_left_to_the_host():
    assert best_policy(problem(64e9), by_name("n-cpu-moe"), num_requests=1).best.policy.layers_on_host is None


def test_where_even_that_does_not_fit_the_lack_is_that_with_all_layers_on_the_host():
    machine = round_machine(device_memory__capacity=1.3e9, host_memory__capacity=60e9)
    asked = Problem(preset("mixtral-8x7b"), machine, Workload.fixed(100, 4))
    with pytest.raises(NothingFitsError, match="host memory is") as raised:
        best_policy(asked, by_name("n-cpu-moe"), num_requests=1)
    assert "device memory" not in str(raised.value)
    assert raised.value.short_bytes == pytest.approx(93.4e9 - 60e9, rel=0.05)


def test_the_plan_says_so_in_words():
    choice = plan(problem(1.3e9), ["n-cpu-moe"], jobs=1, num_requests=1)
    why = explain(choice, jobs=1, replan=False)
    assert any(text.startswith("The first 23 of 32 layers whole on the host: ") for text in sentences(choice, why))
