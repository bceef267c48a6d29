"""What holds of every cost: more work never costs less, a faster machine never more, and memory changes nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import cost_of, few_layers, made_setup, one_task, round_machine

import sim.cost.durations
from sim.problem import Workload
from sim.schedule import Op, Task

SETTINGS = settings(deadline=None, derandomize=True, max_examples=30)

KV_BYTES = 2 * 2 * 8 * 128  # of a token and layer of Mixtral 8x7B
D1_BYTES = 2 * (32 * 128 + 2 * 8 * 128)

TASKS = [
    one_task(Op.PRE_ATTN, 0),
    one_task(Op.PRE_ATTN),
    one_task(Op.ATTN, 0),
    one_task(Op.ATTN),
    one_task(Op.ATTN, on_cpu=True),
    one_task(Op.POST_ATTN, 0),
    one_task(Op.POST_ATTN),
    one_task(Op.HEAD),
    one_task(Op.OFFLOAD_QKV),
    one_task(Op.LOAD_HIDDEN, 0, 1),
    one_task(Op.LOAD_HIDDEN),
    one_task(Op.STORE_HIDDEN, 0),
    one_task(Op.LOAD_KV),
    one_task(Op.STORE_KV, 0),
    one_task(Op.STORE_KV),
    one_task(Op.LOAD_WEIGHTS),
    one_task(Op.LOAD_WEIGHTS_PAGEABLE),
    one_task(Op.PIN_WEIGHTS),
]
FREE_OF_TOKENS = {Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE, Op.PIN_WEIGHTS}


class TestMonotonicity:
    @given(task=st.sampled_from(TASKS), sizes=st.lists(st.integers(1, 600), min_size=2, max_size=4))
    @SETTINGS
    def test_more_requests_are_never_cheaper(self, task, sizes):
        costs = [cost_of(task, micro_batch_size=size).duration_ns for size in sorted(sizes)]
        assert costs == sorted(costs)
        if task.op in FREE_OF_TOKENS:
            assert len(set(costs)) == 1

    @given(task=st.sampled_from(TASKS), lengths=st.lists(st.integers(1, 5000), min_size=2, max_size=4))
    @SETTINGS
    def test_longer_prompts_are_never_cheaper(self, task, lengths):
        costs = [cost_of(task, workload=Workload.fixed(length, 4)).duration_ns for length in sorted(lengths)]
        assert costs == sorted(costs)

    @given(
        task=st.sampled_from(TASKS),
        path=st.sampled_from([path for path, _ in round_machine().quantities()]),
        factor=st.floats(1.0, 100.0),
    )
    @settings(SETTINGS, max_examples=150)
    def test_a_faster_machine_is_never_slower(self, task, path, factor):
        machine = round_machine()
        slower_is_more = path.endswith(("latency", "overhead"))
        share = path.endswith((".compute", ".memory"))
        value = machine.value(path)
        better = value / factor if slower_is_more else min(1.0, value * factor) if share else value * factor
        before, after = (cost_of(task, machine=one) for one in (machine, machine.with_value(path, better)))
        assert after.duration_ns <= before.duration_ns
        assert (after.bytes, after.flops) == (before.bytes, before.flops)

    def test_every_rate_of_the_machine_matters_to_some_task(self):
        machine = round_machine()
        kept = {"capacity", "pinned", "duplex"}  # limits of memories and pools, not of tasks
        unused = {"device.request_overhead", "link.peak"}  # one kernel serves all requests; HRM's roof
        unused |= {path for path, _ in machine.quantities() if kept & set(path.split("."))}
        unused |= {path for path, _ in machine.quantities() if path.startswith(("host.gemm", "host.experts"))}
        setups = [{}, {"schedule": "flexgen"}, {"attention": "gpu"}, {"workload": Workload.fixed(3000, 4)}]
        before = [[cost_of(task, **setup) for task in TASKS] for setup in setups]
        for path, value in machine.quantities():
            changed = machine.with_value(path, value / 100 if value else 1e-3)
            after = [[cost_of(task, machine=changed, **setup) for task in TASKS] for setup in setups]
            assert (after == before) == (path in unused), path


class TestCaching:
    @pytest.mark.parametrize("limit", [1, 3, 50_000])
    def test_costs_do_not_depend_on_what_was_asked_before(self, monkeypatch, limit):
        monkeypatch.setattr(sim.cost.durations, "CACHE_LIMIT", limit)
        model = few_layers("mixtral-8x7b", 4, window=64)
        uneven = Workload("uneven", (10, 90, 200), 6, padded=False)
        setup = made_setup(model=model, workload=uneven, pages=5, micro_batch_size=3, num_micro_batches=3)
        costs = setup.costs()
        tasks = [task for step in setup.schedule.steps(setup.shape, 0, 6) for task in step]
        again = [costs(task) for task in tasks]
        assert again == [costs(task) for task in tasks]
        assert again == [setup.costs()(task) for task in tasks], "a fresh model, with nothing remembered"

    def test_two_calls_give_the_same_cost_whatever_the_id(self):
        costs = made_setup().costs()
        task = one_task(Op.POST_ATTN)
        assert costs(task) is costs(Task(*task)._replace(id=99, deps=(1, 2)))

    def test_what_tells_costs_apart_is_not_forgotten(self):
        """Layer, step, micro-batch and page change the cost where they should."""
        model = few_layers("mixtral-8x7b", 2, window=64)
        uneven = Workload("uneven", (80, 90, 200), 4)  # 200 by itself, 90 and 80 together
        setup = made_setup("flexgen", 2, 2, model=model, workload=uneven)
        costs = replace(setup, policy=replace(setup.policy, batch_size=3)).costs()
        plain = costs(one_task(Op.LOAD_KV, step=1, layer=1, micro_batch=0))
        others = [
            costs(one_task(Op.LOAD_KV, step=2, layer=1, micro_batch=0)),
            costs(one_task(Op.LOAD_KV, step=1, layer=0, micro_batch=0)),
            costs(one_task(Op.LOAD_KV, step=1, layer=1, micro_batch=1)),
        ]
        assert plain not in others

    def test_costs_rise_evenly_with_the_step(self):
        costs = made_setup(workload=Workload.fixed(100, 50)).costs()
        times = [costs(one_task(Op.ATTN, step, on_cpu=True)).duration_ns for step in range(1, 50)]
        for before, after in pairwise(times):
            assert after - before == pytest.approx(8 * KV_BYTES / 25, abs=1)


def test_a_micro_batch_that_is_smaller_costs_less():
    setup = made_setup(micro_batch_size=8, num_micro_batches=2, workload=Workload("padded", (100,), 4, padded=True))
    smaller = replace(setup, policy=replace(setup.policy, batch_size=11))
    costs = smaller.costs()
    assert costs(one_task(Op.OFFLOAD_QKV, micro_batch=0)).bytes == 8 * D1_BYTES
    assert costs(one_task(Op.OFFLOAD_QKV, micro_batch=1)).bytes == 3 * D1_BYTES
