"""Learnt spreads: that they are found again where they are known, and that their bands hold what they promise."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from sim.cost import Setup
from sim.problem import Basis, Hardware, Problem
from sim.simulation import LEVEL, SPREADS, Range, Spreads
from traces.files import read_text
from validation.spreads import (
    Evidence,
    Held,
    PublishedRun,
    evidence_of,
    hold_out,
    learnt_from,
    published_runs,
    write_spreads,
)
from validation.spreads.coverage import share_held
from validation.spreads.unmeasured import kin_of, unmeasured

PROBLEM = Problem.of("olmoe-1b-7b", "t4", prompt_len=64, gen_len=5)
SETUP = Setup.of(PROBLEM, "zero", micro_batch_size=2, num_micro_batches=1, pin_weights=1.0)
MEASURES = "throughput_tokens_per_s", "prefill_tokens_per_s", "seconds_per_token"


def made_up(spreads, machines=80, runs=16, seed=3):
    """Evidence of runs whose numbers are off by known spreads."""
    random = np.random.default_rng(seed)
    for machine in range(machines):
        off = {(basis.value, basis): random.normal(0, spreads.of(basis)) for basis in Basis}
        for at in range(runs):
            slopes = {number: random.uniform(0, 1) for number in off}
            in_prefill = random.uniform(0, 1)
            own = random.normal(0, [spreads.model_in_prefill, spreads.model_in_decode]) @ [in_prefill, 1 - in_prefill]
            away = sum(slope * off[number] for number, slope in slopes.items())
            run = PublishedRun(f"{machine} {at}", str(machine), str(machine), True, SETUP, MEASURES[0], 1.0)
            yield Evidence(run, away + own, slopes, in_prefill)


def test_known_spreads_are_found_again():
    known = Spreads(0.05, 0.15, 0.3, 0.5, 0.1, 0.2)
    found = learnt_from(list(made_up(known)))
    for name, value in known.to_dict().items():
        assert found.to_dict()[name] == pytest.approx(value, rel=0.35), name


def test_what_is_known_better_is_never_further_off():
    known = Spreads(0.5, 0.3, 0.15, 0.05, 0.1, 0.1)  # the wrong way round
    found = list(learnt_from(list(made_up(known))).to_dict().values())[:4]
    assert all(better <= worse for better, worse in pairwise(found))


def test_few_kin_make_wider_spreads():
    """Of five, Student's t with four degrees of freedom: 1.533 standard deviations at 90 %, for 1.282."""
    many = list(made_up(Spreads(0.1, 0.1, 0.1, 0.1, 0.1, 0.1), machines=20))
    few = [replace(one, run=replace(one.run, kin=str(int(one.run.kin) % 5))) for one in many]
    wider = learnt_from(few).assumed / learnt_from(many).assumed
    assert wider == pytest.approx(1.533 / 1.328, rel=1e-3)  # of 19 degrees of freedom: 1.328


def test_machines_that_share_numbers_are_kin():
    assert kin_of("gcp-2xt4") == kin_of("gcp-t4") == "t4"
    assert kin_of("rtx4090-2x6454s") == kin_of("4xrtx4090-6454s") != kin_of("a5000")


def test_a_machine_without_its_fits_has_what_it_extends():
    machine, general = unmeasured("gcp-t4"), Hardware.load("t4")
    assert not [path for path, one in machine.quantities() if one.basis is Basis.FITTED and "optimizer" not in path]
    assert machine.device.gemm.compute == general.device.gemm.compute
    assert machine.host_memory.capacity_bytes == Hardware.load("gcp-t4").host_memory.capacity_bytes


def test_a_row_that_a_fit_has_seen_counts_only_without_the_fit():
    runs = list(published_runs())
    assert {one.is_fitted for one in runs if one.name == "KT-008"} == {False}
    assert {one.is_fitted for one in runs if one.name == "KT-013"} == {False, True}
    assert len({one.kin for one in runs}) >= 5


def test_slopes_and_errors_of_a_run():
    """Reading weights over the link is all that this run does."""
    run = PublishedRun("zero", "t4", "t4", True, SETUP, "seconds_per_token", 1.0)
    (found,) = evidence_of([run], jobs=1)
    slopes = {name: slope for (name, _), slope in found.slopes.items()}
    assert slopes["link.h2d"] == pytest.approx(-1.0, abs=0.15)
    assert found.in_prefill == 0.0


def test_the_file_says_what_it_was_learnt_from(tmp_path):
    path, spreads = tmp_path / "spreads.toml", Spreads(0.01, 0.1, 0.2, 0.3, 0.1, 0.1)
    run = PublishedRun("a", "t4", "t4", True, SETUP, MEASURES[0], 5.0)
    held = [Held(run, Range(*ends), spreads) for ends in ((1.0, 9.0), (6.0, 9.0))]
    write_spreads(spreads, held, path)
    assert "Learnt from 2 published runs" in path.read_text()
    assert "50% of its runs lie in their 80% band" in path.read_text()
    assert "fitted = 0.1" in path.read_text()


def test_the_bands_that_come_with_the_project_hold_what_they_promise():
    """Of runs on held-out machines, as `validation spreads --write` found; the next test finds it again."""
    share = int(read_text(SPREADS).partition("held out, ")[2].partition("%")[0]) / 100
    assert LEVEL - 0.1 <= share <= LEVEL + 0.1


@pytest.mark.exhaustive
def test_bands_of_held_out_machines_hold_what_they_promise():
    held = list(hold_out(list(evidence_of(list(published_runs())))))
    assert len(held) > 100
    assert LEVEL - 0.1 <= share_held(held) <= LEVEL + 0.1
    text = read_text(SPREADS)
    assert f"{share_held(held):.0%} of its runs" in text, "python -m validation spreads --write"
