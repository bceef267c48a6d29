"""The grid as arrays: its memory against the memory plan's own, its bounds against the simulator."""

from bisect import bisect_left
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from plan_examples import SLACK, SMALL, assert_nothing_is_faster, problems, simple_problem
from sim_examples import few_layers, preset

from sim.cost import Setup
from sim.planning import PolicyGrid
from sim.planning.bounds.bound import least_seconds
from sim.planning.policies import TIERS, candidates_of
from sim.planning.policies.grid import locks_weights, placements, sizes_up_to
from sim.planning.policies.locking import locked_bytes, most_locked
from sim.problem import Hardware, Policy, Problem, Widths, Workload
from sim.schedule import Place, by_name, registered
from sim.simulation import predict
from traces.errors import InputError

ALL = sorted(registered())
AS_ONE = [name for name in ALL if not by_name(name).system.splits_experts]
SETTINGS = settings(deadline=None, derandomize=True, max_examples=12)
ONE_BY_ONE = settings(deadline=None, derandomize=True, max_examples=30)


def every_policy(problem, schedule, grid):
    """The points of a grid, enumerated without the code under test."""
    total, found = problem.model.num_experts, []
    counts = (1,) if schedule.system.one_batch else grid.num_micro_batches
    for (place, share), size, count in product(placements(schedule, grid), grid.micro_batch_sizes, counts):
        for experts in range(total + 1):
            for pages in (
                {max(1, round(count * multiple)) for multiple in grid.pages} if schedule.system.paged else {count}
            ):
                paged = None if pages == count else pages
                one = Policy(size * count, size, place, experts / total, share, paged)
                found += [one, *most_of(problem, schedule, one)] if locks_weights(schedule) else [one]
    return found


def most_of(problem, schedule, policy):
    """The policy with all its weights page-locked, or with the most thousandths of them that may be."""

    def may_be(share):
        return Setup(problem, schedule, replace(policy, pin_weights=share)).memory.peak_bytes()["pinned"] <= limit

    limit = problem.hardware.pinned_bytes
    try:
        most = bisect_left(range(1, 1000), True, key=lambda at: not may_be(at / 1000))
        yield replace(policy, pin_weights=1.0 if may_be(1.0) or not most else most / 1000)
    except InputError:
        yield replace(policy, pin_weights=1.0)


def fits(problem, schedule, policy):
    try:
        return not Setup(problem, schedule, policy).shortages
    except InputError:
        return False


