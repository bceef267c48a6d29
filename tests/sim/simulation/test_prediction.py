"""Predictions: sampled steps against all steps, every number's definition, and the order of published results."""

import json
from collections import Counter as Tally
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from setup_examples import SETTINGS, any_setup
from sim_examples import few_layers, made_setup, preset, round_machine

from sim.cost import Setup
from sim.planning import best_policy
from sim.problem import Hardware, Model, Placement, Policy, Problem, Workload
from sim.schedule import LaneKind, Op, by_name, over_ranks, registered
from sim.simulation import LaneSummary, Simulation, predict
from sim.simulation.prediction import Phase
from traces.errors import InputError

ALL = sorted(registered())
OTHERS = [("qwen3-30b-a3b", "rtx4090"), ("deepseek-v2-lite", "rtx3090"), ("gpt-oss-120b", "l40s")]
ON_OTHER_MACHINES = [
    pytest.param(name, *other, marks=[] if (at + of) % 3 == 0 else pytest.mark.exhaustive)
    for at, name in enumerate(ALL)
    for of, other in enumerate(OTHERS)
]
"""Every schedule on one of them, and by a marker on all."""


def simulated(setup):
    """The whole generation straight from the simulator: end of each step's last token, busy time of each lane.

    The last step has ended when nothing runs any more.
    """
    ends, busy = {}, Tally()

    def note(one):
        busy[str(one.task.lane)] += one.end_ns - one.start_ns
        if one.task.op is Op.HEAD or one.task.step == gen_len - 1:
            ends[one.task.step] = max(ends.get(one.task.step, 0), one.end_ns)

    costs, gen_len = setup.costs(), setup.problem.workload.gen_len
    steps = over_ranks(setup.schedule.steps(setup.shape, 0, gen_len), setup.num_ranks)
    Simulation(steps, costs, costs.capacities, on_task=note).run()
    return ends, busy


ROOM = dict.fromkeys(("host_memory__bandwidth", "device_memory__bandwidth", "link__duplex"), 1e15)
"""Numbers of a machine on which no lane slows another down."""


class TestPageLockedWeights:
    @given(
        name=st.sampled_from(ALL),
        shares=st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=2).map(sorted),
        count=st.integers(1, 4),
        pages=st.none() | st.integers(1, 9),
        pin_rate=st.sampled_from([1e9, 5e9, 40e9]),
    )
    @SETTINGS
    def test_a_larger_share_is_never_slower(self, name, shares, count, pages, pin_rate):
        machine, model = round_machine(**ROOM, pin=pin_rate), few_layers("mixtral-8x7b", 3)
        less, more = (
            predict(made_setup(name, 4, count, model=model, machine=machine, pin_weights=one, pages=pages), exact=True)
            for one in shares
        )
        assert more.prefill_s <= less.prefill_s
        assert more.total_s <= less.total_s

    def test_a_pin_copy_that_binds_takes_as_much_less_as_is_page_locked(self):
        """One core stages 1 GB/s of 2.8 GB a layer: with three quarters of it page-locked, a quarter of the time."""
        machine = round_machine(**ROOM, pin=1e9)
        given_ = {"model": few_layers("mixtral-8x7b", 4), "workload": Workload.fixed(100, 40), "pages": 40}
        none, most = (predict(made_setup(machine=machine, pin_weights=share, **given_)) for share in (0.0, 0.75))
        assert (none.decode.bottleneck, most.decode.bottleneck) == ("PIN", "PIN")
        assert most.decode_s / none.decode_s == pytest.approx(0.25, rel=0.05)


