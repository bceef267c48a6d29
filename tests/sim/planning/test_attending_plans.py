"""The plan's look at attention of some micro-batches on the device: better where the CPU binds, and within memory."""

from dataclasses import replace

import pytest
from sim_examples import few_layers, made_setup, round_machine

from sim.planning.bounds import lanes_tokens_per_s
from sim.planning.policies import attending_beside, most_locked
from sim.planning.search import Candidate, Objective, Plan
from sim.problem import Workload

N = 6


def bound_by_the_cpu(**policy):
    """Long prompts before slow cores; all experts are on the device."""
    machine = round_machine(host__attention__memory=0.02)
    workload = Workload.fixed(1000, 30)
    fields = {"experts_on_device": 1.0, "model": few_layers("mixtral-8x7b", 2), "workload": workload, **policy}
    return made_setup("cgopipe", 8, N, machine=machine, **fields)


def planned(setup):
    plan = Plan(Objective.THROUGHPUT, found={setup.policy: Candidate.of(setup, lanes_tokens_per_s(setup))})
    plan.look_beside_the_cpu()
    return plan


def with_room(setup, num_bytes):
    problem = setup.problem
    capacity = setup.memory.peak_bytes()["device"] + num_bytes
    hardware = problem.hardware.with_value("device_memory.capacity", capacity)
    return replace(setup, problem=replace(problem, hardware=hardware))


def test_it_finds_about_the_best_number():
    setup = bound_by_the_cpu()
    every = [Candidate.of(one, lanes_tokens_per_s(one)) for one in (attending_beside(setup, k) for k in range(N + 1))]
    rates = [one.throughput_tokens_per_s for one in every]
    assert all(one.throughput_tokens_per_s <= one.bound_tokens_per_s for one in every)
    assert max(rates) > 1.2 * rates[0]
    plan = planned(setup)
    assert plan.best.throughput_tokens_per_s >= 0.97 * max(rates)
    assert plan.simulated <= N + 2


def test_it_does_not_look_where_the_cpu_does_not_bind():
    setup = made_setup("cgopipe", 8, N, model=few_layers("mixtral-8x7b", 2))
    assert planned(setup).simulated == 1


def test_experts_make_room_for_the_cache_and_no_more_of_them_than_needed():
    setup = with_room(bound_by_the_cpu(model=few_layers("mixtral-8x7b", 6)), 0)  # more than what two slots hold
    assert not setup.shortages
    mixed = attending_beside(setup, 2)
    assert mixed.shape.attending_on_device == 2
    assert not mixed.shortages
    kept = round(mixed.policy.experts_on_device * 8)
    assert kept < 8
    more = replace(mixed, policy=replace(mixed.policy, experts_on_device=(kept + 1) / 8))
    assert kept == 7 or more.shortages


def test_where_not_even_the_cache_has_room_nothing_is_offered():
    setup = with_room(bound_by_the_cpu(experts_on_device=0.0), 1000)
    assert attending_beside(setup, 2) is None
    assert planned(setup).simulated == 1


@pytest.mark.parametrize("name", ["cgopipe", "hybrid"])
def test_the_lanes_bound_what_is_simulated(name):
    for share in (0.0, 0.5, 1.0):
        setup = made_setup(name, 8, 4, model=few_layers("mixtral-8x7b", 3), attention_on_device=share)
        found = Candidate.of(setup, lanes_tokens_per_s(setup))
        assert 0.5 * found.bound_tokens_per_s <= found.throughput_tokens_per_s <= found.bound_tokens_per_s


def test_layers_that_differ_in_their_experts_alone_are_locked_as_far_as_fits():
    """Of equal layers one has an expert more on the device than the others; not all of what streams may be locked."""
    places = {"experts_on_device": 10 / 24, "deal_experts": True, "pin_weights": 1.0, "kv_on_device": 0.0}
    setup = made_setup("hybrid", 8, 4, model=few_layers("mixtral-8x7b", 3), **places)
    assert len(setup.placement.distinct) == 2
    pinned = setup.memory.peak_bytes()["pinned"]
    hardware = setup.problem.hardware.with_value("pinned", 0.7 * pinned)
    setup = replace(setup, problem=replace(setup.problem, hardware=hardware))
    assert setup.shortages
    locked = most_locked(setup)
    assert not locked.shortages
    assert 0.5 < locked.policy.pin_weights < 1
    more = replace(locked, policy=replace(locked.policy, pin_weights=locked.policy.pin_weights + 0.01))
    assert more.shortages