class TestMemory:
    @given(problem=problems(), name=st.sampled_from(ALL))
    @SETTINGS
    def test_each_row_needs_what_the_memory_plan_says(self, problem, name):
        found = candidates_of(problem, by_name(name), SMALL)
        for row in range(0, len(found), max(1, len(found) // 25)):
            setup = found.setup(row)
            assert setup.shortages == []
            assert dict(zip(TIERS, found.bytes[row].tolist(), strict=True)) == setup.memory.peak_bytes()

    @given(problem=problems(), name=st.sampled_from(AS_ONE))
    @settings(SETTINGS, max_examples=6)
    def test_what_fits_is_there_and_nothing_else(self, problem, name):
        """With every number of experts asked for, the rows are the policies without a shortage."""
        problem = replace(problem, model=few_layers("mixtral-8x7b", problem.model.num_layers))
        schedule, grid = by_name(name), replace(SMALL, micro_batch_sizes=(40,), expert_values=9)
        found = candidates_of(problem, schedule, grid)
        rows = [found.policy(row) for row in range(len(found))]
        streams = [one for one in rows if one.experts_on_device < 1 or schedule.system.streams_non_experts]
        expected = [one for one in every_policy(problem, schedule, grid) if fits(problem, schedule, one)]
        assert Counter(streams) == Counter(
            one for one in expected if one.experts_on_device < 1 or schedule.system.streams_non_experts
        )
        all_here = {replace(one, pages=None) for one in expected if one.experts_on_device == 1}
        assert {replace(one, pages=None) for one in rows if one.experts_on_device == 1} == all_here

    def test_the_most_experts_that_fit_are_among_them(self):
        """The grid asks for none, half and all of them; seven fit."""
        problem = simple_problem(device_memory__capacity=15e9)
        schedule = by_name("cgopipe")
        found = candidates_of(problem, schedule, SMALL)
        most = max(n for n in range(9) if fits(problem, schedule, Policy(1, 1, experts_on_device=n / 8)))
        assert most not in (0, 4, 8)
        assert found.experts[found.of_batches([one.policy.batch_size for one in found.batch_setups]) == 1].max() == most

    def test_counts_what_it_looked_at(self):
        found = candidates_of(simple_problem(), by_name("flexgen-c"), SMALL)
        assert found.considered == 3 * 3 * 3
        assert len(found) == found.considered

    @pytest.mark.parametrize("name", AS_ONE)
    def test_names_the_nearest_where_nothing_fits(self, name):
        problem, schedule = simple_problem(device_memory__capacity=1.5e9, num_layers=3), by_name(name)
        found = candidates_of(problem, schedule, SMALL)
        assert len(found) == 0
        lacks = []
        for policy in every_policy(problem, schedule, SMALL):
            try:
                lacks.append(sum(one.short_bytes for one in Setup(problem, schedule, policy).shortages))
            except InputError:
                continue
        assert sum(one.short_bytes for one in found.nearest.shortages) == min(lacks)


class TestLocking:
    """10 layers of 2.8 GB, of which 12 GB may be page-locked."""

    PROBLEM = simple_problem(num_layers=10, pinned=12e9)

    @pytest.mark.parametrize("name", ["cgopipe", "fastdecode", "zero"])
    def test_one_setup_locks_the_largest_thousandth_that_fits(self, name):
        schedule = by_name(name)
        found = most_locked(Setup(self.PROBLEM, schedule, Policy.usual(schedule, 6, 6)))
        assert [found.policy] == list(most_of(self.PROBLEM, schedule, replace(found.policy, pin_weights=0.0)))
        assert 0 < found.policy.pin_weights < 1
        assert not found.shortages

    def test_all_where_that_fits_and_what_was_asked_where_nothing_does(self):
        zero = by_name("zero")
        setup = Setup(simple_problem(pinned=500e9), zero, Policy.usual(zero, 6, 6))
        assert most_locked(setup).policy.pin_weights == 1
        setup = Setup(simple_problem(host_memory__capacity=1e9), zero, Policy.usual(zero, 6, 6))
        assert most_locked(setup) is setup

    def test_the_planner_looks_at_it_beside_none(self):
        found = candidates_of(self.PROBLEM, by_name("cgopipe"), SMALL)
        assert {float(share) for share in found.locked[found.experts == 0]} > {0.0}
        assert any(0 < share < 1 for share in found.locked)

    @given(share=st.floats(0, 1) | st.sampled_from([0.0, 1.0]), sizes=st.lists(st.integers(0, 10**11), min_size=1))
    @SETTINGS
    def test_many_layers_are_locked_as_the_policy_locks_one(self, share, sizes):
        policy = Policy(1, 1, pin_weights=share)
        assert locked_bytes(np.array(sizes), np.array(share)).tolist() == [policy.locked_bytes(one) for one in sizes]


class TestGrid:
    def test_sizes_are_dense_and_end_where_told(self):
        sizes = sizes_up_to(512, 4)
        assert sizes[:8] == (1, 2, 3, 4, 5, 6, 7, 8)
        assert sizes[-1] == 512
        assert max(after / before for before, after in pairwise(sizes[7:])) < 1.3

    def test_given_requests_are_cut_in_every_way(self):
        found = candidates_of(simple_problem(), by_name("cgopipe"), replace(SMALL, num_requests=17))
        assert {setup.batch.num_requests for setup in found.batch_setups} == {17}
        cuts = {(one.policy.micro_batch_size, one.policy.num_micro_batches) for one in found.batch_setups}
        assert cuts == {(17, 1), (6, 3), (3, 6)}

    def test_at_most_so_many_requests(self):
        found = candidates_of(simple_problem(), by_name("cgopipe"), replace(SMALL, most_requests=17))
        assert max(setup.batch.num_requests for setup in found.batch_setups) == 8

    def test_a_policy_is_in_the_grid_around_it(self):
        policy = Policy(42 * 31, 42, Place.GPU, kv_on_device=0.3125)
        grid = PolicyGrid().around(policy)
        assert 42 in grid.micro_batch_sizes
        assert 31 in grid.num_micro_batches
        assert 0.3125 in grid.kv_shares
        assert all(24 <= count <= 40 for count in grid.num_micro_batches)

    def test_nearer_and_fewer_where_told(self):
        grid = PolicyGrid().around(Policy(100 * 40, 100), reach=0.05, values=5)
        assert grid.micro_batch_sizes == (95, 98, 100, 103, 106)
        assert grid.num_micro_batches == (38, 39, 40, 42, 43)

    def test_an_axis_ends_where_the_device_cannot_hold_the_kv_cache(self):
        grid = replace(SMALL, micro_batch_sizes=(64,), num_micro_batches=tuple(range(1, 400)), kv_shares=(1.0,))
        grid = replace(grid, attention=Place.GPU)
        problem = simple_problem()
        machine = problem.hardware.with_value("host_memory.capacity", 1e12).with_value("device_memory.capacity", 16e9)
        problem = replace(problem, hardware=machine)
        found = candidates_of(problem, by_name("cgopipe"), grid)
        room = problem.hardware.device_memory.capacity_bytes
        beyond = [one for one in found.batch_setups if one.memory.device["kv cache"] > 1.2 * room]
        assert len(beyond) <= 1
        assert found.considered >= 399  # those beyond it count as looked at


class TestBound:
    @given(problem=problems(), name=st.sampled_from(ALL), at=st.floats(0, 1))
    @ONE_BY_ONE
    def test_nothing_is_simulated_to_be_faster(self, problem, name, at):
        found = candidates_of(problem, by_name(name), SMALL)
        if len(found):
            assert_nothing_is_faster(found, at)

    @pytest.mark.parametrize("name", AS_ONE)
    def test_it_is_tight_on_a_real_model(self, name):
        """Within 5 % of the simulation, so that few candidates have to be simulated."""
        asked = Workload.load("mtbench").with_(gen_len=32, padded=True)
        problem = Problem(preset("mixtral-8x7b"), Hardware.load("gcp-t4"), asked)
        grid = PolicyGrid((8, 44), (1, 4, 16), kv_shares=(0.0,), expert_values=1)
        found = candidates_of(problem, by_name(name), grid)
        total_s, _ = least_seconds(found)
        for row in range(0, len(found), max(1, len(found) // 6)):
            if found.pages[row] > 1 or not by_name(name).system.paged:
                assert total_s[row] >= 0.95 * predict(found.setup(row), compiled=True).total_s

    @pytest.mark.parametrize("name", ["cgopipe", "fastdecode"])
    def test_it_holds_and_is_tight_where_the_pin_copy_binds_though_most_is_page_locked(self, name):
        problem = simple_problem(gen_len=12, num_layers=10, pin=1e9, pinned=22e9)
        found = candidates_of(problem, by_name(name), replace(SMALL, micro_batch_sizes=(1,), num_micro_batches=(8,)))
        total_s, _ = least_seconds(found)
        (row, *_) = np.flatnonzero((found.locked > 0) & (found.locked < 1) & (found.experts == 0))
        said = predict(found.setup(int(row)), exact=True)
        assert said.decode.bottleneck == "PIN"
        assert 0.6 < found.locked[row] < 0.9
        assert 0.85 * said.total_s < total_s[row] <= said.total_s

    def test_a_lane_that_does_all_is_the_bound(self):
        """ZeRO on a slow link: 6 steps of 6 layers, less one layer each for the end of prefill and the last step."""
        problem = simple_problem(gen_len=6, link__h2d_pageable=1e8)
        found = candidates_of(problem, by_name("zero"), replace(SMALL, micro_batch_sizes=(1,)))
        row = int(np.flatnonzero((found.locked == 0) & (found.experts == 0))[0])
        layer = problem.model.layers[0]
        bytes_ = layer.experts_bytes(16) + layer.non_expert_bytes(Widths())
        total_s, _ = least_seconds(found)
        assert total_s[row] == pytest.approx((6 * 6 - 2) * bytes_ / 1e8, rel=0.02)

    @pytest.mark.parametrize("name", ALL)
    def test_it_holds_for_the_simulator_itself(self, name):
        found = candidates_of(simple_problem(num_devices=2), by_name(name), SMALL)
        total_s, _ = least_seconds(found)
        for row in (0, len(found) // 2, len(found) - 1):
            assert total_s[row] <= predict(found.setup(row)).total_s * (1 + SLACK)