class TestSampling:
    @given(setup=any_setup(st.integers(12, 45)))
    @SETTINGS
    def test_sampled_steps_predict_all_steps(self, setup):
        sampled, exact = predict(setup), predict(setup, exact=True)
        assert sampled.total_s == pytest.approx(exact.total_s, rel=2e-3)
        assert sampled.prefill_s == exact.prefill_s
        for name, lane in exact.lanes.items():
            assert sampled.lanes[name].busy_s == pytest.approx(lane.busy_s, rel=5e-3, abs=1e-3 * exact.total_s)

    @given(setup=any_setup(st.integers(1, 20)))
    @SETTINGS
    def test_exact_is_what_the_simulator_says_of_the_whole_generation(self, setup):
        ends, busy = simulated(setup)
        exact = predict(setup, exact=True)
        assert exact.simulated_steps == sorted(ends)
        assert exact.prefill_s == pytest.approx(ends[0] * 1e-9, rel=1e-12)
        assert exact.total_s == pytest.approx(max(ends.values()) * 1e-9, rel=1e-12)
        assert {name: lane.busy_s for name, lane in exact.lanes.items()} == pytest.approx(
            {name: ns * 1e-9 for name, ns in busy.items()}, rel=1e-9
        )

    @pytest.mark.parametrize("name", ALL)
    def test_a_long_generation_of_a_real_model(self, name):
        """With a bend in it: with FlexGen the cache takes over the link on the way."""
        asked = Workload.load("mtbench").with_(gen_len=128, padded=True)
        problem = Problem(few_layers("mixtral-8x7b", 8), Hardware.load("gcp-t4"), asked)
        schedule = by_name(name)
        count = 1 if schedule.system.one_batch else 3
        setup = Setup(problem, schedule, Policy.usual(schedule, 36 * count, 36, pin_weights=name == "flexgen"))
        sampled, exact = predict(setup), predict(setup, exact=True)
        assert sampled.total_s == pytest.approx(exact.total_s, rel=2e-3)
        assert len(exact.simulated_steps) == 128
        assert len(sampled.simulated_steps) < 24
        assert sampled.simulated_tasks < exact.simulated_tasks / 2

    @pytest.mark.parametrize("name", ["flexgen", "cgopipe"])
    def test_a_window_that_fills_up_on_the_way(self, name):
        """The cache alone takes the time, and half of the layers stop at 70 of 100 tokens."""
        model, workload = few_layers("mixtral-8x7b", 4, window=70), Workload.fixed(40, 60)
        machine = round_machine(link__h2d_pageable=1e8, host__attention__memory=1e-3, device_memory__capacity=1e12)
        setup = made_setup(name, 64, model=model, workload=workload, machine=machine, experts_on_device=1.0)
        sampled, exact = predict(setup), predict(setup, exact=True)
        assert sampled.total_s == pytest.approx(exact.total_s, rel=1e-3)
        assert len(sampled.simulated_steps) > 7, "the chord alone is not good enough"

    @pytest.mark.parametrize(
        ("name", "num_layers", "size", "count", "pin", "slower"),
        [
            ("fastdecode", 4, 1, 2, False, {"host_memory.bandwidth": 7.5e9}),
            ("fastdecode", 1, 4, 1, False, {}),
            (
                "zero",
                2,
                1,
                1,
                True,
                {"device.gemm.compute": 0.012, "link.duplex": 8e9, "device_memory.bandwidth": 5e9},
            ),
            ("cgopipe", 1, 4, 3, False, {"link.d2h": 5.5e9, "pin": 4e11}),
        ],
    )
    def test_a_step_finds_its_neighbours_on_the_lanes(self, name, num_layers, size, count, pin, slower):
        """Few layers, so that what steps fetch for each other and what they take from shared pools is much of them."""
        machine, schedule = Hardware.load("gcp-t4"), by_name(name)
        for path, value in slower.items():
            machine = machine.with_value(path, value)
        problem = Problem(few_layers("mixtral-8x7b", num_layers), machine, Workload("uneven", (5, 10, 30, 50), 60))
        setup = Setup(problem, schedule, Policy.usual(schedule, size * count, size, pin_weights=pin))
        sampled, exact = predict(setup), predict(setup, exact=True)
        assert sampled.total_s == pytest.approx(exact.total_s, rel=1e-3)
        assert len(sampled.simulated_steps) <= 12, "the last steps, which fetch less, do not bend the curve"

    def test_prefill_and_the_last_steps_are_simulated_themselves(self):
        steps = predict(made_setup(workload=Workload.fixed(100, 200))).simulated_steps
        assert steps[:2] == [0, 1]
        assert steps[-2:] == [198, 199]
        assert len(steps) < 20


