"""A machine of several devices, calibrated: what its ranks share is added up, and what is between them is measured."""

import pytest
from sim_examples import round_machine

from engine.calibration.devices import calibrate_devices
from engine.calibration.fit import of_devices
from engine.calibration.measure import Measured, NetworkProbe
from engine.device import DeviceAsked
from engine.generation import ModelAsked
from engine.running.demo import make_model
from sim.problem import Basis, Hardware

PROBE = NetworkProbe(Measured.of([2e9, 3e9, 4e9], "large sums"), Measured.of([5e-5], "small sums"))


def test_the_host_gives_what_all_ranks_have_of_it_and_a_device_what_one_has():
    first = round_machine()
    second = first.with_value("host.peak", 3 * first.value("host.peak")).with_value("device.peak", 1e9)
    both = of_devices([first, second], PROBE)
    assert both.num_devices == 2
    assert both.value("host.peak") == 4 * first.value("host.peak")
    assert both.value("host_memory.bandwidth") == 2 * first.value("host_memory.bandwidth")
    for path in ("device.peak", "link.h2d", "host_memory.capacity", "device_memory.capacity"):
        assert both.value(path) == first.value(path)
    assert both.value("host.peak").basis is Basis.MEASURED
    assert both.value("host.peak").source.startswith("2 ranks at once, each on its share of the cores: ")


def test_the_network_is_what_sums_show():
    both = of_devices([round_machine()] * 2, PROBE)
    assert both.network is not None
    assert both.value("network.bandwidth") == pytest.approx(3e9)
    assert both.value("network.latency") == pytest.approx(5e-5)


@pytest.mark.exhaustive
def test_two_devices_measured_make_a_machine_that_can_be_read_again(tmp_path):
    make_model(tmp_path / "model", hidden_size=64, num_layers=2)
    asked = DeviceAsked("emulated", {"memory_bytes": 2**28})
    told = []
    model = ModelAsked(tmp_path / "model", "float32")
    found = calibrate_devices(
        model, asked, "two", num_devices=2, quick=True, progress=lambda *what: told.append(what)
    ).hardware
    found.write(tmp_path / "two.toml")
    read = Hardware.load(str(tmp_path / "two.toml"))
    assert (read.name, read.num_devices) == ("two", 2)
    assert read.value("network.latency") > 0
    assert read.value("network.bandwidth") > 0
    assert told[-1][0] == told[-1][1]
