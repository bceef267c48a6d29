"""Which counters are found, what they say, and what is said of a component that has none."""

import os
import sys

import pytest
from recorded_counters import PCI, FakeNvml, FakeZeusCard, FakeZeusPackage, fake_zeus, many_cards, powercap, show

from engine.device import DEVICE, HOST, HOST_MEMORY, EmulatedDevice, NoCounterError, counters_of
from engine.device.energy import gpu_counter
from engine.device.energy.powercap import counters_by_powercap


@pytest.fixture(autouse=True)
def no_zeus(monkeypatch):
    """Whatever is installed here: neither Zeus nor a driver, unless a test puts them there."""
    for name in ("zeus", "zeus.device", "pynvml"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT"):
        monkeypatch.delenv(name, raising=False)


def put(monkeypatch, modules):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


class TestPowercap:
    def test_a_package_and_its_memory_are_counted(self, tmp_path):
        zones = powercap(tmp_path)
        found = counters_by_powercap(tmp_path)
        show(zones["package-0"], 5_500_000)
        assert {one.component: one.read_j() for one in found.counters} == {HOST: 5.5, HOST_MEMORY: 1.0}
        assert found.missing == {}

    def test_every_package_is_counted_once(self, tmp_path):
        powercap(tmp_path, packages=2)
        found = counters_by_powercap(tmp_path)
        assert [one.component for one in found.counters].count(HOST) == 2
        assert found.names[HOST] == "package-0 of package 0 (RAPL), package-1 of package 1 (RAPL)"

    def test_what_a_machine_does_not_show_is_named(self, tmp_path):
        powercap(tmp_path, dram=False)
        found = counters_by_powercap(tmp_path)
        assert found.names.keys() == {HOST}
        assert f"there is no dram in {tmp_path}" in found.missing[HOST_MEMORY]

    def test_without_any_both_are_missing(self, tmp_path):
        found = counters_by_powercap(tmp_path / "nothing")
        assert found.counters == ()
        assert found.missing.keys() == {HOST, HOST_MEMORY}

    @pytest.mark.skipif(os.geteuid() != 0, reason="shown with a folder in place of the file for anyone else")
    def test_a_counter_that_cannot_be_read_takes_its_component_with_it(self, tmp_path):
        zones = powercap(tmp_path, packages=2)
        (zones["package-1"] / "energy_uj").unlink()
        (zones["package-1"] / "energy_uj").mkdir()
        found = counters_by_powercap(tmp_path)
        assert found.names.keys() == {HOST_MEMORY}, "one package of two is not the host"
        assert "package-1" not in found.names
        assert "cannot be read: Is a directory" in found.missing[HOST]

    def test_who_may_not_read_is_told_what_to_do(self, tmp_path, monkeypatch):
        powercap(tmp_path, dram=False)

        def refuse(self, *args, **kwargs):
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return self.read_bytes().decode()

        monkeypatch.setattr(type(tmp_path), "read_text", refuse)
        why = counters_by_powercap(tmp_path).missing[HOST]
        assert "read by root only" in why
        assert f"sudo chmod a+r {tmp_path / 'intel-rapl:0' / 'energy_uj'}" in why
        assert "\n" not in why

    @pytest.mark.parametrize("text", ["", "0", "many"])
    def test_a_counter_whose_range_is_unknown_is_not_used(self, tmp_path, text):
        zones = powercap(tmp_path)
        (zones["dram 0"] / "max_energy_range_uj").write_text(text)
        assert "begins anew" in counters_by_powercap(tmp_path).missing[HOST_MEMORY]


class TestCards:
    def test_a_card_is_found_by_its_place_among_several(self, monkeypatch):
        nvml = FakeNvml({"0000:03:00.0": 100.0, PCI: 300.0})
        put(monkeypatch, {"pynvml": nvml})
        counter = gpu_counter("CUDA", 0, PCI)
        counter.read_j()
        assert set(nvml.read) == {PCI}
        assert counter.component == DEVICE
        assert counter.name == f"card at {PCI} (NVML)"

    @pytest.mark.parametrize(
        ("fails", "said"),
        [
            ({"nvmlInit": "Driver Not Loaded"}, "Driver Not Loaded"),
            ({"nvmlDeviceGetTotalEnergyConsumption": "Not Supported"}, "Not Supported"),
        ],
    )
    def test_what_the_driver_refuses_is_said(self, monkeypatch, fails, said):
        put(monkeypatch, {"pynvml": FakeNvml({PCI: 300.0}, fails)})
        with pytest.raises(NoCounterError, match=f"{PCI}: {said}"):
            gpu_counter("CUDA", 0, PCI)

    def test_a_part_of_a_card_has_no_counter_of_its_own(self, monkeypatch):
        put(monkeypatch, {"pynvml": FakeNvml({PCI: 300.0}, divided=True)})
        with pytest.raises(NoCounterError, match="divided"):
            gpu_counter("CUDA", 0, PCI)

    def test_a_card_that_cannot_be_divided_is_whole(self, monkeypatch):
        put(monkeypatch, {"pynvml": FakeNvml({PCI: 300.0}, divided=None)})
        assert gpu_counter("CUDA", 0, PCI).component == DEVICE

    def test_without_the_drivers_module_it_is_said_how_to_have_it(self):
        with pytest.raises(NoCounterError, match=r"pip install 'cgopipe\[energy\]'"):
            gpu_counter("CUDA", 0, PCI)

    def test_other_vendors_cards_need_zeus(self, monkeypatch):
        put(monkeypatch, {"pynvml": FakeNvml({PCI: 300.0})})
        with pytest.raises(NoCounterError, match="Zeus is not installed"):
            gpu_counter("ROCm", 0, PCI)
        put(monkeypatch, fake_zeus([FakeZeusCard("MI300X", lambda: 12.0)]))
        assert gpu_counter("ROCm", 0, PCI).read_j() == 12.0

    def test_zeus_is_asked_first(self, monkeypatch):
        put(monkeypatch, {"pynvml": FakeNvml({PCI: 300.0}), **fake_zeus([FakeZeusCard("H200", lambda: 7.0)])})
        counter = gpu_counter("CUDA", 0, PCI)
        assert (counter.name, counter.read_j()) == ("H200 (Zeus)", 7.0)

    def test_what_zeus_cannot_count_the_driver_may(self, monkeypatch):
        put(monkeypatch, {"pynvml": FakeNvml({PCI: 300.0}), **fake_zeus([FakeZeusCard("old", None, counts=False)])})
        assert gpu_counter("CUDA", 0, PCI).name == f"card at {PCI} (NVML)"

    def test_a_counter_that_breaks_later_says_so(self, monkeypatch):
        nvml = FakeNvml({PCI: 300.0})
        put(monkeypatch, {"pynvml": nvml})
        counter = gpu_counter("CUDA", 0, PCI)
        nvml.fails["nvmlDeviceGetTotalEnergyConsumption"] = "GPU is lost"
        with pytest.raises(NoCounterError, match="GPU is lost"):
            counter.read_j()


class TestZeusItself:
    """Zeus as it is, where it is installed, on a driver that is played."""

    @pytest.fixture(autouse=True)
    def there(self, monkeypatch):
        for name in ("zeus", "zeus.device", "pynvml"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        gpu = pytest.importorskip("zeus.device.gpu")
        monkeypatch.setattr(gpu, "_gpus", None)
        gpu.nvml_is_available.cache_clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def test_it_counts_the_card_at_its_place_whatever_number_cuda_gives_it(self, monkeypatch):
        many_cards(monkeypatch, {0x03: 11.0, 0x17: 22.0})
        counter = gpu_counter("CUDA", 0, PCI)
        assert (counter.name, counter.read_j(), counter.limit_w) == ("card on bus 23 (Zeus)", 22.0, 350.0)

    def test_a_card_that_it_does_not_see_the_driver_counts(self, monkeypatch):
        many_cards(monkeypatch, {0x03: 11.0, 0x17: 22.0})
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert gpu_counter("CUDA", 0, PCI).name == "card on bus 23 (NVML)"

    def test_cards_chosen_by_name_it_cannot_read_and_the_driver_can(self, monkeypatch):
        many_cards(monkeypatch, {0x17: 22.0})
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5ba43aa4")
        assert gpu_counter("CUDA", 0, PCI).read_j() == 22.0


class TestOfADevice:
    def test_an_emulated_device_has_none_of_its_own(self, tmp_path):
        with EmulatedDevice(None, None, 1 << 20) as device:
            found = counters_of(device, tmp_path)
        assert found.counters == ()
        assert "the host's cores play the device" in found.missing[DEVICE]
        assert set(found.missing) == {DEVICE, HOST, HOST_MEMORY}

    def test_zeus_daemon_reads_what_the_user_may_not(self, tmp_path, monkeypatch):
        put(monkeypatch, fake_zeus(packages=[FakeZeusPackage(3.0, 1.5), FakeZeusPackage(4.0, 0.5)]))
        monkeypatch.setenv("ZEUSD_SOCK_PATH", "/run/zeusd")
        with EmulatedDevice(None, None, 1 << 20) as device:
            found = counters_of(device, tmp_path)
        assert sum(one.read_j() for one in found.counters if one.component == HOST) == 7.0
        assert sum(one.read_j() for one in found.counters if one.component == HOST_MEMORY) == 2.0

    def test_without_its_daemon_zeus_is_not_asked_for_the_host(self, tmp_path, monkeypatch):
        put(monkeypatch, fake_zeus(packages=[FakeZeusPackage(3.0)]))
        powercap(tmp_path)
        with EmulatedDevice(None, None, 1 << 20) as device:
            found = counters_of(device, tmp_path)
        assert "RAPL" in found.names[HOST]