class TestNumbers:
    @given(setup=any_setup(st.integers(2, 40)))
    @SETTINGS
    def test_no_lane_works_longer_than_the_run_and_the_busiest_bounds_it(self, setup):
        said = predict(setup)
        assert said.lower_bound_s == max(lane.busy_s for lane in said.lanes.values())
        assert said.lower_bound_s == said.lanes[said.bottleneck].busy_s
        assert said.lower_bound_s <= said.total_s * (1 + 1e-9)
        assert 0 <= said.gpu_idle < 1
        for lane in said.lanes.values():
            assert lane.utilisation == pytest.approx(lane.busy_s / said.total_s, rel=1e-9)
            assert all(waited >= 0 for waited in lane.waited_s.values())

    @given(setup=any_setup(st.integers(1, 12)))
    @SETTINGS
    def test_a_device_computes_or_waits_until_the_last_token(self, setup):
        said = predict(setup, exact=True)
        for name, lane in said.lanes.items():
            if name.startswith("GPU"):
                assert lane.busy_s + sum(lane.waited_s.values()) == pytest.approx(said.total_s, rel=0.01)
            elif not name.startswith("D2H"):  # the last cache entries leave after the last token
                assert lane.busy_s + sum(lane.waited_s.values()) <= said.total_s * (1 + 1e-9)

    @pytest.mark.parametrize("name", ALL)
    def test_idle_time_is_told_by_what_it_was_spent_on_when_steps_are_sampled_too(self, name):
        setup = made_setup(name, model=few_layers("mixtral-8x7b", 8), workload=Workload.fixed(50, 64))
        sampled, exact = predict(setup), predict(setup, exact=True)
        for lane, truth in exact.lanes.items():
            for op in truth.waited_s | sampled.lanes[lane].waited_s:
                told, true = (one.lanes[lane].waited_s.get(op, 0.0) for one in (sampled, exact))
                assert told == pytest.approx(true, rel=0.02, abs=0.01 * exact.total_s)

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("gen_len", [1, 2, 3])
    def test_short_generations(self, name, gen_len):
        setup = made_setup(name, model=few_layers("mixtral-8x7b", 3), workload=Workload.fixed(100, gen_len))
        said = predict(setup)
        ends, _ = simulated(setup)
        assert said.simulated_steps == list(range(gen_len))
        assert said.total_s == pytest.approx(ends[gen_len - 1] * 1e-9, rel=1e-12)
        assert (said.decode_s > 0) == (gen_len > 1)
        assert (said.hrm_tokens_per_s is None) == (gen_len == 1)

    @pytest.mark.parametrize("padded", [True, False])
    def test_throughput_counts_every_generated_token_of_the_requests_that_ran(self, padded):
        workload = Workload("uneven", (20, 20, 20, 600), 7, padded=padded)
        said = predict(made_setup("cgopipe", 2, 2, model=few_layers("mixtral-8x7b", 3), workload=workload))
        ran = 4 if padded else 3  # the long prompt overflows what the average sets aside, and waits
        assert said.num_requests == ran
        assert said.throughput_tokens_per_s == pytest.approx(7 * ran / (said.prefill_s + said.decode_s), rel=1e-12)

    @pytest.mark.parametrize("name", ALL)
    def test_the_same_setup_gives_the_same_prediction(self, name):
        first, second = (predict(made_setup(name, workload=Workload.fixed(100, 20))).to_dict() for _ in range(2))
        assert first.pop("wall_s") > 0
        assert second.pop("wall_s") > 0
        assert first == second

    def test_time_beyond_the_busiest_lane_is_that_of_each_phase_s_own(self):
        """10 s of which a lane works 8, then 30 s of which another works 24: 40 s for 32 s of work."""
        by_hand = replace(predict(made_setup()), prefill=Phase(10.0, "GPU", 8.0), decode=Phase(30.0, "CPU", 24.0))
        assert by_hand.over_busiest == pytest.approx(0.25)

    def test_devices_are_idle_for_the_mean_of_what_they_do_not_work(self):
        told = predict(made_setup(model=few_layers("mixtral-8x7b", 2), machine=round_machine(2)))
        lanes = {"GPU:0": 0.5, "GPU:1": 0.75, "CPU:0": 0.1}
        by_hand = replace(told, lanes={name: LaneSummary(1.0, share, {}) for name, share in lanes.items()})
        assert by_hand.gpu_idle == pytest.approx(0.375)

    def test_it_is_told_as_json(self):
        told = predict(made_setup()).to_dict()
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert told["feasible"] is True
        assert told["policy"] == made_setup().policy.to_dict()
        assert told["memory_peak_bytes"] == made_setup().memory.peak_bytes()

    def test_more_of_a_generation_takes_longer_and_a_faster_link_less(self):
        times = [predict(made_setup(workload=Workload.fixed(100, n))).total_s for n in (1, 2, 5, 20, 80)]
        assert times == sorted(times)
        machines = [round_machine(link__h2d=rate, pin=1e12) for rate in (5e9, 10e9)]
        slow, fast = (predict(made_setup(machine=machine)).total_s for machine in machines)
        assert fast < slow

    def test_what_does_not_fit_is_refused_with_the_memory_and_the_bytes(self):
        setup = made_setup(machine=round_machine(device_memory__capacity=1e9))
        with pytest.raises(InputError, match=r"device memory is [\d,]+ bytes short"):
            predict(setup)


@cache
def on_s1(name, size, count, gen_len):
    """Tokens per second of Mixtral 8x7B on MoE-Lightning's setting S1, MTBench padded."""
    asked = Workload.load("mtbench").with_(gen_len=gen_len, padded=True)
    problem, schedule = Problem(preset("mixtral-8x7b"), Hardware.load("gcp-t4"), asked), by_name(name)
    if size is None:
        return predict(best_policy(problem, schedule).best.setup).throughput_tokens_per_s
    setup = Setup(problem, schedule, Policy.usual(schedule, size * count, size))
    return predict(setup, compiled=True).throughput_tokens_per_s


