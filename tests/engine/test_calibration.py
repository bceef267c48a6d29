"""Calibration: what is measured, what is fitted to it, and the machine's file that comes out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from engine_models import make, make_prompts
from hypothesis import given, settings, strategies as st
from short_calibrations import short_calibrations

import engine
from engine.calibration import Round, calibrate, described, fitted, measure_machine, planned_for
from engine.calibration.fit.interference import (
    contended,
    contended_on_host,
    hand_overs_s,
    measured_slowdowns,
    with_interference,
)
from engine.calibration.fit.machine import ROOM, settled, unfitted
from engine.calibration.fit.roofs import GROUPS, fit_all, predicted_s, with_ratios
from engine.calibration.measure.host_experts import (
    CALLS,
    TOKENS,
    Beside,
    HostExpertsTime,
    _beside,
    host_samples,
    time_host_experts,
)
from engine.calibration.measure.measured import Measured, repeated
from engine.calibration.measure.probes import FEW_REPEATS, LinkProbe, Probes, probe
from engine.calibration.measure.rounds import (
    median_host_experts,
    median_host_unpack_rate,
    median_probes,
    median_split_cost,
    median_unpack_rate,
)
from engine.calibration.measure.runs import MAX_TOKENS, MeasuredRun, Sample, conditions, run_all, samples_of
from engine.calibration.measure.split_experts import differences, split_cost
from engine.calibration.measure.unpacking import host_unpack_rate, unpack_rate
from engine.calibration.measure.what_fits import keep_first_layers, layers_to_measure
from engine.cli import main
from engine.device import EmulatedDevice
from engine.host import HostExperts
from engine.model import with_experts
from engine.running.demo import make_model
from sim.cost import GROWS_WITH_CONTEXT
from sim.problem import AtTokens, Basis, Hardware, Quantity
from sim.schedule import Op
from sim.simulation import Simulation, span_of
from traces.trace import Span

MB = 1e6
GIB = 1 << 30
TRUE = {
    "device.gemm.latency": 3e-4,
    "device.gemm.compute": 0.12,
    "device.gemm.memory": 0.2,
    "device.gemm.overlap": 0.4,
    "device.experts.latency": 5e-4,
    "device.experts.compute": 0.2,
    "device.experts.memory": 0.15,
    "device.experts.overlap": 0.1,
    "device.attention.latency": 2e-4,
    "device.attention.compute": 0.03,
    "device.attention.memory": 0.05,
    "device.attention.overlap": 0.5,
    "device.head.latency": 8e-4,
    "device.head.compute": 0.1,
    "device.head.memory": 0.1,
    "device.head.overlap": 0.3,
    "device.route.latency": 2e-4,
    "device.route.compute": 0.1,
    "device.route.memory": 0.2,
    "device.route.overlap": 0.4,
    "device.experts_apart.latency": 3e-4,
    "device.experts_apart.compute": 0.2,
    "device.experts_apart.memory": 0.15,
    "device.experts_apart.overlap": 0.1,
    "host.launch_latency": 2e-4,
    "host.request_overhead": 4e-6,
    "host.decode_attention.memory": 0.3,
    "host.experts.latency": 1e-4,
    "host.experts.compute": 0.4,
    "host.experts.memory": 0.7,
    "link.latency": 1e-4,
}
"""What a made-up machine has; the fit is to find it again."""


@pytest.fixture(scope="module")
def device():
    with EmulatedDevice(0.5e9, 0.25e9, 1 << 28) as made:
        yield made


@pytest.fixture(scope="module")
def probes(device):
    return probe(device, torch.float32, FEW_REPEATS)


@pytest.fixture(scope="module")
def start(device):
    """A machine before its fit, of made-up probes: what is found again must not depend on who else is at work here."""
    one = [Measured.of([value], "made up") for value in (0.5e9, 0.25e9, 0.5e9, 0.25e9, 0.7e9, 3e-5, 5e9, 1e10, 1e10)]
    peak = Measured.of([5e10], "made up")
    return unfitted("here", device, Probes(LinkProbe(*one[:6]), *one[6:], peak, peak))


@pytest.fixture(scope="module")
def model():
    return make("mixtral", hidden_size=64, intermediate_size=128, num_hidden_layers=3)


@pytest.fixture
def quick_calibrations():
    with short_calibrations():
        yield


def made_up_samples(hardware, model, planned, spoil=lambda seconds, at: seconds):
    """What the runs would show on that machine: every task of the first layer, or the head."""
    found = []
    for condition in planned:
        cost, seen = condition.costs(model, hardware), set()
        for task in (task for step in condition.steps(model) for task in step):
            key = (task.op, task.step if task.op in GROWS_WITH_CONTEXT else task.step > 0, task.lane, task.page)
            if key not in seen:
                seen.add(key)
                seconds = spoil(cost(task).duration_ns / 1e9, len(found))
                found.append(Sample(condition, task, seconds, 1))
    return found


def made_up_on_host(hardware, model):
    """What its experts on the host would take."""
    samples = host_samples([time_on_host(tokens) for tokens in TOKENS], model)
    seconds = predicted_s(hardware, model, samples)
    return [one._replace(mean_s=s) for one, s in zip(samples, seconds, strict=True)]


def time_on_host(tokens, beside=Beside.NOTHING, seconds=1.0):
    return HostExpertsTime(tokens, beside, Measured.of([seconds], "made up"))


def durations(hardware, model, samples):
    return 1e9 * np.array(predicted_s(hardware, model, samples))


def by_roofs_alone(hardware):
    device = hardware.device
    smooth = {name: replace(getattr(device, name), at_tokens=()) for name in ("gemm", "experts", "head")}
    return replace(hardware, device=replace(device, **smooth))


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_fit_finds_a_machine_again(start, model, spoilt):
    truth = start
    for path, value in TRUE.items():
        truth = truth.with_value(path, value)
    planned, known = conditions(4096), described(model)
    samples = made_up_samples(truth, known, planned, lambda s, at: s * (4 if spoilt and at % 12 == 0 else 1))
    samples += made_up_on_host(truth, known)
    found, fits = fit_all(start, known, samples)
    for machine in (found, by_roofs_alone(found)):
        ratios = durations(machine, known, samples) / durations(truth, known, samples)
        assert np.median(np.abs(ratios - 1)) < (0.03 if spoilt else 0.01)
        assert np.quantile(np.abs(ratios - 1), 0.9) < (0.1 if spoilt else 0.03)
    assert {fit.what for fit in fits} == {group.what for group in GROUPS}
    assert all(found.value(path).basis is Basis.MEASURED for path in TRUE)
    if spoilt:
        assert max(fit.worst_error for fit in fits) > 0.5


def test_prompts_show_what_experts_apart_compute(start, model):
    """In decode they wait for memory: what a device computes of prompts would be a guess."""
    known, shares = described(model), {"device.experts_apart.compute": 0.1, "device.experts_apart.memory": 0.03}
    truth = start
    for path, value in (TRUE | shares).items():
        truth = truth.with_value(path, value)
    samples = made_up_samples(truth, known, conditions(4096))
    found, _ = fit_all(start, known, samples)
    large = [one for one in samples if one.task.op is Op.DEVICE_EXPERTS and one.tokens >= 512]
    assert large
    assert durations(found, known, large) == pytest.approx(durations(truth, known, large), rel=0.1)


def test_a_fixed_time_that_was_measured_is_not_fitted(device, probes, model):
    planned, known = conditions(64, quick=True), described(model)
    place = Measured.of([3e-4, 4e-4, 7e-4], "a test")
    start = unfitted("here", device, probes, place)
    samples = made_up_samples(start.with_value("device.experts.latency", 1e-3), known, planned)
    found, _ = fit_all(start, known, samples)
    assert found.device.experts.latency_s == pytest.approx(4e-4)
    assert found.device.experts.latency_s.source.startswith("a test; median of 3")
    shorter = unfitted("here", device, probes, Measured.of([-1e-4], "a test"))
    assert shorter.device.experts.latency_s == 0


def test_what_tasks_take_at_their_number_of_tokens_is_found_again(start, model):
    """Of a machine whose kernels have steps the fit finds the roofs nearly, and the times at each size."""
    start = start.with_value("device.launch_latency", 1e-3)  # which is not the classes' own
    planned, known = conditions(4096), described(model)
    decode = ((1, 1.1), (4, 0.9), (16, 1.3), (64, 1.0))
    ratios = {"gemm": (*decode, (256, 1.2), (1024, 0.9)), "experts": decode, "head": decode}
    truth = start
    for path, value in TRUE.items():
        truth = truth.with_value(path, value)
    tiled = {
        name: replace(
            getattr(truth.device, name),
            at_tokens=tuple(AtTokens(tokens, Quantity(ratio, "1")) for tokens, ratio in given),
        )
        for name, given in ratios.items()
    }
    truth = replace(truth, device=replace(truth.device, **tiled))
    samples = [
        one
        for one in made_up_samples(truth, known, planned)
        if one.task.op is Op.PRE_ATTN or (one.task.op in (Op.POST_ATTN, Op.HEAD) and one.task.step)
    ]
    found, _ = fit_all(start, known, samples)
    ratios = durations(found, known, samples) / durations(truth, known, samples)
    assert np.abs(ratios - 1).max() < 0.02
    for name in tiled:
        written = getattr(found.device, name).at_tokens
        prefill = [128, 256, 512, 1024] if name == "gemm" else []  # fewer tokens are decode's
        assert [one.tokens for one in written] == [1, 4, 16, 64, *prefill]
        assert all(one.time_ratio.basis is Basis.MEASURED for one in written)
    ratios = durations(by_roofs_alone(found), known, samples) / durations(truth, known, samples)
    assert np.abs(ratios - 1).max() > 0.05


def test_experts_on_the_host_are_told_apart_by_the_tokens_of_an_expert(start, model):
    """Of 4 experts, of which each token uses 2, 16 tokens give each one 8."""
    known = described(model)
    truth = start
    for path, value in TRUE.items():
        truth = truth.with_value(path, value)
    given = ((1, 1.0), (2, 0.9), (8, 1.2), (32, 1.5), (128, 0.7))
    tiled = tuple(AtTokens(tokens, Quantity(ratio, "1")) for tokens, ratio in given)
    tiled_host = replace(truth.host, experts=replace(truth.host.experts, at_tokens=tiled))
    samples = made_up_on_host(replace(truth, host=tiled_host), known)
    found = with_ratios(truth, "host.experts", known, samples).host.experts
    assert [(one.tokens, float(one.time_ratio)) for one in found.at_tokens] == [
        (tokens, pytest.approx(ratio, rel=0.02)) for tokens, ratio in given
    ]


def test_experts_run_on_the_host_as_often_as_asked_and_by_all_layers_in_turn(model, device, monkeypatch):
    called = []
    compute = HostExperts.__call__
    monkeypatch.setattr(
        HostExperts, "__call__", lambda self, *call: called.append((self.down, len(call[0]))) or compute(self, *call)
    )
    held = device.memory.usage.current_bytes
    found = time_host_experts(model, described(model), device, 1, (1, 4))
    assert {(one.tokens, one.beside) for one in found if one.beside is Beside.NOTHING} == {
        (1, "nothing"),
        (4, "nothing"),
    }
    assert {one.beside for one in found} == set(Beside)
    assert all(one.seconds.median > 0 and one.seconds.count == CALLS for one in found)
    assert len(called) == len(found) * (1 + CALLS)
    assert all(before[0] is not after[0] for before, after in pairwise(called))
    assert device.memory.usage.current_bytes == held


def test_a_calibration_needs_no_more_than_a_run_of_small_micro_batches(model):
    """Runs that a device has no room for are made with fewer requests and shorter prompts, each of them once."""
    with EmulatedDevice(None, None, GIB) as large:
        run = engine.run(model, make_prompts(8, 8), "cgopipe", micro_batch_size=1, max_new_tokens=5, device=large)
    device_bytes = int(1.05 * run.stats.peak_bytes["device"])
    usual, planned = planned_for(model, GIB), planned_for(model, device_bytes)
    assert len(set(planned)) == len(planned) < len(usual)
    assert {one.alone for one in planned} == {True, False}
    with EmulatedDevice(None, None, device_bytes) as small:
        with keep_first_layers(model, layers_to_measure(model, device_bytes)):
            run_all(model, small, planned)
        assert 0.7 * device_bytes < small.memory.usage.peak_bytes <= device_bytes


def test_experts_that_the_host_cannot_compute_are_not_measured(device):
    model = make("jetmoe")
    assert time_host_experts(model, described(model), device, 1) == []
    assert not any(one.schedule.system.splits_experts for one in planned_for(model, GIB))


def test_runs_show_experts_apart_from_their_layers_each_place_alone(model, device):
    """What takes part of a layer's time is a class of its own; where nothing shows it, others stand for it."""
    planned = [one for one in planned_for(model, GIB, quick=True) if one.schedule.system.splits_experts]
    spans = run_all(model, device, planned)
    found = samples_of(map(MeasuredRun, planned, spans))
    ops = {one.task.op for one in found if one.task.step}
    assert {Op.ROUTE, Op.DEVICE_EXPERTS, Op.HOST_EXPERTS, Op.OFFLOAD_TOKENS, Op.LOAD_OUTPUT} <= ops
    assert all(one.alone for one in planned)


