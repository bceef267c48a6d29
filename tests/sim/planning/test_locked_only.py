"""Machines whose copies reach page-locked memory alone: what their plans lock, and what cannot run on them."""

from dataclasses import replace

import pytest
from sim_examples import few_layers, made_setup, round_machine

from sim.comparison import compare
from sim.planning import NothingFitsError, PolicyGrid, best_policy
from sim.problem import Policy, Problem, Workload
from sim.schedule import Tier, by_name, registered

MACHINE = round_machine()
LOCKED_ONLY = replace(MACHINE, link=replace(MACHINE.link, locked_only=True))
MODEL, WORKLOAD = few_layers("mixtral-8x7b", 4), Workload.fixed(60, 4)
PROBLEM = Problem(MODEL, LOCKED_ONLY, WORKLOAD)
GRID = PolicyGrid(micro_batch_sizes=(4, 8), num_micro_batches=(1, 2), expert_values=3)


@pytest.mark.parametrize("name", sorted(set(registered()) - {"flexgen-c"}))
def test_plans_lock_all_that_moves(name):
    plan = best_policy(PROBLEM, by_name(name), grid=GRID)
    for found in plan.found.values():
        setup = found.setup
        moved = sum(setup.placement.moved_bytes(kind) * count for kind, count in enumerate(setup.placement.counts))
        assert moved == 0 or setup.policy.pin_weights == 1
        assert setup.memory.peak_bytes()[Tier.PINNED] >= moved
        assert not setup.shortages


def test_a_system_that_copies_pageable_memory_is_refused_in_a_line():
    with pytest.raises(NothingFitsError) as caught:
        best_policy(PROBLEM, by_name("flexgen-c"), grid=GRID)
    said = str(caught.value)
    assert "activations and KV cache would be copied from or to pageable memory" in said
    assert said.endswith("which link.locked_only rules out: take a schedule that page-locks them, such as cgopipe")
    assert "\n" not in said


def test_the_same_system_runs_where_nothing_but_weights_crosses_the_link():
    policies = [one.policy for one in best_policy(PROBLEM, by_name("flexgen"), grid=GRID).found.values()]
    assert {policy.kv_on_device for policy in policies} == {1.0}


@pytest.mark.parametrize("name", ["cgopipe", "fastdecode", "zero", "accelerate"])
def test_what_a_policy_leaves_pageable_is_what_it_lacks(name):
    def lacks(share, machine=LOCKED_ONLY):
        return made_setup(name, machine=machine, model=MODEL, pin_weights=share, **usual).shortages

    usual = {"experts_on_device": 0.0} if name in ("cgopipe", "fastdecode") else {}
    assert not lacks(1.0)
    assert not lacks(0.5, MACHINE)
    assert str(lacks(0.5)[0]).endswith("which link.locked_only rules out: set pin_weights to 1")
    assert lacks(0.0)[0].short_bytes > lacks(0.5)[0].short_bytes > 0


def test_sizes_that_are_given_are_run_with_all_weights_locked():
    found = compare(PROBLEM, ["cgopipe", "flexgen"], micro_batch_size=4, num_micro_batches=2, jobs=1)
    assert found[0].setup.policy.pin_weights == 1
    assert found[0].prediction is not None
    assert "would be copied from or to pageable memory" in found[1].reason


def test_a_policy_that_says_nothing_of_locking_has_all_locked():
    found = compare(PROBLEM, ["cgopipe"], jobs=1, batch_size=8, micro_batch_size=4, attention="gpu")
    assert found[0].setup.policy.pin_weights == 1


def test_a_policy_that_is_given_is_not_changed():
    policy = Policy.usual(by_name("cgopipe"), 8, 4, pin_weights=0.25)
    found = compare(PROBLEM, ["cgopipe"], jobs=1, **policy.to_dict())
    assert "set pin_weights to 1" in found[0].reason


def test_what_does_not_fit_page_locked_does_not_fit():
    little = LOCKED_ONLY.with_value("pinned", 1e9).with_value("device_memory.capacity", 8e9)
    with pytest.raises(NothingFitsError, match="pinned memory is"):
        best_policy(replace(PROBLEM, hardware=little), by_name("cgopipe"), grid=GRID)
