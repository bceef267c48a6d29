"""Joules: what the counter of power adds up to, whatever runs; idle and active parts; streams; both paths."""

import json
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, strategies as st
from power_examples import a_power, integral, powered, with_power
from setup_examples import SETTINGS, any_setup
from sim_examples import few_layers, made_setup, round_machine, with_hand_over

from sim.admission import Priority, RequestStream, StreamedRequest
from sim.cost import Cost, Effort
from sim.problem import Policy, Problem, Workload
from sim.schedule import CPU, GPU, H2D, NET, by_name
from sim.simulation import (
    Component,
    Draws,
    ServedCosts,
    StepTimes,
    StreamRun,
    StreamSetup,
    predict,
    record,
    record_stream,
    serve_in_batches,
    serve_stream,
    stream_tasks,
)

EXACT = 1e-6
SHORT = any_setup(st.integers(1, 3))
WORKLOAD = Workload("any", (40,), 20)


def energy(setup, **how):
    return predict(setup, compiled=True, **how).energy


def on(setup, machine):
    return replace(setup, problem=replace(setup.problem, hardware=machine))


def idle_w(machine):
    return sum(Draws(machine.power, machine).idle_w.values())


class TestOfAGeneration:
    @given(setup=SHORT.map(powered))
    @SETTINGS
    def test_joules_are_the_integral_of_the_power_counter(self, setup):
        found = energy(setup, exact=True)
        drawn = integral(record(setup, {}))
        assert drawn == pytest.approx({str(part): joules for part, joules in found.by_component_j.items()}, rel=EXACT)
        assert sum(drawn.values()) == pytest.approx(found.total_j, rel=EXACT)

    @given(setup=any_setup(st.integers(1, 40)).map(powered), scale=st.sampled_from([0.5, 2.0, 7.0]))
    @SETTINGS
    def test_it_is_idle_watts_at_least_and_in_proportion_to_what_everything_draws(self, setup, scale):
        found, said = energy(setup), predict(setup, compiled=True)
        assert found.total_j >= idle_w(setup.problem.hardware) * said.total_s
        assert found.peak_w * (1 + EXACT) >= found.average_w >= idle_w(setup.problem.hardware)
        assert energy(powered(setup, scale=scale)).total_j == pytest.approx(scale * found.total_j, rel=EXACT)
        assert sum(found.prefill_j.values()) + sum(found.decode_j.values()) == pytest.approx(found.total_j, rel=EXACT)
        assert found.j_per_token * setup.batch.generated_tokens == pytest.approx(found.total_j, rel=EXACT)

    @given(setup=any_setup(st.sampled_from([1, 4, 30])).map(powered))
    @SETTINGS
    def test_both_paths_say_the_same(self, setup):
        assert energy(setup).by_component_j == pytest.approx(predict(setup).energy.by_component_j, rel=EXACT)

    @given(setup=SHORT, hand_over=st.sampled_from([30, 2000]), slower=st.sampled_from(["link.duplex", "link.latency"]))
    @SETTINGS
    def test_what_slows_work_down_adds_idle_joules_alone(self, setup, hand_over, slower):
        machine = with_power(setup.problem.hardware)
        times = 30 if slower == "link.latency" else 0.1
        slow = with_hand_over(machine.with_value(slower, machine.value(slower) * times), hand_over)
        quick_j, slow_j = (energy(on(setup, one), exact=True) for one in (machine, slow))
        assert slow_j.span_s > quick_j.span_s
        waited = idle_w(machine) * (slow_j.span_s - quick_j.span_s)
        assert slow_j.total_j == pytest.approx(quick_j.total_j + waited, rel=1e-5)

    def test_interpolated_steps_draw_what_all_of_them_do(self):
        setup = powered(made_setup(model=few_layers("mixtral-8x7b", 3), workload=Workload.fixed(100, 200)))
        assert energy(setup).total_j == pytest.approx(energy(setup, exact=True).total_j, rel=2e-3)

    def test_devices_that_divide_the_batch_each_draw(self):
        setup = powered(made_setup(machine=round_machine(2), model=few_layers("mixtral-8x7b", 3)))
        samples = [one for one in record(setup, {}).counters if one.name == "power (W)"]
        assert {one.rank for one in samples} == {-1, 0, 1}
        parts = {one.rank: set(one.values) for one in samples}
        assert parts[0] == parts[1] == {"device", "link"}
        assert parts[-1] == {"host", "host memory", "network", "rest"}

    def test_a_machine_that_does_not_say_what_it_draws_has_no_joules(self):
        setup = made_setup(model=few_layers("mixtral-8x7b", 3))
        said = predict(setup, compiled=True)
        assert (said.energy, said.to_dict()["energy"], said.to_dict()["energy_j_per_token"]) == (None, None, None)
        assert integral(record(setup, {})) == {}

    def test_it_is_written_as_numbers(self):
        said = predict(powered(made_setup(model=few_layers("mixtral-8x7b", 3))), compiled=True).to_dict()
        assert json.loads(json.dumps(said["energy"])) == said["energy"]
        assert said["energy_j_per_token"] == pytest.approx(said["energy"]["total_j"] / (16 * 4))
        assert list(said["energy"]["by_component_j"]) == ["device", "link", "host", "host memory", "rest"]


