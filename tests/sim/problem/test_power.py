"""What machines draw: from files, from cards, derived; and how their rates fall under a cap."""

import pytest
from power_examples import with_power
from sim_examples import round_machine

from sim.problem import Basis, Hardware
from traces.errors import InputError

MINE = 'name = "mine"\ndescription = "mine"\nextends = "{}"\n'


def written(folder, text):
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


class TestPresets:
    @pytest.mark.parametrize("name", [name for name in Hardware.presets() if not name.startswith("tpu-")])
    def test_every_machine_says_what_it_draws_and_how_that_is_known(self, name):
        machine = Hardware.load(name)
        power = machine.power
        assert power is not None
        assert (power.device is None) == (machine.emulation is not None)
        assert (power.network is None) == (machine.network is None)
        for processor in filter(None, (power.device, power.host)):
            assert 0 <= processor.idle_w < processor.memory_w <= processor.limit_w * 1.01
            assert processor.compute_w <= processor.limit_w * 1.01
        assert all(one.source for path, one in machine.quantities() if path.startswith("power."))

    def test_of_tpus_nobody_says_it(self):
        assert Hardware.load("tpu-v5e-8").power is None

    def test_a_card_s_limit_is_its_data_sheet_s(self):
        known = {"t4": 70, "l4": 72, "a100-80gb": 400, "h100": 700, "rtx3090": 350, "rtx4090": 450}
        for name, limit in known.items():
            number = Hardware.load(name).value("power.device.limit")
            assert (number.text, number.basis) == (f"{limit} W", Basis.DATASHEET)

    def test_one_package_draws_idle_once(self):
        machine = Hardware.load("strix-halo")
        assert machine.unified
        assert machine.power.host.idle_w == machine.power.host_memory.idle_w == machine.power.link.moved_j_per_byte == 0
        assert machine.power.host.limit_w == machine.power.device.limit_w


class TestFiles:
    def test_what_is_given_others_follow(self, tmp_path):
        given = '[power.device.limit]\nvalue = 300\nunit = "W"\nbasis = "measured"\nsource = "my own setting"\n'
        machine = Hardware.load(written(tmp_path, MINE.format("rtx4090") + given))
        usual = Hardware.load("rtx4090").power.device
        assert machine.power.device.limit_w == machine.power.device.compute_w == 300
        assert machine.power.device.idle_w == pytest.approx(usual.idle_w * 300 / 450)

    def test_numbers_survive_a_file(self, tmp_path):
        machine = Hardware.load("gcp-t4")
        machine.write(tmp_path / "again.toml")
        assert Hardware.load(tmp_path / "again.toml").power == machine.power

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("power.device.memory=800W", "power.device.memory: 800 W is more than power.device.limit, 450 W"),
            ("power.device.idle=449W", "power.device.idle: 449 W is more than power.device.memory"),
            ("power.host.compute=2kW", "power.host.compute: 2 kW is more than power.host.limit"),
            ("power.link.moved=-3pJ/B", "power.link.moved: -3 pJ/B is not allowed; it must be 0 or more"),
            ("power.rest.idle=3GB", "power.rest.idle: unknown unit 'GB'; a power is given in"),
            ("power.rest.supply=1.2", "power.rest.supply: 1.2 is not allowed; it must be above 0 and at most 1"),
        ],
    )
    def test_a_wrong_number_is_named(self, setting, said):
        assert said in message(lambda: Hardware.load("rtx4090", [setting]))

    def test_units(self):
        machine = Hardware.load("rtx4090", ["power.rest.idle=0.08kW", "power.host_memory.moved=15pJ/bit"])
        assert machine.power.rest.idle_w == 80
        assert machine.power.host_memory.moved_j_per_byte == pytest.approx(120e-12)


class TestCaps:
    machine = with_power(round_machine())

    def test_arithmetic_slows_with_the_cube_root_of_what_is_left_above_idle(self):
        capped = self.machine.capped(50 + (300 - 50) / 2)
        assert capped.device.peak_flops_per_s == pytest.approx(self.machine.device.peak_flops_per_s * 0.5 ** (1 / 3))
        assert capped.power.device.limit_w == capped.power.device.compute_w == capped.power.device.memory_w == 175

    def test_reads_of_memory_slow_down_less(self):
        capped = self.machine.capped(175)
        clocks = ((175 - 50) / (240 - 50)) ** (1 / 3)
        ratio = capped.device_memory.bandwidth_bytes_per_s / self.machine.device_memory.bandwidth_bytes_per_s
        assert ratio == pytest.approx(clocks**0.5)
        assert ratio > capped.device.peak_flops_per_s / self.machine.device.peak_flops_per_s

    def test_a_cap_above_what_work_draws_changes_no_rate(self):
        capped = self.machine.capped(305)
        assert capped.device == self.machine.device
        assert capped.device_memory == self.machine.device_memory
        assert (capped.power.device.limit_w, capped.power.device.memory_w) == (305, 240)

    @pytest.mark.parametrize(
        ("name", "watts", "of_uncapped", "measured"),
        [
            ("rtx4090", 300, 450, 0.93),  # thegeniusfactory.net: decode of llama.cpp
            ("rtx4090", 260, 450, 0.92),
            ("rtx3090", 280, 350, 0.99),  # jeanfbrito.github.io: the same
        ],
    )
    def test_measured_decode_under_a_cap(self, name, watts, of_uncapped, measured):
        machine = Hardware.load(name)
        assert machine.power.device.limit_w == of_uncapped
        left = machine.capped(watts).device_memory.bandwidth_bytes_per_s / machine.device_memory.bandwidth_bytes_per_s
        assert left == pytest.approx(measured, abs=0.035)

    def test_the_lowest_cap_keeps_seven_tenths_of_the_clocks(self):
        least = self.machine.power.device.least_cap_w
        lowest = self.machine.capped(least)
        assert lowest.device.peak_flops_per_s == pytest.approx(0.7 * self.machine.device.peak_flops_per_s)
        said = message(lambda: self.machine.capped(least - 1))
        assert said.startswith(f"power cap: {least - 1:g} W is less than {least:.0f} W, below which clocks would fall")

    def test_its_numbers_say_where_they_are_from(self):
        found = self.machine.capped(175).value("device.peak")
        assert found.basis is Basis.ASSUMED
        assert found.source.startswith("175 W a device: ")

    def test_a_machine_whose_watts_are_not_known_says_so(self):
        assert message(lambda: round_machine().capped(100)).startswith("power cap: round has no [power.device]")
