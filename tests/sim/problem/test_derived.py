"""Numbers that no file gives follow from those that it gives, and are never one cloud card's."""

import pytest
from hypothesis import given, strategies as st

from sim.problem import Basis, Hardware
from traces.errors import InputError


def written(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_no_preset_but_the_paper_s_machines_has_their_rates_of_pageable_copies():
    paper = {float(Hardware.load("gcp-t4").link.d2h_pageable_bytes_per_s)}
    others = [name for name in Hardware.presets() if not name.startswith("gcp-")]
    assert not any(float(Hardware.load(name).link.d2h_pageable_bytes_per_s) in paper for name in others)


@pytest.mark.parametrize(("name", "gbs"), [("t4", 6.09), ("rtx4090", 8.13), ("h100", 9.87)])
def test_a_pageable_copy_is_a_core_s_copy_and_then_the_link(name, gbs):
    link = Hardware.load(name).link
    assert link.h2d_pageable_bytes_per_s == pytest.approx(gbs * 1e9, rel=2e-3)
    assert link.h2d_pageable_bytes_per_s.basis is Basis.ASSUMED
    assert "a core copies" in link.h2d_pageable_bytes_per_s.source


def test_slow_memory_slows_the_copies_of_a_core():
    slow = Hardware.load("rtx4090", ["host_memory.bandwidth=25 GB/s"])
    assert slow.pin_bytes_per_s == pytest.approx(9e9)
    assert slow.link.h2d_pageable_bytes_per_s < Hardware.load("rtx4090").link.h2d_pageable_bytes_per_s


@pytest.mark.parametrize(("peak", "sustained"), [("15.75GB/s", 12.36e9), ("31.5GB/s", 25.2e9), ("63GB/s", 55.63e9)])
def test_a_link_reaches_a_share_of_its_theory_by_its_generation(peak, sustained):
    link = Hardware.load("rtx4090", [f"link.peak={peak}"]).link
    assert (link.h2d_bytes_per_s, link.d2h_bytes_per_s) == pytest.approx((sustained, sustained))
    assert link.duplex_bytes_per_s == pytest.approx(2 * 0.903 * sustained)


def test_devices_exchange_through_the_host_over_one_link_and_then_another():
    two = Hardware.load("rtx4090", ["num_devices=2", "network.latency=50us", "link.h2d=24GB/s"])
    assert two.network.bandwidth_bytes_per_s == pytest.approx(12e9)
    with pytest.raises(InputError, match="network: missing; 2 devices"):
        Hardware.load("rtx4090", ["num_devices=2"])


def test_few_cores_do_not_reach_what_fast_memory_gives(tmp_path):
    fast = ["host_memory.bandwidth=1200GB/s"]
    few = Hardware.load("rtx4090", [*fast, "host.cores=8"]).host
    assert [float(one.memory) for one in few.classes] == pytest.approx([0.16] * 3)
    unknown = Hardware.load("rtx4090", [*fast, "host.peak=3TFLOPS"]).host
    assert unknown.cores is None  # those of the plain host are not those of another
    assert [float(one.memory) for one in unknown.classes] == [0.7, 0.6, 0.45]


def test_what_a_preset_measured_is_its_own():
    link = Hardware.load("gcp-l4").link
    assert link.h2d_bytes_per_s.basis is Basis.MEASURED
    assert link.h2d_pageable_bytes_per_s.basis is Basis.FITTED


@given(st.floats(8, 4000))
def test_page_locked_memory_follows_the_host(gigabytes):
    machine = Hardware.load("rtx4090", [f"host_memory.capacity={gigabytes!r}GB"])
    assert machine.pinned_bytes == pytest.approx(gigabytes / 2 * 1e9)


def test_what_was_derived_follows_where_a_written_file_is_extended(tmp_path):
    Hardware.load("rtx4090").write(tmp_path / "base.toml")
    mine = Hardware.load(written(tmp_path, 'extends = "base.toml"\n[host_memory]\ncapacity = "1152 GB"\n'))
    assert mine.pinned_bytes == 576e9
    assert Hardware.load(tmp_path / "base.toml").to_dict() == {**Hardware.load("rtx4090").to_dict()}


def test_half_of_the_host_as_older_files_say_follows_too(tmp_path):
    old = 'pinned = { value = 64, unit = "GB", basis = "assumed", source = "half of the host\'s memory" }'
    written(tmp_path, f'extends = "rtx4090"\n{old}\n', "base.toml")
    assert (
        Hardware.load(written(tmp_path, 'extends = "base.toml"\nhost_memory.capacity = "32 GB"\n')).pinned_bytes == 16e9
    )


def test_an_emulated_device_is_what_was_measured_of_it(tmp_path):
    emulation = 'interpreter_share = "0.2"\nbeside_stream = "1"'
    path = written(tmp_path, f'extends = "rtx4090"\n[emulation]\n{emulation}\n')
    with pytest.raises(InputError, match="pin: missing"):
        Hardware.load(path)


class TestSettings:
    """Numbers of a machine on the command line."""

    def test_they_lie_on_top_and_what_is_derived_follows(self):
        machine = Hardware.load("4090", ["host_memory.capacity=64GB", "link.h2d = 24 gb/s", "num_devices=1"])
        assert (machine.host_memory.capacity_bytes, machine.pinned_bytes) == (64e9, 32e9)
        assert (machine.link.h2d_bytes_per_s, machine.link.d2h_bytes_per_s) == (24e9, 24e9)
        assert machine.value("link.h2d").basis is Basis.ASSUMED
        assert machine.value("link.h2d").source == "--set"

    def test_what_is_not_there_yet_can_be_set(self):
        assert Hardware.load("4090", ["disk.capacity=2TB", "disk.bandwidth=7GB/s"]).disk.bandwidth_bytes_per_s == 7e9
        assert Hardware.load("4090", ["description=mine"]).description == "mine"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("link.h2d", "--set 'link.h2d': give NUMBER=VALUE"),
            ("link.h2d=", "--set 'link.h2d=': give NUMBER=VALUE"),
            ("h2d=3GB/s", "--set h2d: no machine has such a number; did you mean link.h2d?"),
            ("link.h2dd=3GB/s", "--set link.h2dd: no machine has such a number; did you mean link.h2d"),
            ("link=3", "--set link: no machine has such a number; did you mean optimizer.link"),
            ("link.h2d=24", "--set link.h2d: '24' has no unit; a bandwidth is given in B/s, KB/s"),
            ("link.h2d=24GB", "--set link.h2d: unknown unit 'GB'; a bandwidth is given in"),
            ("link.h2d=-24GB/s", "rtx4090: link.h2d: -24 GB/s is not allowed; it must be above 0"),
            ("link.h2d=60GB/s", "rtx4090: link.h2d: 60 GB/s is more than link.peak, 31.5 GB/s"),
            ("pinned=500GB", "rtx4090: pinned: 500 GB is more than host_memory.capacity, 128 GB"),
            ("num_devices=two", "rtx4090: num_devices: 'two' is not a whole number"),
            ("unified=yes", "rtx4090: unified: 'yes' is not true or false"),
            ("disk.capacity=2TB", "rtx4090: disk.bandwidth: missing; give it as"),
            ("host.cores=0", "rtx4090: host.cores: 0 is not allowed"),
            ("pin=200GB/s", "rtx4090: pin: 200 GB/s is more than host_memory.bandwidth, 89.6 GB/s"),
        ],
    )
    def test_a_wrong_one_is_named(self, text, said):
        with pytest.raises(InputError) as caught:
            Hardware.load("rtx4090", [text])
        assert str(caught.value).startswith(said)