def test_classes_that_no_run_shows_are_left_to_others(start, model):
    planned, known = conditions(64, quick=True, apart=False), described(model)
    found, _ = fit_all(start, known, made_up_samples(start, known, planned))
    assert found.device.route is found.device.experts_apart is None
    assert settled(found).device.experts is not None


def test_the_device_s_shared_experts_are_not_taken_for_routed_ones():
    """Of a layer whose routed experts are on the host the device computes only the shared ones."""

    def span(op, layer, took, lane="GPU"):
        return Span(layer, op, lane, 0, 1, layer, 0, -1, 0, took)

    spans = [span("DeviceExperts", 0, 10), span("HostExperts", 0, 900, "CPU"), span("DeviceExperts", 1, 500)]
    found = [one for one in samples_of([MeasuredRun(None, spans)]) if one.task.op is Op.DEVICE_EXPERTS]
    assert [one.mean_s for one in found] == pytest.approx([10e-9, 500e-9])


def test_what_runs_show_of_experts_on_the_host_is_not_taken_from_elsewhere(model):
    times = [time_on_host(tokens) for tokens in (1, 4, 16)]
    assert [one.condition.size[0] for one in host_samples(times, described(model), {1, 16})] == [4]


def test_what_goes_on_beside_experts_on_the_host_has_begun_and_ends(device, monkeypatch):
    """And what fails there is heard of."""
    copied = []
    transfer = type(device.h2d).transfer
    monkeypatch.setattr(type(device.h2d), "transfer", lambda *call: copied.append(call) or transfer(*call))
    with _beside(Beside.STREAM, device):
        assert copied
    count = len(copied)
    with _beside(Beside.NOTHING, device):
        assert len(copied) == count

    def broken(*_):
        raise RuntimeError("no link")

    monkeypatch.setattr(type(device.h2d), "transfer", broken)
    with pytest.raises(RuntimeError, match="no link"), _beside(Beside.STREAM, device):
        pass