class TestOfATask:
    """On a machine whose supply loses nothing, each part by itself."""

    machine = replace(round_machine(), power=a_power(supply=1.0))
    draws = Draws(machine.power, machine)

    def joules(self, lane, seconds=1.0, **effort):
        return self.draws.active_joules(lane, Cost(round(seconds * 1e9), effort=Effort(**effort)))

    def test_an_idle_machine_draws_its_idle_watts(self):
        assert self.draws.idle_w == {
            Component.DEVICE: 50, Component.LINK: 3, Component.HOST: 40, Component.HOST_MEMORY: 7, Component.REST: 30,
        }  # fmt: skip
        assert self.joules(GPU) == {}

    def test_a_processor_draws_by_class_of_work_up_to_its_limit(self):
        assert self.joules(GPU, compute_s=0.5) == {Component.DEVICE: pytest.approx(0.5 * (300 - 50))}
        assert self.joules(GPU, memory_s=1.0) == {Component.DEVICE: pytest.approx(240 - 50)}
        assert self.joules(GPU, compute_s=0.9, memory_s=1.0) == {Component.DEVICE: pytest.approx(310 - 50)}
        assert self.joules(CPU, compute_s=0.5) == {Component.HOST: pytest.approx(0.5 * (150 - 40))}

    def test_what_moves_draws_by_the_byte(self):
        found = self.joules(H2D, link_bytes=1e12, dram_bytes=2e12)
        assert found == {Component.LINK: pytest.approx(70), Component.HOST_MEMORY: pytest.approx(260)}
        several = Draws(a_power(devices=2, supply=1.0), round_machine(2))
        assert several.active_joules(NET, Cost(1, effort=Effort(network_bytes=1e12)))[Component.NETWORK] == (
            pytest.approx(90)
        )
        assert several.idle_w[Component.DEVICE] == 2 * self.draws.idle_w[Component.DEVICE]

    def test_copies_of_the_host_s_cores_draw_as_all_of_them_would(self):
        reads = 0.9 * 100e9  # of the round machine's DRAM, by `gemm`
        assert self.joules(H2D, copied_bytes=reads) == {Component.HOST: pytest.approx(110 - 40)}

    def test_the_supply_takes_more_than_it_delivers(self):
        machine = replace(self.machine, power=a_power(supply=0.8))
        lossy = Draws(machine.power, machine)
        assert sum(lossy.idle_w.values()) == pytest.approx(130 / 0.8)
        task = Cost(10**9, effort=Effort(compute_s=0.5))
        assert sum(lossy.active_joules(GPU, task).values()) == pytest.approx(125 / 0.8)

    def test_what_the_host_does_for_an_emulated_device_it_draws(self):
        power = replace(a_power(supply=1.0), device=None)
        draws = Draws(power, self.machine)
        assert draws.active_joules(GPU, Cost(10**9, effort=Effort(compute_s=0.5))) == {
            Component.HOST: pytest.approx(0.5 * 110)
        }
        assert Component.DEVICE not in draws.idle_w