class TestPublishedOrder:
    """MoE-Lightning (ASPLOS 2025), tables 4 and 5: who is faster, with the policies that were published."""

    def test_the_ablation_keeps_its_order(self):
        runs = [("flexgen", 8, 139), ("flexgen", 36, 14), ("flexgen", 36, 31), ("cgopipe", 36, 14)]
        rates = [on_s1(*run, 128) for run in runs]
        assert rates == sorted(rates)
        assert all(after > 1.1 * before for before, after in pairwise(rates))

    @pytest.mark.parametrize(("gen_len", "size", "count"), [(32, 32, 40), (64, 16, 78), (128, 8, 139), (256, 8, 113)])
    def test_cgopipe_wins_at_every_generation_length(self, gen_len, size, count):
        ours = on_s1("cgopipe", 36, 14, gen_len)
        assert ours > on_s1("flexgen", size, count, gen_len)
        assert ours > on_s1("flexgen-c", size, count, gen_len)
        assert ours > on_s1("zero", None, None, gen_len)

    def test_cpu_attention_does_not_help_flexgen_on_this_host(self):
        for gen_len, size, count in ((32, 32, 40), (256, 8, 113)):
            assert on_s1("flexgen-c", size, count, gen_len) < on_s1("flexgen", size, count, gen_len)

    def test_longer_generations_are_worth_more(self):
        rates = [on_s1("cgopipe", 36, 14, gen_len) for gen_len in (32, 64, 128, 256)]
        assert rates == sorted(rates)


class TestOtherMachines:
    def test_tensor_parallelism_over_two_devices(self):
        asked = Workload.load("mtbench").with_(gen_len=32, padded=True)
        problem = Problem(preset("mixtral-8x22b"), Hardware.load("gcp-2xt4"), asked)
        said = predict(Setup(problem, by_name("cgopipe"), Policy.usual(by_name("cgopipe"), 252, 36)))
        kinds = Tally(name.partition(":")[0] for name in said.lanes)
        assert kinds == {**{kind.value: 2 for kind in LaneKind if kind.value not in ("NET", "DISK")}, "NET": 1}
        for kind in ("GPU", "H2D", "D2H", "PIN"):
            assert said.lanes[kind].busy_s == pytest.approx(said.lanes[f"{kind}:1"].busy_s, rel=0.01)
        assert 252 * 32 / said.total_s == pytest.approx(said.throughput_tokens_per_s)
        assert said.lower_bound_s <= said.total_s

    def test_two_devices_are_faster_than_one_and_less_than_twice(self):
        rates = [predict(made_setup(machine=round_machine(n))).throughput_tokens_per_s for n in (1, 2)]
        assert rates[0] < rates[1] < 2 * rates[0]

    @pytest.mark.parametrize(("name", "model", "machine"), ON_OTHER_MACHINES)
    def test_other_models_on_other_machines(self, name, model, machine):
        problem = Problem(preset(model), Hardware.load(machine), Workload.load("mtbench").with_(gen_len=24))
        schedule = by_name(name)
        setup = Setup(problem, schedule, Policy.usual(schedule, 16 if schedule.system.one_batch else 48, 16))
        said = predict(setup)
        assert said.total_s == pytest.approx(predict(setup, exact=True).total_s, rel=2e-3)
        assert said.lower_bound_s <= said.total_s
        placement = Placement.of(setup.policy, schedule, problem.model)
        weights = sum(map(placement.streamed_bytes, placement.kinds))
        streams_s = 24 * weights / problem.hardware.link.h2d_bytes_per_s
        assert said.total_s > streams_s, "every step brings all streamed weights over the link"


@pytest.mark.parametrize("hardware", ["gcp-t4", "gcp-2xt4", "rtx4090"])
@pytest.mark.parametrize("name", registered())
def test_demands_that_cannot_slow_anything_down_change_nothing(name, hardware):
    """Leaving them out is only a matter of speed: every task runs exactly as with all of them."""
    problem = Problem(
        Model.load("mixtral-8x7b"), Hardware.load(hardware), Workload.load("mtbench").with_(gen_len=8, padded=True)
    )
    setup = Setup(problem, by_name(name), Policy.usual(by_name(name), 36, 36 if by_name(name).system.one_batch else 12))
    runs = []
    for only_contended in (False, True):
        costs, times = setup.costs(only_contended=only_contended), []
        steps = over_ranks(setup.schedule.steps(setup.shape, 0, 3), problem.hardware.num_devices)
        Simulation(
            steps,
            costs,
            costs.capacities,
            on_task=lambda one, times=times: times.append((one.task, one.start_ns, one.end_ns)),
        ).run()
        runs.append(times)
    assert runs[0] == runs[1]
    assert any(len(setup.costs()(task).demands) > len(costs(task).demands) for task, *_ in runs[0])
