"""Machines: presets, files, units, and what a user is told when one is wrong."""

import copy
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from sim.problem import Basis, Dimension, Hardware, Quantity
from sim.problem.machine.cards import cards
from traces.errors import InputError

PAPER = ("gcp-t4", "gcp-l4", "gcp-2xt4", "gcp-4xt4")
XEONS = ("rtx4090-6454s", "rtx4090-2x6454s", "4xrtx4090-6454s")
PUBLISHED = (*XEONS, "rtx3090-ddr5", "rtx3060-5600x", "a5000", "a5000-7453")
NAMES = Hardware.presets()
UNSAID = {key for key, card in cards().items() if "peak" in card.assumed}
GOOD = '{ value = 20, unit = "GB/s", basis = "measured", source = "my own run" }'


def message(call) -> str:
    """Return the message of the InputError that `call` raises, after checking that it is one line."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


class TestPresets:
    def test_all_promised_machines_are_there(self):
        assert {*PAPER, *PUBLISHED} <= set(NAMES)

    def test_each_loads_under_its_own_name_and_describes_itself(self):
        for name in NAMES:
            machine = Hardware.load(name)
            assert machine.name == name
            assert machine.description

    def test_every_number_has_a_basis_and_a_source(self):
        for name in NAMES:
            for path, quantity in Hardware.load(name).quantities():
                assert isinstance(quantity.basis, Basis), (name, path)
                assert len(quantity.source) > 5, (name, path)

    def test_its_tables_build_the_same_machine_again(self):
        for name in NAMES:
            machine = Hardware.load(name)
            again = Hardware.from_dict(machine.to_dict())
            assert again == machine
            assert again.to_dict() == machine.to_dict()

    def test_no_sustained_rate_exceeds_the_theory_it_stands_under(self):
        for name in NAMES:
            link = Hardware.load(name).link
            assert max(link.h2d_bytes_per_s, link.d2h_bytes_per_s) <= link.peak_bytes_per_s, name
            assert link.h2d_pageable_bytes_per_s <= link.h2d_bytes_per_s, name
            assert link.d2h_pageable_bytes_per_s <= link.d2h_bytes_per_s, name
            assert max(link.h2d_bytes_per_s, link.d2h_bytes_per_s) <= link.duplex_bytes_per_s, name
            assert link.duplex_bytes_per_s <= link.h2d_bytes_per_s + link.d2h_bytes_per_s, name

    def test_peaks_come_from_datasheets(self):
        for name in NAMES:
            machine = Hardware.load(name)
            if name not in UNSAID:
                assert machine.device.peak_flops_per_s.basis is Basis.DATASHEET, name
            assert machine.device_memory.bandwidth_bytes_per_s.basis is Basis.DATASHEET, name

    @pytest.mark.parametrize(
        ("name", "tflops", "gigabytes", "gigabytes_per_s"),
        [("t4", 65, 16, 320), ("l4", 121, 24, 300), ("a100-80gb", 312, 80, 2039), ("h200", 989, 141, 4800)],
    )
    def test_device_figures(self, name, tflops, gigabytes, gigabytes_per_s):
        machine = Hardware.load(name)
        assert machine.device.peak_flops_per_s == pytest.approx(tflops * 1e12)
        assert machine.device_memory.capacity_bytes == pytest.approx(gigabytes * 1e9)
        assert machine.device_memory.bandwidth_bytes_per_s == pytest.approx(gigabytes_per_s * 1e9)

    def test_pageable_rates_of_the_paper_machines_are_in_binary_units(self):
        link = Hardware.load("gcp-t4").link
        assert link.h2d_pageable_bytes_per_s == pytest.approx(5.43 * 2**30)
        assert link.d2h_pageable_bytes_per_s == pytest.approx(2.015 * 2**30)
        assert link.h2d_pageable_bytes_per_s.basis is Basis.FITTED

    @pytest.mark.parametrize("name", ["gcp-t4", "gcp-l4"])
    def test_cpu_attention_of_the_paper_machines_reads_as_its_kernel_alone_does(self, name):
        machine = Hardware.load(name)
        assert machine.host.attention.memory * machine.host_memory.bandwidth_bytes_per_s == pytest.approx(45e9)
        assert machine.host.request_overhead_s.basis is Basis.FITTED

    @pytest.mark.parametrize("name", ["gcp-t4", "gcp-l4"])
    def test_one_fitted_share_of_the_peak_serves_all_of_prefill(self, name):
        device = Hardware.load(name).device
        assert device.gemm.compute == device.experts.compute == device.attention.compute
        assert device.gemm.compute.basis is Basis.FITTED

    def test_devices_of_one_host_share_what_its_cores_copy_and_attend(self):
        one, two, four = (Hardware.load(name) for name in ("gcp-t4", "gcp-2xt4", "gcp-4xt4"))
        assert two.pin_bytes_per_s / one.pin_bytes_per_s == pytest.approx(32 / 24, rel=1e-3)
        assert one.host.request_overhead_s / two.host.request_overhead_s == pytest.approx(32 / 24, rel=1e-3)
        assert two.staging_bytes_per_s == 2 * four.staging_bytes_per_s == two.pin_bytes_per_s / 2
        assert one.link.h2d_bytes_per_s == four.link.h2d_bytes_per_s

    def test_several_devices_have_a_network_and_one_has_none(self):
        assert [Hardware.load(name).num_devices for name in PAPER] == [1, 1, 2, 4]
        assert [Hardware.load(name).network is not None for name in PAPER] == [False, False, True, True]

    def test_only_paper_machines_carry_the_optimizer_constants(self):
        assert [name for name in Hardware.presets() if Hardware.load(name).optimizer] == sorted(PAPER)


class TestUserFile:
    def test_extends_a_preset_and_changes_what_it_names(self, tmp_path):
        path = written(tmp_path, f'extends = "rtx4090"\n[link]\nh2d = {GOOD}\n')
        mine, base = Hardware.load(path), Hardware.load("rtx4090")
        assert mine.name == "mine"
        assert mine.link.h2d_bytes_per_s == 20e9
        assert mine.link.h2d_bytes_per_s.basis is Basis.MEASURED
        changed = {name for name, value in mine.quantities() if value != base.value(name)}
        assert changed == {"link.h2d", "link.d2h", "link.duplex", "link.h2d_pageable", "link.d2h_pageable"}

    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            (f"[link]\nd2h = {GOOD.replace('20', '60')}", "link.d2h: 60 GB/s is more than link.peak, 31.5 GB/s"),
            (f"[link]\nduplex = {GOOD.replace('20', '64')}", "link.duplex: 64 GB/s is more than twice link.peak, 31.5"),
            (
                f"pinned = {GOOD.replace('20', '500').replace('GB/s', 'GB')}",
                "pinned: 500 GB is more than host_memory.capacity, ",
            ),
        ],
    )
    def test_numbers_that_cannot_both_be_are_refused(self, lines, said, tmp_path):
        path = written(tmp_path, f'extends = "rtx4090"\n{lines}\n')
        with pytest.raises(InputError) as caught:
            Hardware.load(path)
        assert str(caught.value).startswith(f"{path}: {said}")

    @pytest.mark.parametrize("gigabytes", [1152, 64])
    def test_half_of_its_own_host_s_memory_may_be_page_locked(self, gigabytes, tmp_path):
        capacity = f'capacity = {{ value = {gigabytes}, unit = "GB", basis = "datasheet", source = "its DIMMs" }}\n'
        mine = Hardware.load(written(tmp_path, f'extends = "rtx4090"\n[host_memory]\n{capacity}'))
        assert mine.pinned_bytes == gigabytes / 2 * 1e9
        assert mine.pinned_bytes.basis is Basis.ASSUMED

    def test_page_locked_memory_that_a_file_gives_stays_with_those_that_extend_it(self, tmp_path):
        written(tmp_path, f'extends = "l4"\npinned = {GOOD.replace("GB/s", "GB")}\n', "base.toml")
        other = 'capacity = { value = 64, unit = "GB", basis = "datasheet", source = "its DIMMs" }'
        mine = Hardware.load(written(tmp_path, f'extends = "base.toml"\n[host_memory]\n{other}\n'))
        assert mine.pinned_bytes == 20e9

    def test_extends_another_file_beside_it(self, tmp_path):
        written(tmp_path, f'extends = "l4"\n[link]\nh2d = {GOOD}\n', "base.toml")
        path = written(tmp_path, 'extends = "base.toml"\nname = "my box"\n')
        mine = Hardware.load(str(path))
        assert (mine.name, float(mine.link.h2d_bytes_per_s)) == ("my box", 20e9)

    def test_extending_itself_is_refused(self, tmp_path):
        path = written(tmp_path, 'extends = "mine.toml"\n')
        assert "extends itself" in message(lambda: Hardware.load(path))

    def test_unknown_preset_lists_the_nearest(self):
        text = message(lambda: Hardware.load("gcp-t5"))
        assert text.startswith("unknown hardware 'gcp-t5'; did you mean gcp-t4 or")
        assert "`python -m sim list` shows all" in text
        assert ".toml" in text

    def test_unknown_preset_in_extends_names_the_file(self, tmp_path):
        path = written(tmp_path, 'extends = "h1000"\n')
        text = message(lambda: Hardware.load(path))
        assert text.startswith("mine.toml: extends: unknown hardware 'h1000'; did you mean h100")

    def test_unreadable_file(self, tmp_path):
        assert "cannot be read: No such file" in message(lambda: Hardware.load(tmp_path / "none.toml"))
        (tmp_path / "folder.toml").mkdir()
        assert "cannot be read: Is a directory" in message(lambda: Hardware.load(tmp_path / "folder.toml"))

    def test_broken_toml_says_where(self, tmp_path):
        path = written(tmp_path, "a = 1\nlink = [\n")
        assert "is not TOML" in message(lambda: Hardware.load(path))
        binary = tmp_path / "binary.toml"
        binary.write_bytes(b"\xff\xfe\x00")
        assert "is not a text file" in message(lambda: Hardware.load(binary))

    def test_an_empty_file_names_what_is_missing(self, tmp_path):
        assert "description: missing" in message(lambda: Hardware.load(written(tmp_path, "")))

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("h2d = " + GOOD.replace("20", "-3"), "link.h2d: -3 GB/s is not allowed; it must be above 0"),
            ("h2d = " + GOOD.replace("20", "0"), "link.h2d: 0 GB/s is not allowed; it must be above 0"),
            ("latency = " + GOOD.replace("20", "-1").replace("GB/s", "us"), "link.latency: -1 us is not allowed"),
            ("h2d = " + GOOD.replace("20", "nan"), "link.h2d: the value nan is not a finite number"),
            ("h2d = " + GOOD.replace("20", "true"), "link.h2d: the value True is not a finite number"),
            ("h2d = " + GOOD.replace("20", '"20"'), "link.h2d: the value '20' is not a finite number"),
            ('h2d = "20"', "link.h2d: '20' has no unit; a bandwidth is given in B/s, KB/s"),
            ('h2d = "20 GBps"', "link.h2d: unknown unit 'GBps'; a bandwidth is given in B/s, KB/s"),
            ('h2d = "fast"', "link.h2d: 'fast' is not a bandwidth; give it as { value ="),
            ('h2d = "nan GB/s"', "link.h2d: 'nan GB/s' is not a bandwidth"),
            ('h2d = "1e999 GB/s"', "link.h2d: '1e999 GB/s' is not a bandwidth"),
            ("h2d = 20", "link.h2d: 20 is not a quantity; give it as { value ="),
            (
                "h2d = " + GOOD.replace("GB/s", "GBps"),
                "link.h2d: unknown unit 'GBps'; a bandwidth is given in B/s, KB/s",
            ),
            ("h2d = " + GOOD.replace("GB/s", "TFLOPS"), "link.h2d: unknown unit 'TFLOPS'"),
            ("h2d = " + GOOD.replace("measured", "guessed"), "link.h2d.basis: 'guessed' is not allowed; give measured"),
            ("h2d = " + GOOD.replace("my own run", " "), "link.h2d: the source ' ' is empty"),
            ('h2d = { value = 3, unit = "GB/s", source = "x" }', "link.h2d.basis: missing; give it as { value ="),
            ("h2d = " + GOOD.replace("basis", "bases"), "link.h2d.bases: unknown field; did you mean basis?"),
            ("h2dd = " + GOOD, "link.h2dd: unknown field; did you mean h2d"),
        ],
    )
    def test_a_wrong_number_is_named_by_its_dotted_field(self, tmp_path, body, expected):
        path = written(tmp_path, f'extends = "gcp-t4"\n[link]\n{body}\n')
        assert message(lambda: Hardware.load(path)).startswith(f"{path}: {expected}")

    @pytest.mark.parametrize(
        ("top", "expected"),
        [
            ("num_devices = 0", "num_devices: 0 is not allowed; give a whole number of at least 1"),
            ("num_devices = 1.5", "num_devices: 1.5 is not a whole number"),
            ("num_devices = true", "num_devices: True is not a whole number"),
            ("num_devices = 2", "network: missing; 2 devices"),
            ("name = 3", "name: 3 is not a text"),
            ('name = " "', "name: it is empty"),
            ("link = 3", "link: 3 is not a table of peak, h2d, d2h"),
            ("noise = 3", "noise: unknown field"),
            ("power = 3", "power: 3 is not a table of host, host_memory"),
            ('[device.gemm]\ncompute = { value = 1.2, unit = "1", basis = "assumed", source = "x" }',
             "device.gemm.compute: 1.2 is not allowed; it must be above 0 and at most 1"),
        ],
    )  # fmt: skip
    def test_a_wrong_machine_is_named_by_its_field(self, tmp_path, top, expected):
        path = written(tmp_path, f'extends = "gcp-t4"\n{top}\n')
        assert message(lambda: Hardware.load(path)).startswith(f"{path}: {expected}")

    def test_a_missing_number_is_named_and_shown_how_to_give(self):
        tables = Hardware.load("l4").to_dict()
        del tables["host"]["attention"]["memory"]
        text = message(lambda: Hardware.from_dict(tables))
        assert text.startswith('host.attention.memory: missing; give it as { value = 0.5, unit = "1"')

    def test_one_device_has_no_network(self):
        tables = Hardware.load("gcp-2xt4").to_dict() | {"num_devices": 1}
        assert message(lambda: Hardware.from_dict(tables)).startswith("network: one device has none")


class TestHandOver:
    """A number that a machine may have or not."""

    GIVEN = 'hand_over = { value = 120, unit = "us", basis = "measured", source = "traces of my own" }'

    def test_no_preset_has_one(self):
        assert not any(Hardware.load(name).hand_over_s for name in Hardware.presets())

    def test_it_survives_a_file_and_has_a_name(self, tmp_path):
        mine = Hardware.load(written(tmp_path, f'extends = "gcp-t4"\n{self.GIVEN}\n'))
        assert mine.hand_over_s == pytest.approx(120e-6)
        mine.write(tmp_path / "again.toml")
        again = Hardware.load(tmp_path / "again.toml")
        assert again == mine
        assert again.to_dict() == mine.to_dict()
        assert (again.value("hand_over").text, again.value("hand_over").basis) == ("120 us", Basis.MEASURED)
        assert "hand_over" not in Hardware.load("gcp-t4").to_dict()

    def test_it_can_be_changed_down_to_nothing_but_not_below(self, tmp_path):
        mine = Hardware.load(written(tmp_path, f'extends = "gcp-t4"\n{self.GIVEN}\n'))
        assert mine.scaled("hand_over", 2).hand_over_s == pytest.approx(240e-6)
        assert mine.with_value("hand_over", 0.0).hand_over_s == 0
        expected = "hand_over: -1 us is not allowed; it must be 0 or more"
        assert message(lambda: mine.with_value("hand_over", -1e-6)) == expected
        path = written(tmp_path, f'extends = "gcp-t4"\n{self.GIVEN.replace("120", "-1")}\n')
        assert message(lambda: Hardware.load(path)).endswith(expected)

    def test_a_machine_without_one_says_so(self):
        text = message(lambda: Hardware.load("l4").with_value("hand_over", 1e-6))
        assert text.startswith("hand_over: no such number in l4")


class TestAtTokens:
    """What a class of work takes at some numbers of tokens, over what its roofs say: a list of tables."""

    def given(self, folder, *known):
        lines = ['extends = "gcp-t4"']
        for tokens, ratio in known:
            lines += ["[[device.experts.at_tokens]]", f"tokens = {tokens}"]
            lines += [f'time_ratio = {{ value = {ratio}, unit = "1", basis = "measured", source = "my own run" }}']
        return written(folder, "\n".join(lines))

    def test_they_survive_a_file_and_have_names(self, tmp_path):
        mine = Hardware.load(self.given(tmp_path, (1, 1.5), (16, 0.9)))
        assert [(one.tokens, float(one.time_ratio)) for one in mine.device.experts.at_tokens] == [(1, 1.5), (16, 0.9)]
        mine.write(tmp_path / "again.toml")
        assert Hardware.load(tmp_path / "again.toml") == mine
        changed = mine.with_value("device.experts.at_tokens[1].time_ratio", 1.1)
        assert [float(one.time_ratio) for one in changed.device.experts.at_tokens] == [1.5, 1.1]
        assert float(changed.value("device.experts.at_tokens[1].time_ratio")) == 1.1
        assert "at_tokens" not in Hardware.load("gcp-t4").to_dict()["device"]["experts"]

    def test_between_two_the_ratio_follows_the_logarithm_and_beyond_it_stays(self, tmp_path):
        experts = Hardware.load(self.given(tmp_path, (4, 2.0), (16, 1.0), (64, 1.5))).device.experts
        asked = (1, 4, 8, 16, 32, 64, 1000)
        assert [experts.time_ratio(tokens) for tokens in asked] == pytest.approx([2, 2, 1.5, 1, 1.25, 1.5, 1.5])
        assert Hardware.load("gcp-t4").device.experts.time_ratio(16) == 1

    @pytest.mark.parametrize(
        ("known", "expected"),
        [
            ([(16, 1.0), (4, 1.0)], "device.experts.at_tokens: [16, 4] is not allowed; tokens must ascend from 1"),
            ([(4, 1.0), (4, 1.0)], "device.experts.at_tokens: [4, 4] is not allowed"),
            ([(0, 1.0)], "device.experts.at_tokens: [0] is not allowed"),
            ([(1, 1.0), (2, 0.0)], "device.experts.at_tokens[1].time_ratio: 0 is not allowed; it must be above 0"),
            ([("1.5", 1.0)], "device.experts.at_tokens[0].tokens: 1.5 is not a whole number"),
        ],
    )
    def test_wrong_ones_are_named(self, tmp_path, known, expected):
        path = self.given(tmp_path, *known)
        assert message(lambda: Hardware.load(path)).startswith(f"{path}: {expected}")

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("3", "device.experts.at_tokens: not a list of tables; each starts with [[device.experts.at_tokens]]"),
            ("{ tokens = 3 }", "device.experts.at_tokens: not a list of tables; each starts with [["),
            ("[3]", "device.experts.at_tokens[0]: 3 is not a table of tokens, time_ratio"),
            ("[{ tokens = 3 }]", "device.experts.at_tokens[0].time_ratio: missing; give it as"),
        ],
    )
    def test_what_is_no_such_list_is_refused(self, tmp_path, content, expected):
        path = written(tmp_path, f'extends = "gcp-t4"\n[device.experts]\nat_tokens = {content}\n')
        assert message(lambda: Hardware.load(path)).startswith(f"{path}: {expected}")


class TestWhatIf:
    @given(st.floats(0.01, 100))
    def test_scaled_multiplies_one_number_and_marks_it_assumed(self, factor):
        base = Hardware.load("gcp-l4")
        scaled = base.scaled("link.h2d", factor)
        assert scaled.link.h2d_bytes_per_s == pytest.approx(12.3e9 * factor)
        assert scaled.link.h2d_bytes_per_s.basis is Basis.ASSUMED
        assert {name for name, value in scaled.quantities() if value != base.value(name)} <= {"link.h2d"}
        assert base.link.h2d_bytes_per_s == 12.3e9

    def test_with_value_reaches_every_number(self):
        machine = Hardware.load("gcp-2xt4")
        for name, value in machine.quantities():
            halved = machine.with_value(name, value / 2)
            assert halved.value(name) == pytest.approx(value / 2), name
            assert halved.value(name).unit == value.unit

    def test_an_unknown_path_lists_the_nearest(self):
        text = message(lambda: Hardware.load("l4").scaled("link.h2dd", 2))
        assert text.startswith("link.h2dd: no such number in l4; did you mean link.h2d")

    @pytest.mark.parametrize(
        ("path", "value", "expected"),
        [
            ("device.gemm.compute", 1.5, "device.gemm.compute: 1.5 is not allowed; it must be above 0 and at most 1"),
            ("pinned", 0.0, "pinned: 0 GB is not allowed; it must be above 0"),
            ("link.h2d", float("inf"), "link.h2d: inf GB/s is not allowed"),
            ("link.h2d", float("nan"), "link.h2d: nan GB/s is not allowed"),
        ],
    )
    def test_a_value_that_cannot_be_is_refused(self, path, value, expected):
        assert message(lambda: Hardware.load("l4").with_value(path, value)).startswith(expected)

    def test_a_machine_cannot_be_changed_in_place(self):
        machine = Hardware.load("l4")
        with pytest.raises(FrozenInstanceError):
            machine.num_devices = 2
        with pytest.raises(AttributeError, match="cannot be changed"):
            machine.link.h2d_bytes_per_s.basis = Basis.MEASURED


class TestQuantity:
    @pytest.mark.parametrize(
        ("value", "unit", "si"),
        [
            (300, "GB/s", 3e11),
            (15, "GiB", 15 * 1024**3),
            (2, "TiB/s", 2 * 1024**4),
            (64, "KiB", 65536),
            (65, "TFLOPS", 6.5e13),
            (200, "us", 2e-4),
            (7, "ns", 7e-9),
            (0.75, "1", 0.75),
            (1, "B", 1),
        ],
    )
    def test_is_a_float_in_the_si_base_unit(self, value, unit, si):
        quantity = Quantity(value, unit)
        assert quantity == pytest.approx(si, rel=1e-15)
        assert quantity * 2 == pytest.approx(2 * si, rel=1e-15)

    @pytest.mark.parametrize("dimension", list(Dimension))
    def test_survives_tables_copies_and_pickles(self, dimension):
        for unit in dimension.units:
            given = Quantity(1.1, unit, Basis.FITTED, "a fit")
            for again in (
                Quantity.parse(given.to_dict(), "x", dimension),
                copy.deepcopy(given),
                pickle.loads(pickle.dumps(given)),
            ):
                assert (again, again.to_dict()) == (given, given.to_dict())

    def test_text_is_as_given(self):
        assert Quantity(5.43, "GiB/s").text == "5.43 GiB/s"
        assert Quantity(0.75, "1").text == "0.75"

    def test_unknown_unit_lists_the_known(self):
        assert message(lambda: Quantity(3, "parsec")).startswith("unknown unit 'parsec'; allowed: B, KB")


def test_importing_the_nouns_stays_light():
    """Neither plotting nor a tensor library comes with the numbers."""
    heavy = "{'torch', 'transformers', 'matplotlib', 'rich'}"
    modules = "sim.problem.machine.hardware, sim.hrm.estimate, sim.hrm.roofline"
    code = f"import sys, {modules}; print(*{heavy} & {{*sys.modules}})"
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == ""
