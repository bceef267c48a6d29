"""The plan against every policy tried one by one, its objectives, and what it says where nothing fits."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from plan_examples import SMALL, planned, problems, simple_problem
from sim_examples import few_layers, preset, round_machine

from sim.cost import Setup
from sim.planning import NothingFitsError, PolicyGrid, best_policy
from sim.planning.policies import candidates_of
from sim.planning.search import ENOUGH_THROUGHPUT, SAME_LATENCY, TOLERANCE, Objective, hrm_setup, plan
from sim.problem import Hardware, Policy, Problem, Workload
from sim.schedule import by_name, registered
from sim.simulation import predict

ALL = sorted(registered())
FEW = PolicyGrid((7, 40), (1, 4), kv_shares=(0.0, 1.0), pages=(1.0,), expert_values=3, groups=(2, 0))
FEW = replace(FEW, levels=(0, 6, 6), resident_parts=(0.0, 1.0), host_parts=(0.0, 0.4, 1.0), fetched_parts=(0.0, 1.0))
TINY = PolicyGrid((1, 7, 40), (1, 4), kv_shares=(0.0, 1.0), pages=(0.0, 1.0), expert_values=3)
MANY_OPEN = settings(
    deadline=None, derandomize=True, max_examples=10, suppress_health_check=[HealthCheck.filter_too_much]
)


def every_rate(problem, names, grid):
    """Tokens per second of every policy on a grid, from the simulator itself."""
    spaces = [candidates_of(problem, by_name(name), grid) for name in names]
    setups = [found.setup(row) for found in spaces for row in range(len(found))]
    return {(one.schedule.name, one.policy): predict(one, compiled=True).throughput_tokens_per_s for one in setups}


class TestRegret:
    @given(problem=problems(most_gen_len=6, most_layers=3), names=st.sets(st.sampled_from(ALL), min_size=2, max_size=2))
    @MANY_OPEN
    def test_the_plan_is_the_best_of_all_policies_simulated_one_by_one(self, problem, names):
        names = sorted(names)
        rates = every_rate(problem, names, FEW)
        assume(rates)
        best = plan(problem, names, grid=FEW, refine=False, jobs=1, tolerance=0.0, most_simulations=10**6).best
        assert best.throughput_tokens_per_s == pytest.approx(max(rates.values()), rel=1e-6)
        assert rates[best.schedule, best.setup.policy] == pytest.approx(max(rates.values()), rel=1e-6)

    @pytest.mark.parametrize(
        ("model", "machine", "host_bytes"),
        [
            ("mixtral-8x7b", "gcp-t4", None),
            ("mixtral-8x7b", "gcp-l4", None),
            ("mixtral-8x22b", "gcp-2xt4", None),
            ("qwen3-30b-a3b", "rtx4090", 64e9),
        ],
    )
    def test_it_is_no_worse_than_the_papers_own_search_simulated_the_same_way(self, model, machine, host_bytes):
        hardware = Hardware.load(machine)
        hardware = hardware if host_bytes is None else hardware.with_value("host_memory.capacity", host_bytes)
        asked = Workload.load("mtbench").with_(gen_len=32, padded=True)
        problem = Problem(preset(model), hardware, asked)
        theirs, _ = hrm_setup(problem)
        mine = best_policy(problem, by_name("cgopipe"), grid=PolicyGrid(pages=(1.0,))).best
        if not theirs.shortages:
            said = predict(theirs, compiled=True)
            assert mine.throughput_tokens_per_s >= said.throughput_tokens_per_s * (1 - TOLERANCE)
        assert mine.setup.shortages == []


class TestSearch:
    def test_what_is_left_out_could_not_have_been_better(self):
        problem, schedule = simple_problem(), by_name("cgopipe")
        found = planned(problem, schedule)
        tried = {one.setup.policy for one in found.ranked}
        rows = candidates_of(problem, schedule, SMALL)
        assert found.feasible == len(rows)
        assert found.simulated < found.feasible / 2
        for row in range(len(rows)):
            if rows.policy(row) not in tried:
                limit = found.best.throughput_tokens_per_s * (1 + 2 * TOLERANCE)
                assert predict(rows.setup(row), compiled=True).throughput_tokens_per_s <= limit

    def test_the_best_is_first_and_its_numbers_are_the_simulators(self):
        found = planned(simple_problem(), by_name("cgopipe"), at_least=6)
        rates = [one.throughput_tokens_per_s for one in found.ranked]
        assert rates == sorted(rates, reverse=True)
        assert len(rates) >= 6
        assert found.best is found.ranked[0]
        exact = predict(found.best.setup)
        assert found.best.throughput_tokens_per_s == pytest.approx(exact.throughput_tokens_per_s, rel=1e-9)
        assert found.best.token_s == pytest.approx(exact.decode_s / 11, rel=1e-9)
        assert found.best.throughput_tokens_per_s <= found.best.bound_tokens_per_s * (1 + 2 * TOLERANCE)

    def test_refining_looks_between_the_sizes_of_the_grid(self):
        problem, schedule = simple_problem(host_memory__capacity=24e9), by_name("fastdecode")
        coarse = best_policy(problem, schedule, grid=SMALL, refine=False)
        fine = best_policy(problem, schedule, grid=SMALL)
        assert fine.best.throughput_tokens_per_s > coarse.best.throughput_tokens_per_s
        assert fine.best.setup.policy.micro_batch_size not in SMALL.micro_batch_sizes
        assert fine.considered > coarse.considered

    def test_a_limit_says_what_it_left_out(self):
        """Copies and kernels share a device memory that is too slow for both, which the bound does not know."""
        problem = simple_problem(link__duplex=1.1e10, device_memory__bandwidth=3e10)
        free = planned(problem, by_name("cgopipe"), tolerance=0.0)
        limited = planned(problem, by_name("cgopipe"), tolerance=0.0, most_simulations=1)
        assert free.unsettled == 0
        assert limited.simulated == 1
        assert free.simulated > 1
        assert limited.unsettled >= 1

    def test_processes_find_the_same(self):
        problem = simple_problem()
        alone = plan(problem, ["cgopipe", "flexgen", "zero"], grid=SMALL, refine=False, jobs=1)
        together = plan(problem, ["cgopipe", "flexgen", "zero"], grid=SMALL, refine=False, jobs=2)
        assert alone.best.setup.policy == together.best.setup.policy
        assert list(alone.plans) == list(together.plans)
        assert [one.throughput_tokens_per_s for one in alone.ranked] == [
            one.throughput_tokens_per_s for one in together.ranked
        ]

    def test_schedules_come_the_best_first(self):
        found = plan(simple_problem(), ALL, grid=SMALL, refine=False, jobs=1)
        rates = [one.best.throughput_tokens_per_s for one in found.plans.values()]
        assert rates == sorted(rates, reverse=True)
        assert found.best.throughput_tokens_per_s == rates[0]
        assert found.effort["considered"] == sum(one.considered for one in found.plans.values())


class TestGivenSizes:
    def test_they_stay(self):
        problem, schedule = simple_problem(), by_name("cgopipe")
        assert planned(problem, schedule, micro_batch_size=7).best.setup.policy.micro_batch_size == 7
        assert planned(problem, schedule, num_micro_batches=5).best.setup.policy.num_micro_batches == 5
        assert str(best_policy(problem, schedule, micro_batch_size=7, num_micro_batches=5).best.setup.policy) == "7×5"

    def test_a_schedule_of_one_batch_has_one_micro_batch_of_the_sizes_it_is_told(self):
        problem, schedule = simple_problem(), by_name("zero")
        assert planned(problem, schedule).best.setup.policy.num_micro_batches == 1
        assert str(planned(problem, schedule, micro_batch_size=7, num_micro_batches=2).best.setup.policy) == "14×1"

    def test_exactly_these_requests_in_one_batch(self):
        found = planned(simple_problem(), by_name("cgopipe"), num_requests=30)
        assert {one.setup.batch.num_requests for one in found.ranked} == {30}

    def test_or_the_best_batch_of_fewer(self):
        problem = simple_problem(host_memory__capacity=20e9)
        found = planned(problem, by_name("cgopipe"), num_requests=50_000)
        assert 100 < found.best.setup.batch.num_requests < 50_000
        few = planned(problem, by_name("cgopipe"), num_requests=2)
        assert few.best.setup.batch.num_requests == 2


class TestObjectives:
    PROBLEM = simple_problem(device_memory__capacity=40e9)

    def rated(self):
        rows = candidates_of(self.PROBLEM, by_name("cgopipe"), TINY)
        return [(rows.setup(row), predict(rows.setup(row), compiled=True)) for row in range(len(rows))]

    def test_latency_is_the_shortest_decode_step_then_throughput(self):
        best = planned(self.PROBLEM, by_name("cgopipe"), grid=TINY, objective=Objective.LATENCY, tolerance=0.0).best
        every = self.rated()
        least = min(result.decode_s for _, result in every)
        assert best.decode_s <= least * (1 + SAME_LATENCY)
        as_short = [result for _, result in every if result.decode_s <= least * (1 + SAME_LATENCY)]
        most = max(result.throughput_tokens_per_s for result in as_short)
        assert best.throughput_tokens_per_s == pytest.approx(most)
        fastest = planned(self.PROBLEM, by_name("cgopipe"), grid=TINY).best
        assert best.token_s < fastest.token_s

    def test_memory_is_the_least_on_the_device_that_is_nearly_as_fast(self):
        best = planned(self.PROBLEM, by_name("cgopipe"), grid=TINY, objective=Objective.MEMORY, tolerance=0.0).best
        every = self.rated()
        floor = ENOUGH_THROUGHPUT * max(result.throughput_tokens_per_s for _, result in every)
        enough = [setup for setup, result in every if result.throughput_tokens_per_s >= floor]
        assert best.throughput_tokens_per_s >= floor
        assert best.device_bytes == min(setup.memory.peak_bytes()["device"] for setup in enough)

    def test_of_one_token_latency_is_prefill(self):
        found = planned(simple_problem(gen_len=1), by_name("zero"), objective=Objective.LATENCY)
        assert found.best.token_s == found.best.prefill_s
        assert found.best.token_s == min(one.token_s for one in found.ranked)


class TestNothingFits:
    def test_the_nearest_policy_its_memory_and_a_width_that_would_fit(self):
        """6 layers of experts are 16.9 GB in fp16; in 8 bits they are half of that."""
        problem = simple_problem(host_memory__capacity=10e9, device_memory__capacity=8e9)
        with pytest.raises(NothingFitsError) as caught:
            plan(problem, ["cgopipe", "flexgen-c"], grid=SMALL, jobs=1)
        message = str(caught.value)
        assert "\n" not in message
        assert "host memory is" in message
        assert f"{caught.value.short_bytes:,} bytes short" in message
        assert message.endswith("; with weight_bits 8 cgopipe, flexgen-c would fit")
        assert len(candidates_of(problem, by_name("cgopipe"), replace(SMALL, weight_bits=8.0)))

    def test_what_it_lacks_is_enough(self):
        """With so many bytes more of that memory there is a plan, with one less there is none."""
        problem, schedule = (
            simple_problem(host_memory__capacity=10e9, device_memory__capacity=64e9),
            by_name("flexgen-c"),
        )
        problem = replace(problem, hardware=problem.hardware.with_value("device_memory.capacity", 4e9))
        short = candidates_of(problem, schedule, SMALL).nearest.shortages
        assert [one.tier for one in short] == ["host", "device"]
        for one in short:
            path = f"{one.tier}_memory.capacity"
            problem = replace(problem, hardware=problem.hardware.with_value(path, float(one.needed_bytes)))
        assert planned(problem, schedule).feasible >= 1
        tighter = replace(
            problem, hardware=problem.hardware.with_value("host_memory.capacity", short[0].needed_bytes - 1.0)
        )
        with pytest.raises(NothingFitsError):
            planned(tighter, schedule)

    def test_one_schedule_that_does_not_fit_is_named_beside_those_that_do(self):
        problem = simple_problem(device_memory__capacity=9.5e9, host_memory__capacity=18e9, pinned=1e9)
        found = plan(problem, ["cgopipe", "flexgen-c"], grid=SMALL, refine=False, jobs=1)
        assert list(found.plans) == ["flexgen-c"]
        assert "pinned memory is" in found.failed["cgopipe"]


@cache
def big_plan(name):
    asked = Workload.load("mtbench").with_(gen_len=8, padded=True)
    return best_policy(Problem(preset("mixtral-8x7b"), Hardware.load("gcp-t4"), asked), by_name(name))


@pytest.mark.parametrize("name", ["cgopipe", "flexgen-c"])
def test_on_the_papers_machine_it_is_no_worse_than_the_published_policy(name):
    found = big_plan(name)
    published = Setup(found.best.setup.problem, by_name(name), Policy.usual(by_name(name), 504, 36))
    assert found.best.setup.shortages == []
    said = predict(published, compiled=True, must_fit=False)
    assert found.best.throughput_tokens_per_s >= said.throughput_tokens_per_s * (1 - TOLERANCE)


def test_a_model_whose_experts_all_fit_keeps_them_on_the_device():
    problem = Problem(few_layers("qwen3-30b-a3b", 4), round_machine(), Workload.fixed(100, 8))
    assert planned(problem, by_name("cgopipe")).best.setup.policy.experts_on_device == 1.0