def test_experts_on_the_host_beside_other_work_are_compared_with_themselves_alone():
    times = [time_on_host(1, seconds=2.0), time_on_host(1, Beside.STREAM, 3.0), time_on_host(16, Beside.COMPUTE, 9.0)]
    (pair,) = contended_on_host(times)
    assert (pair.alone_s, pair.beside_s, pair.slowdown) == (2.0, 3.0, 1.5)
    assert "1 tokens, beside streaming weights" in pair.op


def test_times_on_the_host_are_those_of_the_middle_round(probes):
    rounds = [Round(probes, [], host_experts=[time_on_host(4, seconds=value)]) for value in (5.0, 1.0, 2.0)]
    assert [one.seconds.median for one in median_host_experts(rounds)] == [2.0]


def test_a_ratio_that_is_far_off_is_cut_and_says_so(start, model):
    planned, known = conditions(4096), described(model)
    samples = [one for one in made_up_samples(start, known, planned) if one.task.op is Op.HEAD and one.task.step]
    spoilt = [one._replace(mean_s=one.mean_s * (5 if one.condition.size[0] == 16 else 1)) for one in samples]
    found = with_ratios(start, "device.head", known, spoilt).device.head.at_tokens
    assert [(one.tokens, float(one.time_ratio)) for one in found] == [
        (1, pytest.approx(1, abs=1e-3)),
        (4, pytest.approx(1, abs=1e-3)),
        (16, 2),
        (64, pytest.approx(1, abs=1e-3)),
    ]
    assert [("allowed" in one.time_ratio.source) for one in found] == [False, False, True, False]


