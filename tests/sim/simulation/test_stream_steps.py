"""Steps of a stream on the compiled path are those of SimPy, to the nanosecond, whatever they carry."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from schedule_rules import examples
from setup_examples import machines, split_policies
from sim_examples import few_layers, round_machine, with_hand_over
from stream_examples import any_requests, served_by

from sim.admission import RequestStream
from sim.problem import Policy, Problem, Routing, Workload
from sim.schedule import by_name, registered
from sim.simulation import StepTimes, StreamSetup, serve_stream

MIXING = sorted(name for name in registered() if by_name(name).system.mixes)
WORKLOAD = Workload("any", (40,), 20)


@st.composite
def stream_setups(draw, schedule):
    """A small pipeline whose lanes and pools bind in any combination."""
    machine = draw(machines().filter(lambda one: one.num_devices == 1))
    machine = with_hand_over(machine, draw(st.sampled_from([0, 0, 30])))
    size, count = draw(st.sampled_from([1, 3])), draw(st.integers(1, 3))
    policy = {
        "pin_weights": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "experts_on_device": draw(st.sampled_from([0, 0.5])),
    }
    if by_name(schedule).system.splits_experts:
        policy |= draw(split_policies(by_name(schedule).system, count))
    else:
        policy |= draw(st.sampled_from([{}, {"attention": "gpu"}, {"attention_on_device": 0.5}]))
    model = few_layers("mixtral-8x7b", draw(st.integers(1, 4)), draw(st.sampled_from([None, 50])))
    problem = Problem(model, machine, WORKLOAD, Routing.parse(draw(st.sampled_from(["uniform", "zipf:1"]))))
    fields = {**policy, "kv_on_device": 0.0, "pages": draw(st.sampled_from([None, 1, 5]))}
    made = Policy.usual(by_name(schedule), size * count, size, **fields)
    return StreamSetup(problem, by_name(schedule), made, draw(st.sampled_from([7, 64])), draw(st.integers(1, 2)))


@pytest.mark.parametrize("schedule", MIXING)
@examples(12)
@given(data=st.data())
def test_compiled_steps_are_those_of_simpy(schedule, data):
    setup = data.draw(stream_setups(schedule))
    compositions = [one.composition for one in served_by(setup.rules(), data.draw(any_requests(8)), 12)]
    simpy, compiled = StepTimes(setup, compiled=False), StepTimes(setup)
    for before, now in pairwise([None, *compositions]):
        if now.is_empty:
            break
        assert compiled.span_ns(before, now) == simpy.span_ns(before, now)
    assert {name: one.busy_ns for name, one in compiled.lanes.items()} == {
        name: one.busy_ns for name, one in simpy.lanes.items() if one.busy_ns or name in compiled.lanes
    }


def test_what_is_remembered_is_forgotten_and_found_again(monkeypatch):
    """However few steps are kept, a stream takes as long."""
    problem = Problem(few_layers("mixtral-8x7b", 2), round_machine(), Workload("some", (30, 70), 6))
    setup = StreamSetup(problem, by_name("cgopipe"), Policy(8, 4), 64)
    stream = RequestStream.of(problem.workload, 24)
    whole = serve_stream(setup, stream)
    monkeypatch.setattr("sim.simulation.stream.steps.MOST_KEPT", 2)
    assert replace(serve_stream(setup, stream), num_simulated=0) == replace(whole, num_simulated=0)
