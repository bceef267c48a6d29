"""Watts of a machine where it has counters, and those of the card's sheet where it has none."""

import sys
import time
from dataclasses import replace

import pytest
import torch
from async_device import MISSING
from recorded_counters import PCI, FakeNvml

from engine.calibration import Round, fit
from engine.calibration.measure import (
    COMPUTE,
    HOST_COMPUTE,
    HOST_READ,
    IDLE,
    LINK,
    MEMORY,
    Measured,
    Probes,
    Watts,
    measure_watts,
    median_watts,
)  # fmt: skip
from engine.calibration.measure.probes import LinkProbe
from engine.device import DEVICE, HOST, HOST_MEMORY, Accelerator, EmulatedDevice, EnergyCounter, EnergyCounters
from sim.problem import Basis, Emulation, Hardware

ONE = Measured(1.0, 1.0, 1.0, 1, "a test")
PROBES = Probes(LinkProbe(*[ONE] * 6), *[ONE] * 5)
REAL = "real GPU (NVIDIA H200)"
GPU = {COMPUTE: {DEVICE: 690.0}, MEMORY: {DEVICE: 420.0}, LINK: {DEVICE: 130.0}, IDLE: {DEVICE: 120.0}}
OF_CARD = Watts(GPU, {COMPUTE: 0.0, MEMORY: 4e12, LINK: 5e10, IDLE: 0.0}, {DEVICE: 700.0}, {DEVICE: "H200 (NVML)"})
OF_HOST = Watts(
    {IDLE: {HOST: 60.0, HOST_MEMORY: 5.0}, HOST_COMPUTE: {HOST: 240.0, HOST_MEMORY: 9.0},
     HOST_READ: {HOST: 180.0, HOST_MEMORY: 25.0}},
    {IDLE: 0.0, HOST_COMPUTE: 0.0, HOST_READ: 2e11}, {HOST: 250.0}, {HOST: "package-0", HOST_MEMORY: "dram"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("engine.calibration.measure.watts.WARM_S", 0.0)
    monkeypatch.setattr("engine.calibration.measure.watts.STEADY_S", 0.05)


@pytest.fixture
def machine():
    """A machine as a calibration leaves it, without watts."""
    found = replace(Hardware.load("h200"), power=None)
    for path, number in found.quantities():
        found = found.replaced(path, number.replaced(number, "a calibration", Basis.MEASURED))
    return found


def test_a_host_with_counters_is_measured_at_rest_and_at_work():
    def read(watts):
        return lambda: watts * time.perf_counter()

    counters = EnergyCounters((EnergyCounter(HOST, "package", read(90.0), limit_w=150.0),), {DEVICE: "emulated"})
    with EmulatedDevice(None, None, 1 << 28) as device:
        found = measure_watts(device, torch.float32, counters)
    assert found.watts.keys() == {IDLE, HOST_COMPUTE, HOST_READ}
    assert all(of[HOST] == pytest.approx(90.0, rel=0.05) for of in found.watts.values())
    assert found.bytes_per_s[HOST_READ] > 1e8
    assert found.limits_w == {HOST: 150.0}


def test_without_counters_nothing_is_done_and_why_is_kept():
    with EmulatedDevice(None, None, 1 << 28) as device:
        found = measure_watts(device, torch.float32, EnergyCounters(missing={HOST: "none"}))
    assert found == Watts(missing={HOST: "none"})


@pytest.mark.skipif(bool(MISSING), reason=f"torch has no {MISSING}")
def test_a_card_is_measured_at_each_class_of_work(monkeypatch):
    from async_device.runtime import AsyncRuntime

    class OnTheBus(AsyncRuntime):
        vendor = "CUDA"

        def pci_address(self, device):
            return PCI

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({PCI: 300.0}, period_s=0.001))
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setattr("engine.calibration.measure.watts.SIZE", 64)
    with Accelerator(10**8, cpu_threads=1, runtime=OnTheBus()) as device:
        found = measure_watts(device, torch.float32)
    assert {COMPUTE, MEMORY, LINK, IDLE} <= found.watts.keys()
    assert all(of[DEVICE] == pytest.approx(300.0, rel=0.1) for of in found.watts.values())
    assert found.limits_w[DEVICE] == 700.0
    assert found.bytes_per_s[LINK] > 0


def test_the_measured_watts_of_a_card_replace_those_of_its_sheet(machine):
    power = fit.with_watts(machine, OF_CARD, REAL).power
    assert [power.device.idle_w, power.device.compute_w, power.device.memory_w, power.device.limit_w] == [
        120.0, 690.0, 420.0, 700.0,
    ]  # fmt: skip
    assert power.device.idle_w.basis is Basis.MEASURED
    assert power.link.moved_j_per_byte == pytest.approx((130 - 120) / 5e10)
    assert power.host.idle_w.basis is Basis.ASSUMED, "no counter saw the host"


def test_the_measured_watts_of_a_host_replace_what_follows_from_its_peak(machine):
    power = fit.with_watts(machine, OF_HOST, REAL).power
    assert (power.host.idle_w, power.host.compute_w, power.host.memory_w) == (60.0, 240.0, 180.0)
    assert power.host_memory.moved_j_per_byte == pytest.approx((25 - 5) / 2e11)
    assert power.device.limit_w.basis is not Basis.MEASURED, "the card's sheet says it"


def test_without_counters_a_card_has_the_watts_of_its_sheet(machine):
    found = fit.with_watts(machine, Watts(missing={DEVICE: "no NVML"}), REAL)
    assert found.power.device.limit_w == 700.0
    assert fit.watts_in_words(found, Watts(missing={DEVICE: "no NVML"})) == [
        "watts of device: as the data sheet and shares of it say; no NVML"
    ]


def test_a_card_on_no_sheet_without_counters_has_no_watts(machine):
    assert fit.with_watts(machine, None, "real GPU (Card of tomorrow)").power is None


def test_an_emulated_machine_has_its_hosts_watts_or_none(machine):
    share = machine.device.gemm.compute
    emulated = replace(machine, emulation=Emulation(share, share))
    assert fit.with_watts(emulated, Watts(missing={HOST: "no RAPL"}), "emulated device").power is None
    power = fit.with_watts(emulated, OF_HOST, "emulated device").power
    assert power.device is None
    assert power.host.compute_w == 240.0
    assert power.rest.idle_w == 0.0


def test_noise_makes_no_machine_that_cannot_be(machine):
    odd = {IDLE: {DEVICE: 130.0}, COMPUTE: {DEVICE: 705.0}, MEMORY: {DEVICE: 120.0}, LINK: {DEVICE: 125.0}}
    power = fit.with_watts(machine, Watts(odd, OF_CARD.bytes_per_s, {DEVICE: 700.0}, {DEVICE: "a"}), REAL).power
    assert (power.device.memory_w, power.device.limit_w) == (130.0, 705.0)
    assert power.link.moved_j_per_byte == 0.0


def test_rounds_keep_watts_in_their_file_and_the_median_counts(tmp_path):
    rounds = []
    for compute_w in (600.0, 690.0, 695.0):
        watts = Watts({**GPU, COMPUTE: {DEVICE: compute_w}}, OF_CARD.bytes_per_s, {}, OF_CARD.counters)
        Round(PROBES, [], watts=watts).write(tmp_path / "round.json")
        rounds.append(Round.read(tmp_path / "round.json"))
    assert median_watts(rounds).watts[COMPUTE][DEVICE] == 690.0
    assert median_watts([Round(PROBES, [])]) is None


def test_a_written_machine_keeps_its_watts(tmp_path, machine):
    found = fit.with_watts(machine, OF_CARD, REAL)
    found.write(tmp_path / "machine.toml")
    assert Hardware.load(tmp_path / "machine.toml").power == found.power
