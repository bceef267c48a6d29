"""Plans for joules: their bounds, the least of all policies, limits, and the front of speed against energy."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from plan_examples import (
    SMALL,
    assert_nothing_is_thriftier,
    drawing,
    drawing_problems,
    planned,
    simple_problem,
)
from sim_examples import few_layers

from sim.planning import Front, NothingFitsError, Objective, PolicyGrid, PowerCap, explain, plan, plan_under_caps
from sim.planning.bounds import least_joules_per_token
from sim.planning.policies import candidates_of, host_layer_candidates
from sim.planning.search import SAME_ENERGY, AboveLimitError, at_best
from sim.planning.search.best_first import FRONT_TOLERANCE
from sim.planning.search.open_rows import OpenRows
from sim.problem import Hardware, NoRoomError, Problem, Workload
from sim.schedule import Place, by_name, registered
from sim.simulation import predict
from traces.errors import InputError

ALL = sorted(registered())
FEW = PolicyGrid((7, 40), (1, 4), kv_shares=(0.0, 1.0), pages=(1.0,), expert_values=3, groups=(2, 0))
FEW = replace(FEW, levels=(0, 6, 6), resident_parts=(0.0, 1.0), host_parts=(0.0, 0.4, 1.0), fetched_parts=(0.0, 1.0))
SOME = settings(deadline=None, derandomize=True, max_examples=12, suppress_health_check=[HealthCheck.filter_too_much])
WATTS = (40.0, 70.0)
ASKED = {"grid": FEW, "refine": False, "jobs": 1}
PROBLEM = drawing(simple_problem(host__peak=4e12, host_memory__bandwidth=3e11))


def every_one(problem, names, grid=FEW):
    """(tokens a second, joules a token) of every policy on a grid, from the simulator itself."""
    spaces = [candidates_of(problem, by_name(name), grid) for name in names]
    found = [predict(space.setup(row), compiled=True) for space in spaces for row in range(len(space))]
    return [(one.throughput_tokens_per_s, one.energy.j_per_token) for one in found]


class TestBound:
    @given(problem=drawing_problems(most_gen_len=20, most_layers=3), name=st.sampled_from(ALL), at=st.floats(0, 1))
    @settings(SOME, max_examples=40)
    def test_no_policy_uses_less(self, problem, name, at):
        try:
            space = candidates_of(problem, by_name(name), FEW if by_name(name).system.splits_experts else SMALL)
        except NoRoomError:
            return
        if len(space):
            assert_nothing_is_thriftier(space, at)

    @pytest.mark.parametrize("name", ["cgopipe", "hybrid", "flexgen", "n-cpu-moe"])
    def test_without_contention_it_is_what_the_policy_uses_but_for_time(self, name):
        """All that tasks draw is in it: what is left out is idle, and drawn for no longer than the run takes."""
        space = candidates_of(PROBLEM, by_name(name), FEW)
        rates, _ = at_best(space)
        joules = least_joules_per_token(space, rates)
        for row in np.linspace(0, len(space) - 1, 4).astype(int).tolist():
            one = predict(space.setup(row), compiled=True)
            of_time = one.throughput_tokens_per_s / rates[row]
            assert joules[row] >= one.energy.j_per_token * min(1.0, of_time) * (1 - 2e-3)

    def test_layers_on_the_host_draw_there(self):
        problem = drawing(simple_problem(device_memory__capacity=4e9))
        space = host_layer_candidates(problem, by_name("n-cpu-moe"), FEW)
        assert len(space)
        joules = least_joules_per_token(space, at_best(space)[0])
        used = [predict(space.setup(row), compiled=True).energy.j_per_token for row in range(len(space))]
        assert all(joules <= np.array(used) * (1 + 1e-3))
        assert joules.max() > 0.5 * max(used)

    def test_a_machine_of_unknown_watts_is_refused_in_a_line(self):
        with pytest.raises(InputError, match=r"^joules: round does not say what it draws: give it power.device.limit$"):
            planned(simple_problem(), by_name("zero"), objective=Objective.ENERGY)


class TestLeast:
    @given(
        problem=drawing_problems(most_gen_len=6, most_layers=3),
        names=st.sets(st.sampled_from(ALL), min_size=2, max_size=2),
    )
    @SOME
    def test_the_plan_is_the_thriftiest_of_all_policies_simulated_one_by_one(self, problem, names):
        every = every_one(problem, sorted(names))
        assume(every)
        asked = {**ASKED, "tolerance": 0.0, "most_simulations": 10**6}
        best = plan(problem, sorted(names), objective=Objective.ENERGY, **asked).best
        least = min(joules for _, joules in every) * (1 + SAME_ENERGY)
        assert best.joules_per_token <= least
        assert best.throughput_tokens_per_s == pytest.approx(max(rate for rate, joules in every if joules <= least))

    def test_attention_on_the_cpu_may_be_fastest_and_that_on_the_gpu_thriftiest(self):
        """The cores of a T4's host draw more than they save of its time."""
        machine = Hardware.load("gcp-t4").with_value("host_memory.capacity", 64e9).with_value("pinned", 32e9)
        problem = Problem(few_layers("mixtral-8x7b", 2), machine, Workload.fixed(400, 64))
        grid = PolicyGrid((16, 64), (8, 24), kv_shares=(0.0, 1.0), pages=(1.0,), expert_values=3)
        both = (Objective.THROUGHPUT, Objective.ENERGY)
        fast, thrifty = (plan(problem, ["cgopipe"], objective=one, **{**ASKED, "grid": grid}).best for one in both)
        assert (fast.policy.attention, thrifty.policy.attention) == (Place.CPU, Place.GPU)
        assert thrifty.joules_per_token < 0.95 * fast.joules_per_token
        assert thrifty.throughput_tokens_per_s < fast.throughput_tokens_per_s

    def test_gains_of_other_machines_are_of_joules(self):
        """What is faster draws its idle watts for less time, and as much as before for its work."""
        choice = plan(PROBLEM, ["zero"], objective=Objective.ENERGY, jobs=1, num_requests=8)
        more = next(one for one in explain(choice, jobs=1).replanned if (one.resource, one.factor) == ("link", 2.0))
        gain = choice.best.joules_per_token / more.best.joules_per_token - 1
        assert more.change == pytest.approx(gain, abs=0.01)
        assert 0.02 < gain < 0.9 * (more.best.throughput_tokens_per_s / choice.best.throughput_tokens_per_s - 1)