def test_splitting_experts_costs_what_it_adds():
    usual, split, order = iter([9.0, 1.0, 1.0]), iter([9.0, 1.1, 1.2]), []

    def told(name, values):
        order.append(name)
        return next(values)

    found = differences(lambda: told("usual", usual), lambda: told("split", split), 3)
    assert found == pytest.approx([0.0, 0.1, 0.2])
    assert order == ["usual", "split", "split", "usual", "usual", "split"]


def test_the_cost_of_splitting_experts_is_measured_without_a_trace(model, device, monkeypatch):
    experts = model.model.layers[0].mlp.experts
    before, held = dict(experts._parameters), device.memory.usage.current_bytes
    told, computed = [], []
    monkeypatch.setattr("engine.model.experts.placed.with_experts", spied(with_experts, computed))
    monkeypatch.setattr("engine.calibration.measure.split_experts.with_experts", spied(with_experts, computed))
    hook = experts.register_forward_hook(lambda module, args, result: told.append(result))
    found = split_cost(model, described(model), device, 1)
    hook.remove()
    assert found.count == 5
    assert set(computed) == {4, 2}
    assert computed.count(2) == 2 * computed.count(4)
    assert all(torch.allclose(one, told[0], atol=1e-6) for one in told)
    assert dict(experts._parameters) == before
    assert "forward" not in vars(experts)
    assert device.memory.usage.current_bytes == held