@cache
def stream_setup(prefill_chunk=64):
    problem = Problem(few_layers("mixtral-8x7b", 2), with_power(round_machine()), WORKLOAD)
    policy = Policy.usual(by_name("cgopipe"), 6, 3, pin_weights=0.5)
    return StreamSetup(problem, by_name("cgopipe"), policy, prefill_chunk)


def requests(*arrivals_s, tokens=8):
    made = (StreamedRequest(at, 30, 20, tokens, round(when * 1e9)) for at, when in enumerate(arrivals_s))
    return RequestStream("made", tuple(made))


class TestOfAStream:
    @staticmethod
    def drawn(setup, served, tasks):
        """By active watts alone, of tasks of these steps."""
        draws, costs = Draws(setup.problem.hardware.power, setup.problem.hardware), ServedCosts(setup, served)
        return sum(sum(draws.active_joules(task.lane, costs(task)).values()) for task in tasks)

    def test_steps_draw_what_their_tasks_do(self):
        setup = stream_setup()
        run = StreamRun.of(setup, requests(*[0.0] * 9), setup.rules(Priority.ARRIVAL))
        served = [next(run.steps()) for _ in range(5)]
        tasks = [task for step in stream_tasks(setup.schedule, setup.shape, 5) for task in step]
        drawn = self.drawn(setup, served, tasks)
        assert sum(run.times.active_j.values()) == pytest.approx(drawn, rel=EXACT)

    def test_what_is_fetched_for_nobody_draws_nothing(self):
        setup = stream_setup()
        run = StreamRun.of(setup, requests(0.0), setup.rules())
        served = list(run.steps())
        tasks = [task for step in stream_tasks(setup.schedule, setup.shape, len(served)) for task in step]
        needed = [task for task in tasks if task.step <= len(served)]
        assert 0 < len(needed) < len(tasks)
        drawn = self.drawn(setup, served, needed)
        assert sum(run.times.active_j.values()) == pytest.approx(drawn, rel=EXACT)

    def test_while_nobody_is_there_the_machine_idles(self):
        near, far = (serve_stream(stream_setup(), requests(0.0, gap)) for gap in (500.0, 900.0))
        apart = far.drawn.total_j - near.drawn.total_j
        assert apart == pytest.approx(400 * idle_w(stream_setup().problem.hardware), rel=EXACT)
        alone = serve_stream(stream_setup(), requests(0.0))
        twice = 2 * alone.drawn.total_j + (near.total_s - 2 * alone.total_s) * idle_w(stream_setup().problem.hardware)
        assert near.drawn.total_j == pytest.approx(twice, rel=EXACT)

    def test_simpy_says_the_same(self):
        compositions = [
            next(run.steps()).composition
            for run in [StreamRun.of(stream_setup(), requests(*[0.0] * 4), stream_setup().rules())]
            for _ in range(3)
        ]
        drawn = []
        for compiled in (True, False):
            times = StepTimes(stream_setup(), compiled=compiled)
            for before, now in zip([None, *compositions], compositions, strict=False):
                times.span_ns(before, now)
            times.none_follows()
            drawn.append(times.active_j)
        assert drawn[0] == pytest.approx(drawn[1], rel=EXACT)

    def test_a_batch_draws_what_predict_says(self):
        setup = powered(made_setup("flexgen", 4, 2, model=few_layers("mixtral-8x7b", 2), workload=WORKLOAD))
        stream = RequestStream.of(WORKLOAD, setup.policy.batch_size)
        found = serve_in_batches(setup, stream)
        assert found.drawn.by_component_j == pytest.approx(predict(setup).energy.by_component_j, rel=EXACT)
        assert found.energy_j_per_token == pytest.approx(found.energy["total_j"] / found.generated_tokens)

    def test_its_trace_has_the_counter(self):
        setup = stream_setup()
        found = integral(record_stream(setup, requests(0.0, 0.0), setup.rules(), {}))
        assert set(found) == {"device", "link", "host", "host memory", "rest"}