class TestLimit:
    @given(problem=drawing_problems(most_gen_len=6, most_layers=3), name=st.sampled_from(ALL), share=st.floats(0, 1))
    @SOME
    def test_the_fastest_within_it_or_the_least_there_is(self, problem, name, share):
        every = every_one(problem, [name])
        assume(every)
        used = sorted(joules for _, joules in every)
        most = used[0] * 0.99 + share * (used[-1] - used[0] * 0.99)
        asked = {**ASKED, "tolerance": 0.0, "most_simulations": 10**6, "most_joules": most}
        within = [rate for rate, joules in every if joules <= most]
        if within:
            best = plan(problem, [name], **asked).best
            assert best.joules_per_token <= most
            assert best.throughput_tokens_per_s == pytest.approx(max(within))
            return
        with pytest.raises(AboveLimitError) as caught:
            plan(problem, [name], **asked)
        assert caught.value.least_joules == pytest.approx(used[0])

    def test_a_schedule_above_it_is_named_beside_those_within(self):
        joules = {name: plan(PROBLEM, [name], objective=Objective.ENERGY, **ASKED).best.joules_per_token
                  for name in ("cgopipe", "accelerate")}  # fmt: skip
        low, high = sorted(joules, key=joules.get)
        found = plan(PROBLEM, list(joules), most_joules=(joules[low] + joules[high]) / 2, **ASKED)
        assert (list(found.plans), list(found.failed), list(found.above)) == ([low], [high], [high])
        assert f"the fewest joules are {joules[high]:.4g}" in found.failed[high]