class TestUnequalDevices:
    """Several devices that are not alike are told apart from those that a plan can use, in one line."""

    def said(self, folder, text):
        with pytest.raises(InputError) as caught:
            Hardware.load(written(folder, f'extends = "rtx3090"\n{text}\n'))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_list_of_devices_is_refused_with_their_names(self, tmp_path):
        one = '[[device]]\npeak = {{ value = {}, unit = "TFLOPS", basis = "datasheet", source = "x" }}\n'
        said = self.said(tmp_path, one.format(80) + one.format(44))
        assert "device: a list of 2 unequal ones (80 TFLOPS, 44 TFLOPS); a plan is for equal devices" in said
        assert "[[other_devices]]" in said
        assert "2 equal ones (2 x 80 TFLOPS)" in self.said(tmp_path, one.format(80) * 2)

    def test_names_are_said(self, tmp_path):
        said = self.said(tmp_path, '[[devices]]\nname = "3090 Ti"\n[[devices]]\nname = "4060 Ti"\n')
        assert "devices: a list of 2 unequal ones (3090 Ti, 4060 Ti)" in said

    def test_what_no_plan_uses_can_be_described(self, tmp_path):
        other = '[[other_devices]]\nname = "RTX 4060 Ti"\nmemory = "16 GB"\n'
        mine = Hardware.load(written(tmp_path, f'extends = "rtx3090"\n{other}'))
        assert [(one.name, one.memory_bytes) for one in mine.other_devices] == [("RTX 4060 Ti", 16e9)]
        assert mine.num_devices == 1