def spied(place, computed):
    """Tells how many experts are computed together."""

    def place_and_tell(module, parameters, num_experts):
        computed.append(len(parameters["down_proj"]))
        return place(module, parameters, num_experts)

    return place_and_tell


@pytest.mark.parametrize("family", ["mixtral", "jetmoe"])
def test_experts_that_cannot_be_split_cost_nothing_by_it(device, family):
    """A single one, or those of a family that computes them in its own way."""
    single = {"num_local_experts": 1, "num_experts_per_tok": 1} if family == "mixtral" else {}
    model = make(family, **single)
    assert split_cost(model, described(model), device, 1) is None


def test_how_fast_experts_are_unpacked_is_measured(device, probes):
    """And it stands in the machine's file as it was measured."""
    model = make("mixtral", hidden_size=64, intermediate_size=128, num_hidden_layers=3)
    held, before = device.memory.usage.current_bytes, model.model.layers[0].mlp.experts.down_proj.clone()
    found = unpack_rate(model, device, 1)
    assert (found.count, found.median > 0) == (1, True)
    assert device.memory.usage.current_bytes == held
    assert torch.equal(model.model.layers[0].mlp.experts.down_proj, before)
    rate = unfitted("here", device, probes, None, found).value("device.unpack")
    assert (float(rate), rate.basis) == (pytest.approx(found.median), Basis.MEASURED)


