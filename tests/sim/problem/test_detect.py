"""The machine at hand: ten machines as their files and commands describe them, and this one."""

import tomllib

import pytest
import recorded_machines as recorded
from recorded_machines import GIB, on_bus, smi, system

from sim.cli import main
from sim.problem import Basis, Hardware, Problem
from sim.problem.machine.detect import detected_table, find
from sim.problem.machine.detect.command import file_text
from sim.problem.machine.detect.measure import Threads, disk_rate, matrix_rate
from traces.errors import InputError


def machine(found, folder):
    """What the file of a machine that was found makes."""
    path = folder / "machine.toml"
    path.write_text(file_text(found, measure=False), encoding="utf-8")
    return Hardware.load(path)


KNOWN = {  # preset, devices, GB of a device, GB of the host, GB/s of the link's theory, cores
    "desktop_4090": ("rtx4090", 1, 25.76, 67.2, 31.5, 16),
    "unequal": ("rtx3090ti", 1, 25.76, 68.7, 31.5, 16),
    "eight_h100": ("h100", 8, 85.5, 2163.6, 63, 112),
    "t4_in_a_group": ("t4", 1, 16.1, 4.29, 15.75, 1),
    "mi300x": ("mi300x", 1, 206.1, 1622.4, 63, 96),
    "arc": ("arc-b580", 1, 12, 33.3, 15.75, 16),
    "wsl": ("rtx4080", 1, 17.2, 16.64, 31.5, 16),
    "gb10": ("dgx-spark", 1, 128.5, 128.5, None, 20),
    "strix_halo": ("strix-halo", 1, 134.2, 134.2, None, 16),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_machine_is_its_card_s_preset_with_what_it_says_of_itself(name, tmp_path):
    preset, count, device_gb, host_gb, link_gbs, cores = KNOWN[name]
    found = find(getattr(recorded, name)(tmp_path))
    assert found.table()["extends"] == preset
    mine = machine(found, tmp_path)
    assert (mine.num_devices, mine.host.cores) == (count, cores)
    assert mine.device_memory.capacity_bytes == pytest.approx(device_gb * 1e9, rel=2e-3)
    assert mine.host_memory.capacity_bytes == pytest.approx(host_gb * 1e9, rel=2e-3)
    assert mine.unified == (link_gbs is None)
    if link_gbs is not None:
        assert mine.link.peak_bytes_per_s == pytest.approx(link_gbs * 1e9)
    for path, number in mine.quantities():
        assert number.source, path
    assert mine.host_memory.capacity_bytes.basis is Basis.MEASURED


def test_a_laptop_without_an_accelerator_is_described_and_not_planned_for(tmp_path):
    laptop = recorded.laptop(tmp_path)
    found = find(laptop)
    assert not found.planned
    assert [one.name for one in found.others] == ["Intel device 8086:a7a0"]
    assert next(found.missing()).startswith("no accelerator was found")
    with pytest.raises(InputError, match="auto: no accelerator was found"):
        detected_table(laptop)


def test_channels_and_speed_of_the_memory_are_its_bandwidth(tmp_path):
    desktop = machine(find(recorded.desktop_4090(tmp_path / "a")), tmp_path)
    assert desktop.host_memory.bandwidth_bytes_per_s == 2 * 5600e6 * 8
    assert desktop.value("host_memory.bandwidth").source == "2 channels of DDR5-5600: dmidecode -t 17"
    server = find(recorded.eight_h100(tmp_path / "b"))
    assert (server.host.dram.channels, server.host.numa_nodes) == (16, 2)


def test_a_control_group_limits_memory_and_cores_in_both_versions(tmp_path):
    for version in (1, 2):
        mine = machine(find(recorded.t4_in_a_group(tmp_path / str(version), version)), tmp_path)
        assert mine.host_memory.capacity_bytes == 4 * GIB
        assert "control group" in mine.value("host_memory.capacity").source
        assert mine.host.cores == 1
        assert mine.reserve.host_kept_bytes == 1.5 * GIB  # what is in use, more than the rule keeps
        assert mine.value("reserve.host").basis is Basis.MEASURED


def test_of_unequal_devices_one_is_planned_with_and_the_other_named(tmp_path):
    found = find(recorded.unequal(tmp_path))
    mine = machine(found, tmp_path)
    assert [one.name for one in mine.other_devices] == ["NVIDIA GeForce RTX 4060 Ti"]
    assert any("not planned with" in line and "RTX 4060 Ti" in line for line in found.missing())


def test_devices_that_have_nvlink_exchange_over_it(tmp_path):
    assert machine(find(recorded.eight_h100(tmp_path)), tmp_path).network.bandwidth_bytes_per_s == 18 * 25e9


def test_the_picture_of_a_desktop_is_no_accelerator(tmp_path):
    found = find(recorded.desktop_4090(tmp_path))
    assert [one.name for one in found.others] == ["AMD device 1002:164e"]


def test_an_unknown_card_is_named_with_what_is_missing(tmp_path):
    unknown = ("NVIDIA GeForce RTX 7090", "00000000:01:00.0", "0x999910DE", 49000, 6, 16)
    asked = system(tmp_path, recorded.host(64, "some CPU"), smi(unknown))
    (line, *_) = find(asked).missing()
    assert line.startswith("NVIDIA GeForce RTX 7090 is not in the table of cards: give device.peak and device_memory")
    assert "10de:9999" in line
    with pytest.raises(InputError, match="RTX 7090 is not in the table"):
        detected_table(asked)
    path = tmp_path / "mine.toml"
    more = '[device]\npeak = "300 TFLOPS"\n[device_memory]\nbandwidth = "2 TB/s"\n'
    (tmp_path / "base.toml").write_text(file_text(find(asked), measure=False), encoding="utf-8")
    path.write_text(f'extends = "base.toml"\n{more}', encoding="utf-8")
    assert Hardware.load(path).link.peak_bytes_per_s == 121e9


def test_a_machine_that_says_nothing_is_no_error(tmp_path):
    found = find(system(tmp_path, {}))
    assert (found.host.memory_bytes, found.planned, found.host.dram) == (0, (), None)


def test_odd_answers_are_no_error(tmp_path):
    files = recorded.host(8, "CPU") | on_bus("0000:01:00.0", "10de", "zz", speed="fast", width="?")
    odd = {"nvidia-smi": "No devices were found", "dmidecode": "# SMBIOS not present", "lspci": "?"}
    found = find(system(tmp_path, files, odd))
    assert [one.name for one in found.devices] == ["NVIDIA device 10de:zz"]
    assert not found.planned


def test_the_command_writes_a_file_and_says_what_is_missing(tmp_path, capsys):
    target = tmp_path / "machine.toml"
    assert main(["detect", "--out", str(target)]) == 0
    content = tomllib.loads(target.read_text(encoding="utf-8"))
    assert content["host_memory"]["capacity"]["basis"] == "measured"
    assert "machine.toml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--out machine.json", "a machine's file ends in .toml"),
        ("--disk .", "--disk: says where --measure reads"),
        ("--measure --disk nowhere", "--disk nowhere: there is no such folder"),
    ],
)
def test_wrong_options_are_named(line, said, capsys):
    assert main(["detect", *line.split()]) == 2
    assert said in capsys.readouterr().err


def test_auto_is_the_machine_at_hand(monkeypatch, tmp_path):
    asked = recorded.desktop_4090(tmp_path)
    monkeypatch.setattr("sim.problem.machine.detect.detected_table", lambda: detected_table(asked))
    mine = Problem.of("mixtral-8x7b", Hardware.load("auto", ["link.h2d=20GB/s"])).hardware
    assert (mine.name, mine.link.h2d_bytes_per_s) == ("auto", 20e9)
    assert mine.device.peak_flops_per_s == Hardware.load("rtx4090").device.peak_flops_per_s


def test_what_is_measured_is_a_rate(tmp_path):
    with Threads(2, 2**24) as memory:
        assert 1e8 < memory.copying().value < 1e13
        assert 1e8 < memory.reading().value < 1e13
    assert matrix_rate(1).quantity()["basis"] == "measured"
    try:
        rate = disk_rate(tmp_path)
    except OSError:  # a file system without direct reads
        return
    assert rate.value > 1e5
    assert not list(tmp_path.iterdir())
