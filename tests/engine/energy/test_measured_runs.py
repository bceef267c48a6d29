"""The joules of whole runs: by phase and component, in stats, trace and text; nothing fails for want of a counter."""

import sys
import threading
import time

import pytest
from async_device import MISSING
from engine_models import PROMPTS, make
from recorded_counters import PCI, FakeNvml

import engine
from engine.device import DEVICE, HOST, HOST_MEMORY, Accelerator, EmulatedDevice, EnergyCounter, EnergyCounters
from traces.files import read_trace, write_trace
from traces.trace import NONE, POWER

NEW = 4
WATTS = {HOST: 200.0, HOST_MEMORY: 10.0}
"""What the host of these tests draws, all the time."""


def steady():
    """Counters of a host that draws WATTS."""
    counters = (EnergyCounter(name, f"fake {name}", lambda w=w: w * time.perf_counter()) for name, w in WATTS.items())
    return EnergyCounters(tuple(counters), {DEVICE: "no card here"})


def run(**given):
    with EmulatedDevice(None, None, 1 << 30) as device:
        return engine.run(make("mixtral"), PROMPTS, micro_batch_size=2, max_new_tokens=NEW, device=device, **given)


@pytest.fixture(scope="module")
def measured():
    """One run with the counters of `steady`, and its batch."""
    batches = []
    return run(energy=steady(), on_batch=batches.append), batches


def test_joules_by_phase_and_component(measured):
    stats = measured[0].stats
    assert stats.energy.phases_j["prefill"][HOST] == pytest.approx(WATTS[HOST] * stats.prefill_s, rel=0.02)
    assert stats.energy.phases_j["decode"][HOST_MEMORY] == pytest.approx(WATTS[HOST_MEMORY] * stats.decode_s, rel=0.02)
    told = stats.to_dict()
    assert told["energy_j_per_token"] == pytest.approx(stats.energy.total_j / (len(PROMPTS) * NEW))
    assert told["energy"]["missing"] == {DEVICE: "no card here"}


def test_the_trace_has_a_power_counter_whose_integral_it_is(measured, tmp_path):
    file = tmp_path / "trace.json"
    write_trace(measured[0].trace, file)
    trace = read_trace(file)
    assert trace.metadata["energy_j_per_token"] == measured[0].stats.to_dict()["energy_j_per_token"]
    for name, watts in WATTS.items():
        own = [one for one in trace.counters if one.name == POWER and name in one.values]
        edges = [one.time_ns for one in own] + [trace.end_ns]
        joules = sum(one.values[name] * (edges[i + 1] - edges[i]) / 1e9 for i, one in enumerate(own))
        assert joules == pytest.approx(trace.metadata["energy"]["by_component_j"][name], rel=1e-6)
        assert {one.rank for one in own} == {NONE}
        assert own[0].values[name] == pytest.approx(watts, rel=0.02)


def test_without_asking_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(engine.generation.generate, "counters_of", None)
    result = run()
    assert result.stats.energy is None
    assert "energy" not in result.stats.to_dict()
    assert POWER not in {one.name for one in result.trace.counters}


def test_batches_add_up():
    batches = []
    with EmulatedDevice(None, None, 1 << 30) as device:
        given = {"max_new_tokens": NEW, "device": device, "energy": steady(), "on_batch": batches.append}
        policy = {"batch_size": 2, "micro_batch_size": 2}
        stats = engine.run(make("mixtral"), PROMPTS[:4], "cgopipe", policy, **given).stats
    assert len(batches) == 2
    assert stats.energy.total_j == pytest.approx(sum(one.energy.total_j for one in batches))


def test_a_stream_has_one_phase():
    with EmulatedDevice(None, None, 1 << 30) as device:
        given = {"max_new_tokens": NEW, "device": device, "energy": steady(), "traced_steps": 3}
        outputs = engine.stream(make("mixtral"), PROMPTS, micro_batch_size=1, **given)
        assert len(list(outputs)) == len(PROMPTS)
    stats = outputs.stats
    assert stats.energy.phases_j["stream"][HOST] == pytest.approx(WATTS[HOST] * stats.total_s, rel=0.02)
    assert stats.to_dict()["energy_j_per_token"] == outputs.trace.metadata["energy_j_per_token"]
    assert POWER in {one.name for one in outputs.trace.counters}


@pytest.mark.parametrize("call", [engine.run, engine.stream])
def test_an_interrupted_run_leaves_no_thread(call):
    def stop(_):
        raise KeyboardInterrupt

    before = threading.active_count()
    told = {"on_batch": stop} if call is engine.run else {"on_result": stop}
    with EmulatedDevice(None, None, 1 << 30) as device, pytest.raises(KeyboardInterrupt):
        list(call(make("mixtral"), PROMPTS, "cgopipe", None, 2, NEW, device, energy=steady(), **told))
    assert threading.active_count() == before


@pytest.mark.skipif(bool(MISSING), reason=f"torch has no {MISSING}")
def test_a_card_is_counted_by_its_driver_for_the_run_alone(monkeypatch):
    from async_device.runtime import AsyncRuntime

    class OnTheBus(AsyncRuntime):
        vendor = "CUDA"

        def pci_address(self, device):
            return PCI

    nvml = FakeNvml({"0000:03:00.0": 50.0, PCI: 400.0}, period_s=0.001)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setitem(sys.modules, "zeus", None)
    with Accelerator(10**9, cpu_threads=1, runtime=OnTheBus()) as device:
        given = {"micro_batch_size": 2, "max_new_tokens": NEW, "device": device, "energy": True}
        result = engine.run(make("mixtral"), PROMPTS, **given)
    seconds = result.stats.prefill_s + result.stats.decode_s
    assert result.stats.energy.by_component[DEVICE] == pytest.approx(400.0 * seconds, rel=0.1)
    assert result.stats.energy.counters[DEVICE] == f"card at {PCI} (NVML)"
    assert {one.rank for one in result.trace.counters if one.name == POWER and DEVICE in one.values} == {0}
    assert set(nvml.read) == {PCI}