def test_how_fast_the_host_computes_with_packed_experts_is_measured(device, probes, monkeypatch):
    """By all layers in turn, a token for each expert, on packed bytes; it stands in the file beside the device's."""
    called, compute = [], HostExperts.__call__
    monkeypatch.setattr(
        HostExperts, "__call__", lambda self, *call: called.append((self, call)) or compute(self, *call)
    )
    model = make("mixtral", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    found = host_unpack_rate(model, device, 3)
    assert (found.count, found.median > 0) == (3, True)
    assert [one is called[0][0] for one, _ in called] == [True, False, True, False]
    for experts, (_, index, _) in called:
        assert experts.up.packing.bits == experts.down.packing.bits == 4
        assert sorted(index.flatten().tolist()) == [0, 1, 2, 3]
    hardware = unfitted("here", device, probes, None, None, found)
    rate = hardware.value("host.unpack")
    assert (float(rate), rate.basis) == (pytest.approx(found.median), Basis.MEASURED)
    assert hardware.device.unpack_bytes_per_s is None


@pytest.mark.parametrize("family", ["mixtral", "jetmoe", "deepseek_v3"])
def test_experts_that_cannot_be_packed_have_no_rate_on_the_host(device, family):
    assert host_unpack_rate(make(family), device, 1) is None


@pytest.mark.parametrize("family", ["mixtral", "jetmoe", "deepseek_v3"])
def test_experts_that_cannot_be_packed_are_not_unpacked(device, probes, family):
    """Their inputs are no whole groups, or their family computes them in its own way."""
    assert unpack_rate(make(family), device, 1) is None
    assert unfitted("here", device, probes).device.unpack_bytes_per_s is None


def test_settling_changes_the_peaks_and_no_time(start, model):
    truth = start
    for path, value in TRUE.items():
        truth = truth.with_value(path, value)
    fast = truth.with_value("device.experts.compute", 0.9)
    planned, known = conditions(64, quick=True), described(model)
    samples = made_up_samples(fast, known, planned)
    before, after = (durations(machine, known, samples) for machine in (fast, settled(fast)))
    assert np.allclose(before, after, rtol=1e-9, atol=2)
    assert settled(fast).device.peak_flops_per_s == pytest.approx(0.9 * start.device.peak_flops_per_s)
    assert settled(truth).device.peak_flops_per_s == pytest.approx(start.device.peak_flops_per_s / ROOM)
    assert float(settled(fast).device.experts.compute) == 1.0


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_measurement_lies_between_its_quartiles(values):
    measured = Measured.of(values, "a test")
    assert min(values) <= measured.low <= measured.median <= measured.high <= max(values)
    assert measured.median == np.median(values)
    assert measured.count == len(values)


def test_the_first_measurement_does_not_count():
    values = iter([100.0, 1.0, 2.0, 3.0])
    measured = repeated(lambda: next(values), "a test", 3)
    assert (measured.median, measured.low, measured.high) == (2, 1.5, 2.5)
    quantity = measured.quantity("GB/s", 1e9)
    assert quantity.basis is Basis.MEASURED
    assert "median of 3" in quantity.source


def test_probes_find_the_link_that_was_stated(probes):
    link = probes.link
    for found, stated in ((link.h2d, 0.5e9), (link.h2d_pageable, 0.5e9), (link.d2h, 0.25e9)):
        assert found.high <= 1.01 * stated
        assert found.high > 0.5 * stated
    assert link.together.high <= 1.01 * 0.75e9
    assert link.latency.median < 0.01
    assert probes.host_copy.median > 1e8
    assert probes.device_peak.median > 1e8


@pytest.fixture
def products(monkeypatch):
    """Sizes of the matrix products that probes time, and whether their factors vary; none is done."""
    made = []
    monkeypatch.setattr(torch, "mm", lambda a, b: made.append((len(a), float(a.std()) > 0 and float(b.std()) > 0)))
    return made


def test_matrix_products_are_of_random_numbers(device, products, monkeypatch):
    monkeypatch.setattr("engine.calibration.measure.probes.ENOUGH_S", 0.0)
    probe(device, torch.bfloat16, 1)
    assert set(products) == {(512, True)}


def test_matrix_products_leave_room_on_a_small_device(products, monkeypatch):
    monkeypatch.setattr("engine.calibration.measure.probes.MAX_GEMM", 2048)
    with EmulatedDevice(None, None, 8 * 3 * 1024**2 * 4) as small:
        probe(small, torch.float32, 1)
    assert [size for size, _ in products].count(2048) == 4, "the host's: two that try the size, one to warm up, one"
    assert max(size for size, _ in products[-4:]) == 1024


def test_what_the_host_copies_does_not_fit_its_caches(probes):
    assert "copies of 256 MiB in host memory" in probes.host_copy.what


def test_runs_grow_and_stay_within_the_model_s_positions():
    for quick in (False, True):
        for most in (16, 100, 4096):
            planned = conditions(most, quick=quick)
            assert all(one.prompt_tokens <= most for one in planned)
            alone = [one for one in planned if one.alone]
            assert max(one.batch.prompt_tokens for one in alone) <= MAX_TOKENS
            assert {one.policy.attention for one in alone} == {"cpu", "gpu"}
            assert any(not one.alone for one in planned)
            assert all(one.policy.num_micro_batches == 1 for one in alone)
    assert len(conditions(4096, quick=True)) < len(conditions(4096))


def test_a_sample_stands_for_all_tasks_that_are_alike(model, device):
    planned = conditions(16, quick=True, apart=False)
    runs = []
    once, again = (run_all(model, device, planned, runs.append) for _ in range(2))
    assert runs == 2 * planned
    found = samples_of(MeasuredRun(*pair) for spans in (once, again) for pair in zip(planned, spans, strict=True))
    assert {one.condition for one in found} == set(planned)
    for condition in planned:
        samples = [one for one in found if one.condition == condition]
        ops = {(one.task.op, one.task.step > 0) for one in samples}
        assert {(Op.PRE_ATTN, True), (Op.POST_ATTN, True), (Op.HEAD, True), (Op.ATTN, True)} <= ops
        assert all(one.mean_s > 0 for one in samples)
        post = next(one for one in samples if one.task.op == Op.POST_ATTN and one.task.step > 0)
        assert post.num_tasks == 2 * 4 * 3 * condition.policy.num_micro_batches
        assert all(
            one.num_tasks == 2 * 3 for one in samples if one.task.op == Op.ATTN and condition.alone and one.task.step
        )


def test_contended_pairs_compare_equal_tasks():
    planned = conditions(64, quick=True)
    streaming = next(one for one in planned if not one.alone)
    alone = next(one for one in planned if one.size == streaming.size and one.policy.attention == "cpu")
    tasks = [task for step in streaming.steps(described(make("mixtral"))) for task in step]
    task = next(task for task in tasks if task.op is Op.POST_ATTN and task.step == 1)
    pair = contended([Sample(alone, task, 1.0, 1), Sample(streaming, task, 1.5, 1)])
    assert [one.slowdown for one in pair] == [1.5]
    other = replace(alone, prompt_tokens=7)
    assert contended([Sample(other, task, 1.0, 1), Sample(streaming, task, 1.5, 1)]) == []


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "granitemoe"])
def test_a_model_runs_with_its_first_layers_and_is_whole_again(family):
    whole = make(family)
    prompts = make_prompts(5, 5)
    before = engine.run(whole, prompts, max_new_tokens=3).sequences
    count = whole.config.num_hidden_layers
    with keep_first_layers(whole, count - 1):
        assert described(whole).num_layers == count - 1
        short = engine.run(whole, prompts, max_new_tokens=3)
        assert 1 + max(span.layer for span in short.trace.spans) == count - 1
    assert described(whole).num_layers == count
    assert engine.run(whole, prompts, max_new_tokens=3).sequences == before


