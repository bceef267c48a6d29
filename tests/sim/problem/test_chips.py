"""Arrays of chips: meshes whose links carry all-reduces, and the machines of chips that come with the project."""

import pytest
from hypothesis import given, settings, strategies as st

from sim.problem import Basis, Hardware
from sim.problem.machine.chips import links_of_a_corner
from traces.errors import InputError

TPUS = [name for name in Hardware.presets() if name.startswith("tpu-")]
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("mesh", "wraps", "links"),
    [
        ("1", False, 0),
        ("2", False, 1),
        ("4", False, 1),
        ("4", True, 2),
        ("2x2", False, 2),
        ("2x2", True, 2),
        ("2x4", False, 2),
        ("2x4", True, 3),
        ("4x4", True, 4),
        ("2x2x1", False, 2),
        ("4x4x4", True, 6),
    ],
)
def test_the_links_of_a_corner_bound_an_all_reduce(mesh, wraps, links):
    assert links_of_a_corner(mesh, wraps=wraps) == links


@given(SIZES)
@settings(deadline=None, derandomize=True, max_examples=30)
def test_wired_ends_never_take_a_link_away(sizes):
    mesh = "x".join(map(str, sizes))
    plain, wired = (links_of_a_corner(mesh, wraps=wraps) for wraps in (False, True))
    assert plain <= wired <= 2 * plain


class TestNetwork:
    def test_its_rate_follows_from_a_link_and_the_mesh(self):
        network = Hardware.load("tpu-v5e-8").network
        assert network.bandwidth_bytes_per_s == 2 * network.one_way_bytes_per_s
        assert network.bandwidth_bytes_per_s.source.startswith("derived: network.one_way of a link")

    def test_it_follows_what_is_set(self):
        given = ["network.one_way=10GB/s", "network.mesh=8x1"]
        assert Hardware.load("tpu-v5e-8", given).network.bandwidth_bytes_per_s == 10e9
        assert Hardware.load("tpu-v5e-8", [*given, "network.wraps=true"]).network.bandwidth_bytes_per_s == 20e9

    def test_a_rate_that_is_given_is_never_touched(self):
        assert Hardware.load("tpu-v5e-4", ["network.bandwidth=7GB/s"]).network.bandwidth_bytes_per_s == 7e9

    @pytest.mark.parametrize(
        ("mesh", "said"),
        [
            ("2x2", "network.mesh: 2x2 is not 8 devices; mend it or num_devices"),
            ("2 by 4", "network.mesh: '2 by 4' is no mesh; give it as 2x4, or 2x2x1"),
            ("0x8", "network.mesh: '0x8' is no mesh; give it as 2x4, or 2x2x1"),
        ],
    )
    def test_another_mesh_is_named(self, mesh, said):
        with pytest.raises(InputError, match="mesh") as caught:
            Hardware.load("tpu-v5e-8", [f"network.mesh={mesh}"])
        assert str(caught.value) == f"tpu-v5e-8: {said}"


class TestTpus:
    def test_each_generation_is_there_as_its_machines_are(self):
        chips = {name: Hardware.load(name).num_devices for name in TPUS}
        of_v5 = {"tpu-v5e-1": 1, "tpu-v5e-4": 4, "tpu-v5e-8": 8, "tpu-v5p-1": 1, "tpu-v5p-4": 4}
        assert chips == {**of_v5, "tpu-v6e-1": 1, "tpu-v6e-4": 4, "tpu-v6e-8": 8}

    @pytest.mark.parametrize("name", TPUS)
    def test_what_sets_them_apart_are_their_properties(self, name):
        machine = Hardware.load(name)
        assert machine.link.locked_only
        side = 256 if "v6e" in name else 128
        tiles = machine.device.tiles
        assert (tiles.rows, tiles.inputs, tiles.outputs, tiles.expert_rows) == (8, side, side, 128)
        assert machine.device.expert_capacity_ratio is None

    @pytest.mark.parametrize("name", TPUS)
    def test_all_that_others_leave_of_the_host_may_be_page_locked(self, name):
        machine = Hardware.load(name)
        host, kept = machine.host_memory.capacity_bytes, machine.reserve.host_kept_bytes
        assert machine.pinned_bytes == pytest.approx(host - kept)

    def test_half_of_a_host_has_half_of_its_memory_and_the_same_chips(self):
        half, whole = map(Hardware.load, ("tpu-v5e-4", "tpu-v5e-8"))
        assert 2 * half.host_memory.capacity_bytes == whole.host_memory.capacity_bytes
        assert half.device == whole.device
        assert half.link == whole.link

    @pytest.mark.parametrize(
        ("asked", "found"),
        [
            ("v5e", "tpu-v5e-1"),
            ("TPU v5e", "tpu-v5e-1"),
            ("v5e-8", "tpu-v5e-8"),
            ("v6e 4", "tpu-v6e-4"),
            ("Trillium", "tpu-v6e-1"),
            ("v5p", "tpu-v5p-1"),
            ("ct6e-standard-1t", "tpu-v6e-1"),
        ],
    )
    def test_they_are_found_as_people_write_them(self, asked, found):
        assert Hardware.load(asked).name == found

    @pytest.mark.parametrize("name", TPUS)
    def test_what_they_draw_is_not_made_up(self, name):
        assert "power.device.limit" not in dict(Hardware.load(name).quantities())

    def test_rates_of_links_that_someone_measured_say_so(self):
        bases = {name: Hardware.load(name).network.one_way_bytes_per_s.basis for name in TPUS if not name.endswith("1")}
        assert {name for name, basis in bases.items() if basis is Basis.MEASURED} == {
            "tpu-v5p-4",
            "tpu-v6e-4",
            "tpu-v6e-8",
        }


def test_a_mesh_beside_a_rate_is_named_as_well():
    with pytest.raises(InputError, match=r"^tpu-v5e-4: network\.mesh: 'square' is no mesh"):
        Hardware.load("tpu-v5e-4", ["network.bandwidth=7GB/s", "network.mesh=square"])


def test_tiles_are_whole_numbers():
    for text in ("device.tiles.rows=0", "device.tiles.expert_rows=0"):
        with pytest.raises(InputError, match="rows: 0 is not allowed; give a whole number of at least 1"):
            Hardware.load("tpu-v5e-1", [text])


def test_a_machine_of_chips_is_written_and_read_back(tmp_path):
    machine = Hardware.load("tpu-v6e-8", ["device.expert_capacity_ratio=1.25"])
    machine.write(tmp_path / "chips.toml")
    assert Hardware.load(tmp_path / "chips.toml") == machine