class TestFront:
    @given(problem=drawing_problems(most_gen_len=6, most_layers=3), names=st.sets(st.sampled_from(ALL), min_size=2))
    @settings(SOME, max_examples=6)
    def test_every_policy_has_a_point_that_is_as_good_in_both(self, problem, names):
        every = every_one(problem, sorted(names))
        assume(every)
        choice = plan(problem, sorted(names), along_front=True, **ASKED)
        front = Front.of([(None, [one for made in choice.plans.values() for one in made.found.values()])])
        points = [(point.tokens_per_s, point.joules) for point in front.points]
        more = (1 + FRONT_TOLERANCE) * (1 + 2e-3)
        for rate, joules in every:
            assert any(fast * more >= rate and thrifty <= joules * more for fast, thrifty in points)
        assert points == sorted(points, reverse=True)
        assert all(after[1] < before[1] for before, after in pairwise(points))

    @given(
        rows=st.lists(st.tuples(st.floats(1, 9), st.floats(1, 9), st.floats(1, 2), st.floats(0.5, 1)), min_size=1),
        tolerance=st.sampled_from([0.0, 0.01, 0.3]),
    )
    @settings(deadline=None, derandomize=True, max_examples=50)
    def test_rows_are_closed_only_by_what_is_as_good(self, rows, tolerance):
        """Made up: (rate, joules, how far its bound is above the rate, and below the joules)."""
        rate, joules, above, below = np.array(rows).T
        rest, met = OpenRows(rate * above, joules * below, tolerance), []
        while len(rest):
            met.append(rest.next())
            rest.meet(rate[met[-1]], joules[met[-1]])
        more = (1 + tolerance) * (1 + 1e-12)
        for row in range(len(rows)):
            assert any(rate[one] * more >= rate[row] and joules[one] <= joules[row] * more for one in met)
        assert len(set(met)) == len(met)

    def test_some_points_are_both_ends_and_some_between(self):
        """Made up: a line from 10 tokens a second at 20 J to 1 at 2 J, and one policy that is worse."""
        rates = [(rate, 2.0 * rate) for rate in range(1, 11)]
        made = [SimpleNamespace(throughput_tokens_per_s=rate, joules_per_token=joules) for rate, joules in rates]
        front = Front.of([(70.0, made), (None, [SimpleNamespace(throughput_tokens_per_s=5, joules_per_token=11.0)])])
        assert [point.tokens_per_s for point in front.points] == list(range(10, 0, -1))
        assert [point.joules for point in front.others] == [11.0]
        assert front.some(2) == (front.fastest, front.thriftiest)
        assert [point.tokens_per_s for point in front.some(4)] == [10, 7, 4, 1]
        assert front.some(99) == front.points


class TestCaps:
    def test_the_front_has_the_points_of_every_cap_and_the_plan_is_the_best_of_them(self):
        caps = [PowerCap.of(PROBLEM.hardware, watts) for watts in WATTS]
        asked = {**ASKED, "objective": Objective.ENERGY, "along_front": True}
        found = plan_under_caps(PROBLEM, WATTS, lambda one: plan(one, ["zero"], **asked), with_front=True)
        each = [plan(replace(PROBLEM, hardware=cap.after), ["zero"], **asked).best.joules_per_token for cap in caps]
        assert found.choice.best.joules_per_token == min(each)
        assert found.cap == caps[each.index(min(each))]
        assert {point.power_cap_w for point in (*found.front.points, *found.front.others)} == {40.0, 70.0}

    def test_a_cap_says_what_is_left_of_the_machine(self):
        cap = PowerCap.of(PROBLEM.hardware, 40.0)
        clocks = cap.to_dict()["peak_flops_per_s"] / PROBLEM.hardware.device.peak_flops_per_s
        assert 0.4 < clocks < 1
        assert f"Each device is held to 40 of 70 W: arithmetic at {clocks:.0%}" in str(cap)

    def test_a_limit_that_no_cap_reaches_is_told_with_the_least_of_all(self):
        caps = [PowerCap.of(PROBLEM.hardware, watts) for watts in WATTS]
        machines = [replace(PROBLEM, hardware=cap.after) for cap in caps]
        least = [plan(one, ["zero"], objective=Objective.ENERGY, **ASKED).best for one in machines]
        with pytest.raises(AboveLimitError) as caught:
            plan_under_caps(PROBLEM, WATTS, lambda one: plan(one, ["zero"], most_joules=1e-3, **ASKED), with_front=True)
        assert caught.value.least_joules == pytest.approx(min(one.joules_per_token for one in least))

    def test_what_fits_no_memory_fits_under_no_cap(self):
        problem = drawing(simple_problem(host_memory__capacity=1e9, device_memory__capacity=4e9))
        with pytest.raises(NothingFitsError):
            plan_under_caps(problem, WATTS, lambda one: plan(one, ["zero"], **ASKED), with_front=True)