def test_as_many_layers_are_measured_as_fit(model):
    assert layers_to_measure(model, 1 << 30) == 3
    assert layers_to_measure(model, 1) == 1
    deep = make("mixtral", num_hidden_layers=20)
    assert layers_to_measure(deep, 1 << 30) == 6


@pytest.mark.usefixtures("quick_calibrations")
def test_the_command_writes_a_machine_that_the_simulator_reads(tmp_path, capsys):
    make_model(tmp_path / "model", hidden_size=32, num_layers=2)
    out = tmp_path / "machine.toml"
    arguments = ["calibrate", "--model", str(tmp_path / "model"), "--out", str(out), "--quick"]
    device = ["--device", "emulated", "--h2d-gbs", "0.5", "--d2h-gbs", "0.5", "--device-memory-gb", "0.2"]
    assert main([*arguments, *device]) == 0
    hardware = Hardware.load(out)
    assert hardware.name == "machine"
    assert hardware.emulation is not None
    assert hardware.device_memory.capacity_bytes == 200 * MB
    assert "emulated device" in hardware.description
    bases = [value.basis for name, value in hardware.quantities() if not name.startswith("host.")]
    assert bases.count(Basis.MEASURED) > 25
    on_host = [value.basis for name, value in hardware.quantities() if name.startswith("host.experts")]
    assert set(on_host) == {Basis.MEASURED}
    assert len(on_host) >= 5
    assert "written:" in capsys.readouterr().out


