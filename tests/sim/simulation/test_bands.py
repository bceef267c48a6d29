"""Bands around predictions: whose numbers they draw, what holds whatever is drawn, and what they say to measure."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sim.cost import Setup
from sim.problem import Basis, Hardware, Problem
from sim.simulation import SPREADS, Range, Spreads, band_of, bands_of, predict, stays_best, unknowns_of, varied
from sim.simulation.bands.draws import stratified
from sim.simulation.bands.sentences import in_sentences
from traces.files import read_toml

NOTHING = Spreads(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
PROBLEM = Problem.of("olmoe-1b-7b", "t4", prompt_len=64, gen_len=9)


def setup(schedule="flexgen", problem=PROBLEM, **policy):
    return Setup.of(problem, schedule, micro_batch_size=8, num_micro_batches=1, **policy)


def as_known(basis):
    """The machine with every number known in the same way."""
    machine = PROBLEM.hardware
    for path, number in machine.quantities():
        machine = machine.with_value(path, float(number), "as it was", basis)
    return replace(PROBLEM, hardware=machine)


class TestDraws:
    def test_each_number_is_drawn_once_from_each_stratum(self):
        drawn = stratified(["a", "b"], 40)
        assert np.allclose(np.sort(drawn[:, 0]), np.sort(drawn[:, 1]))
        assert abs(drawn.mean()) < 1e-12
        assert 0.95 < drawn.std() < 1.0

    def test_a_number_is_drawn_alike_beside_whatever_others(self):
        assert np.array_equal(stratified(["a", "b", "c"], 12)[:, 2], stratified(["c"], 12)[:, 0])
        assert abs(np.corrcoef(stratified(["a", "b"], 40).T)[0, 1]) < 0.5


class TestUnknowns:
    def test_no_size_and_nothing_that_is_not_simulated_is_drawn(self):
        names = {path for one in unknowns_of(Hardware.load("gcp-t4")) for path in one.paths}
        assert "host_memory.bandwidth" in names
        assert not [one for one in names if "capacity" in one or one.startswith("optimizer")]

    def test_one_fitted_value_is_one_unknown(self):
        (found,) = (one for one in unknowns_of(Hardware.load("gcp-t4")) if "device.gemm.compute" in one.paths)
        assert {"device.experts.compute", "device.attention.compute"} < set(found.paths)
        assert found.basis is Basis.FITTED

    @given(st.data())
    @settings(max_examples=30, deadline=None)
    def test_whatever_is_drawn_is_a_machine(self, data):
        machine = Hardware.load(data.draw(st.sampled_from(["gcp-t4", "gcp-2xt4", "rtx4090"])))
        unknowns = unknowns_of(machine)
        factors = data.draw(st.lists(st.floats(0.05, 20), min_size=len(unknowns), max_size=len(unknowns)))
        found = varied(machine, unknowns, factors)
        found.check_agreement()
        assert dict(found.quantities()).keys() == dict(machine.quantities()).keys()
        assert found.host_memory.capacity_bytes == machine.host_memory.capacity_bytes

    def test_a_share_that_was_fitted_keeps_what_it_says_of_the_work(self):
        """Its peak is a datasheet's: with another peak the same work would have shown another share of it."""
        machine = Hardware.load("gcp-t4")
        (peak,) = (one for one in unknowns_of(machine) if one.name == "device.peak")
        for factor in (0.5, 2.0):
            found = varied(machine, [peak], [factor])
            assert found.device.peak_flops_per_s == pytest.approx(factor * machine.device.peak_flops_per_s)
            of_work = found.device.peak_flops_per_s * found.device.gemm.compute
            assert of_work == pytest.approx(machine.device.peak_flops_per_s * machine.device.gemm.compute)

    def test_a_share_that_is_assumed_goes_with_its_peak(self):
        machine = Hardware.load("rtx4090")
        (peak,) = (one for one in unknowns_of(machine) if one.name == "device.peak")
        assert varied(machine, [peak], [0.5]).device.gemm.compute == machine.device.gemm.compute


class TestBands:
    def test_without_spreads_there_is_no_width(self):
        said, band = predict(setup(), compiled=True), band_of(setup(), NOTHING)
        for name in ("throughput_tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s", "seconds_per_token"):
            found = getattr(band, name)
            assert found.low == pytest.approx(getattr(said, name), rel=0.01)
            assert found.high == pytest.approx(found.low)

    def test_the_prediction_lies_in_its_band_and_two_calls_agree(self):
        said, band = predict(setup(), compiled=True), band_of(setup())
        assert said.throughput_tokens_per_s in band.throughput_tokens_per_s
        assert said.time_to_first_token_s in band.time_to_first_token_s
        assert band == band_of(setup())

    def test_the_better_the_numbers_are_known_the_narrower_is_the_band(self):
        widths = []
        for basis in Basis:
            band = band_of(setup(problem=as_known(basis))).throughput_tokens_per_s
            widths.append(band.high / band.low)
        assert widths == sorted(widths)
        assert widths[-1] > 1.3 * widths[0]

    def test_the_models_own_error_is_of_its_phase(self):
        band = band_of(setup(), replace(NOTHING, model_in_decode=0.2))
        assert band.prefill_tokens_per_s.high == pytest.approx(band.prefill_tokens_per_s.low)
        assert band.decode_tokens_per_s.high / band.decode_tokens_per_s.low == pytest.approx(1.66, rel=0.03)

    def test_one_token_has_no_decode(self):
        one = replace(PROBLEM, workload=replace(PROBLEM.workload, gen_len=1))
        assert band_of(setup(problem=one)).decode_tokens_per_s is None

    def test_schedules_are_compared_on_the_same_machines(self):
        alike, slower = bands_of([setup(), setup()], jobs=1), bands_of([setup(), setup("zero")], jobs=1)
        assert stays_best({"a": alike[0], "b": alike[1]}) == 1.0
        behind = [a >= b for a, b in zip(slower[0].drawn_tokens_per_s, slower[1].drawn_tokens_per_s, strict=True)]
        assert stays_best({"flexgen": slower[0], "zero": slower[1]}) == sum(behind) / len(behind)


class TestWhatToMeasure:
    def test_the_number_whose_spread_makes_the_band_comes_first(self):
        machine = as_known(Basis.MEASURED).hardware
        machine = machine.with_value("link.h2d", float(machine.link.h2d_bytes_per_s) / 4, "a guess", Basis.ASSUMED)
        band = band_of(setup("zero", replace(PROBLEM, hardware=machine), pin_weights=1.0))
        first = band.first_to_measure
        assert (first.name, first.basis) == ("link.h2d", Basis.ASSUMED)
        assert first.share > 0.5
        assert first.measure_with == "python -m engine calibrate"
        assert sum(one.share for one in band.shares) == pytest.approx(1.0)

    def test_where_all_is_measured_nothing_is_worth_it(self):
        band = band_of(setup(problem=as_known(Basis.MEASURED)))
        assert band.first_to_measure is None
        assert any("model's own error" in one for one in in_sentences({"flexgen": band}))


def test_a_range_is_written_with_the_digits_that_it_has():
    assert [str(Range(*ends)) for ends in ((0.5, 1.25), (12.34, 56.7), (350.4, 1560.0))] == [
        "0.50–1.25",
        "12.3–56.7",
        "350–1,560",
    ]


def test_the_spreads_that_come_with_the_project_are_in_order():
    known = Spreads.learnt()
    assert known.measured <= known.fitted <= known.datasheet <= known.assumed
    assert set(read_toml(SPREADS)["spreads"]) == set(known.to_dict())
