"""Measured joules of a run beside simulated ones: of what was counted alone, whatever else the machine draws."""

import json
from dataclasses import replace

import pytest
from engine_models import PROMPTS, make
from schemas import faults

import engine
from engine.device import DEVICE, HOST, EmulatedDevice, EnergyCounter, EnergyCounters
from sim.problem import Basis, Hardware
from traces.files import write_trace
from validation.cli import main
from validation.replay import replay_trace

NEW = 4


@pytest.fixture(scope="module")
def trace():
    """A run whose device and host were counted."""
    import time

    steady = {DEVICE: 300.0, HOST: 100.0}
    counters = tuple(EnergyCounter(name, name, lambda w=w: w * time.perf_counter()) for name, w in steady.items())
    with EmulatedDevice(None, None, 1 << 30) as device:
        given = {"max_new_tokens": NEW, "device": device, "energy": EnergyCounters(counters, {"host memory": "none"})}
        return engine.run(make("mixtral"), PROMPTS, micro_batch_size=2, **given).trace


def machine(idle_w, work=1.0):
    """A machine that draws idle watts, and at work `work` times as much."""
    found = Hardware.load("h200")
    for path, number in found.power.quantities("power."):
        watts = {"idle": idle_w, "moved": 0.0, "supply": 1.0, "limit": 1e4}.get(path.rpartition(".")[2], idle_w * work)
        found = found.replaced(path, number.replaced(watts, "a test", Basis.ASSUMED))
    return found


def test_a_machine_whose_work_draws_nothing_more_draws_its_idle_watts_all_the_time(trace):
    found = replay_trace(trace, machine(50.0))
    predicted_s = found.run_check.run.predicted_s
    joules = {one.what: one.predicted_j for one in found.energy_check.components}
    assert joules == {DEVICE: pytest.approx(2 * 50.0 * predicted_s), HOST: pytest.approx(50.0 * predicted_s)}, (
        "a card's counter sees its end of the link"
    )


def test_work_adds_to_it_and_doubled_watts_double_it(trace):
    one, other = (replay_trace(trace, machine(watts, 3.0)).energy_check for watts in (20.0, 40.0))
    idle = replay_trace(trace, machine(20.0)).energy_check
    assert one.run.predicted_j > idle.run.predicted_j
    assert other.run.predicted_j == pytest.approx(2 * one.run.predicted_j)


def test_phases_and_components_are_parts_of_the_whole(trace):
    found = replay_trace(trace, machine(50.0, 2.0)).energy_check
    for parts in (found.phases, found.components):
        assert sum(one.measured_j for one in parts) == pytest.approx(found.run.measured_j)
        assert sum(one.predicted_j for one in parts) == pytest.approx(found.run.predicted_j)
    assert found.run.measured_j == pytest.approx(trace.metadata["energy"]["total_j"])
    assert found.measured_j_per_token == trace.metadata["energy_j_per_token"]
    assert found.missing == {"host memory": "none"}


def test_the_error_is_of_the_predicted_joules(trace):
    found = replay_trace(trace, machine(50.0)).energy_check
    assert found.run.error == pytest.approx(found.run.predicted_j / found.run.measured_j - 1)
    assert found.predicted_j_per_token / found.measured_j_per_token == pytest.approx(1 + found.run.error)


def test_without_watts_or_without_counters_there_is_nothing_to_compare(trace):
    assert replay_trace(trace, replace(machine(50.0), power=None)).energy_check is None
    uncounted = {**trace.metadata, "energy": {"by_phase_j": {"prefill": {}, "decode": {}}, "missing": {HOST: "none"}}}
    assert replay_trace(replace(trace, metadata=uncounted), machine(50.0)).energy_check is None
    unmeasured = {name: value for name, value in trace.metadata.items() if not name.startswith("energy")}
    assert replay_trace(replace(trace, metadata=unmeasured), machine(50.0)).energy_check is None


def test_the_command_tells_it_in_text_and_json(trace, tmp_path, capsys):
    write_trace(trace, tmp_path / "run.json.gz")
    assert main(["replay", str(tmp_path / "run.json.gz"), "--hardware", "h200"]) == 0
    shown = capsys.readouterr().out
    assert "Energy, of what was counted:" in shown
    assert "Not counted: host memory: none." in shown
    assert main(["replay", str(tmp_path / "run.json.gz"), "--hardware", "h200", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert faults("replay", told) == []
    assert told["energy"]["run"]["measured_j"] > 0


def test_what_is_no_energy_is_refused_in_a_line(trace, tmp_path, capsys):
    broken = replace(trace, metadata={**trace.metadata, "energy": {"by_phase_j": 7}})
    write_trace(broken, tmp_path / "run.json.gz")
    assert main(["replay", str(tmp_path / "run.json.gz"), "--hardware", "h200"]) == 2
    assert "metadata.energy cannot be used" in capsys.readouterr().err