@pytest.mark.parametrize(("out", "named"), [("machine.txt", ".toml"), ("no/such/folder/m.toml", "no folder")])
def test_the_command_refuses_a_bad_name_before_it_measures(out, named, tmp_path, capsys):
    assert main(["calibrate", "--model", str(tmp_path), "--out", str(tmp_path / out)]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1


@pytest.mark.usefixtures("quick_calibrations")
def test_progress_is_told_to_the_end(model, device, probes, monkeypatch):
    told = []
    monkeypatch.setattr("engine.calibration.measure.probe", lambda *_: probes)
    calibrate(model, device, quick=True, progress=lambda done, total, doing: told.append((done, total)))
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_every_part_of_a_round_may_be_made_again(model, device, probes, monkeypatch):
    planned, made = conditions(8, quick=True), []

    def twice(make):
        made.append(make())
        return make()

    monkeypatch.setattr("engine.calibration.measure.probe", lambda *_: probes)
    found = measure_machine(model, device, planned, quick=True, attempt=twice)
    assert len(made) == 6 + len(planned)
    assert made[0] == probes
    assert found.split_cost is not made[2]
    assert all(kept is not dropped for kept, dropped in zip(found.spans, made[6:], strict=True))


def test_a_round_survives_its_file(model, device, probes, tmp_path):
    planned = conditions(8, quick=True)
    rates = Measured.of([1e9], "another"), Measured.of([2e9], "a third")
    alone = Measured.of([1e-4, 2e-4, 4e-4], "a test"), rates[0], [time_on_host(4, Beside.STREAM)], rates[1]
    made = Round(probes, run_all(model, device, planned[:2]), *alone)
    made.write(tmp_path / "round.json")
    read = Round.read(tmp_path / "round.json")
    assert (read.probes, read.split_cost, read.unpack_rate, read.host_experts, read.host_unpack_rate) == (
        probes,
        *alone,
    )
    assert samples_of(map(MeasuredRun, planned, read.spans)) == samples_of(map(MeasuredRun, planned, made.spans))


def test_what_is_known_of_the_experts_is_that_of_the_middle_round(probes):
    values = (5e-4, 1e-4, 2e-4)
    rounds = [Round(probes, [], *(Measured.of([one], "a test") for one in (value, 1e5 * value))) for value in values]
    assert (median_split_cost(rounds).median, median_unpack_rate(rounds).median) == (2e-4, 20)
    assert median_split_cost([Round(probes, [])]) is None
    assert median_unpack_rate([Round(probes, [])]) is None
    on_host = [Round(probes, [], host_unpack_rate=Measured.of([value], "a test")) for value in values]
    assert (median_host_unpack_rate(on_host).median, median_host_unpack_rate([Round(probes, [])])) == (2e-4, None)


def test_slow_moments_count_but_the_slowest_twentieth():
    """A run takes the sum of its tasks; one that the system stopped for long says nothing of them."""
    took = [*(100,) * 15, *(200,) * 24, 90_000]
    spans = [Span(i, "PostAttn", "GPU", 0, 1, 0, i, -1, 0, one) for i, one in enumerate(took)]
    (found,) = samples_of([MeasuredRun(None, spans)])
    assert found.mean_s == pytest.approx((13 * 100 + 23 * 200) / 36 / 1e9)


def test_the_first_two_layers_of_prefill_do_not_count():
    """What is touched for the first time, and measuring the memory that tasks work with, slows them down."""

    def spans(num_layers):
        took = [900, 800, *(100 + layer for layer in range(2, num_layers))]
        return [
            Span(layer, "PostAttn", "GPU", 0, step, layer, 0, -1, 0, took[layer])
            for step in (0, 1)
            for layer in range(num_layers)
        ]

    prefill, decode = samples_of([MeasuredRun(None, spans(5))])
    assert (prefill.num_tasks, prefill.mean_s) == (3, pytest.approx(103e-9))
    assert decode.num_tasks == 5
    prefill, decode = samples_of([MeasuredRun(None, spans(2))])
    assert prefill.num_tasks == decode.num_tasks == 2, "there are no others"


def test_rounds_are_probed_at_their_median(probes):
    def slower(factor):
        peak = replace(probes.device_peak, median=probes.device_peak.median * factor)
        return Round(replace(probes, device_peak=peak), [])

    found = median_probes([slower(0.5), slower(0.9), slower(1.0)])
    assert found.device_peak.median == pytest.approx(0.9 * probes.device_peak.median)
    assert found.link == probes.link


EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize("share", [0.2, 0.75, pytest.param(0.9, marks=EXHAUSTIVE), pytest.param(1.0, marks=EXHAUSTIVE)])
def test_the_interpreter_share_is_found_again(start, model, share):
    """Runs of a made-up machine, alone and beside others, show how much its lanes get in each other's way."""
    truth = start.with_value("emulation.interpreter_share", share)
    for path, value in TRUE.items():
        truth = truth.with_value(path, value)
    planned, known = conditions(64, quick=True), described(model)
    runs = [simulated_run(truth, known, one) for one in planned]
    slow = measured_slowdowns(runs)
    assert len(slow) == sum(not one.alone for one in planned)
    assert (max(one.ratio for one in slow) > 1.05) == (share > 0.2)
    guess = truth.with_value("emulation.interpreter_share", 0.6)
    found = with_interference(guess, known, runs).emulation.interpreter_share
    assert found == pytest.approx(share, abs=0.051)
    assert found.basis is Basis.MEASURED


def test_interference_needs_runs_alone_and_beside_others_and_an_emulated_device(start, model):
    known = described(model)
    runs = [simulated_run(start, known, one) for one in conditions(64, quick=True)]
    assert with_interference(start, known, [run for run in runs if run.condition.alone]) == start
    real = replace(start, emulation=None)
    assert with_interference(real, known, runs) == real


def simulated_run(hardware, model, condition):
    """What a run of the condition would leave behind on a machine."""
    costs, spans = condition.costs(model, hardware), []
    Simulation(condition.steps(model), costs, costs.capacities, on_task=lambda one: spans.append(span_of(one))).run()
    return MeasuredRun(condition, spans)


def test_the_hand_over_is_the_gap_between_lanes_and_not_what_a_lane_does_alone(model):
    known = described(model)
    streaming = next(one for one in conditions(64, quick=True) if not one.alone)
    tasks = [task for step in streaming.steps(known) for task in step]
    free, ended, spans = {}, {}, []
    for task in tasks:
        own, others = free.get(task.lane, 0), max((ended[dep] for dep in task.deps), default=0)
        start = max(own + 7, others + 500)
        free[task.lane] = ended[task.id] = start + 1000
        where = (task.step, task.layer, task.micro_batch, task.page)
        spans.append(Span(task.id, task.op, task.lane.kind, 0, *where, start, start + 1000))
    found = hand_overs_s(known, MeasuredRun(streaming, spans))
    assert len(found) > 20
    assert np.median(found) == pytest.approx(500e-9)


@pytest.mark.usefixtures("quick_calibrations")
def test_a_calibrated_machine_knows_its_hand_over(model, device, probes):
    planned = conditions(16, quick=True)
    rounds = [Round(probes, run_all(model, device, planned)) for _ in range(2)]
    hardware = fitted(model, device, planned, rounds, "here").hardware
    assert hardware.hand_over_s is not None
    assert hardware.hand_over_s.basis is Basis.MEASURED
    assert hardware.hand_over_s > 1e-6
    alone = [at for at, one in enumerate(planned) if one.alone]
    only = [Round(probes, [one.spans[at] for at in alone]) for one in rounds]
    assert fitted(model, device, [planned[at] for at in alone], only, "here").hardware.hand_over_s is None
