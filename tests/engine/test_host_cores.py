"""Which cores of the host the lanes get: what the system grants, near the accelerator first, one place that decides."""

import math
import os

import pytest
from engine_models import make

import engine
from engine.device import EmulatedDevice, host_memory_bytes
from engine.device.threads import LAUNCHING, MOST_STAGING, HostCores, numa_of, usable_count
from sim.problem import Policy, core_limit, memory_limit
from sim.schedule import LaneKind
from traces.errors import InputError

ADDRESS = "0000:3b:00.0"
STREAMS = (LaneKind.GPU, LaneKind.H2D, LaneKind.D2H, LaneKind.NET)


@pytest.fixture
def host(monkeypatch):
    """A host on which this process may use so many cores, or these, without a limit of a container."""

    def of(cores):
        allowed = set(range(cores)) if isinstance(cores, int) else set(cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
        monkeypatch.setattr("engine.device.threads.core_limit", lambda: math.inf)

    return of


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def sysfs(root, node, cores, address=ADDRESS):
    folder = f"bus/pci/devices/{address}"
    return write(root, {f"{folder}/numa_node": str(node), f"{folder}/local_cpulist": cores})


# what the system tells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "expected"), [("0-3", range(4)), ("8", [8]), ("0-1,16-17,40", [0, 1, 16, 17, 40]), ("", [])]
)
def test_the_node_of_a_pci_device_and_its_cores(tmp_path, cores, expected):
    assert numa_of(ADDRESS, sysfs(tmp_path, 1, cores)) == (1, frozenset(expected))


def test_a_host_without_nodes_says_so(tmp_path):
    assert numa_of(ADDRESS, sysfs(tmp_path, -1, "0-7")) == (None, frozenset())


@pytest.mark.parametrize("address", [None, "0000:ff:00.0"])
def test_a_device_that_the_system_does_not_know_is_near_nothing(tmp_path, address):
    assert numa_of(address, sysfs(tmp_path, 0, "0-7")) == (None, frozenset())


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/"}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            },
            4.0,
        ),
        ({"proc/self/cgroup": "0::/not/seen/here", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
        (
            {
                "proc/self/cgroup": "3:cpuset:/x\n1:cpu,cpuacct:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
    ],
)
def test_the_limit_of_a_container_is_the_smallest_of_its_groups(tmp_path, files, limit):
    assert core_limit(write(tmp_path, files)) == limit


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, math.inf),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/memory.max": "4000",
                "sys/fs/cgroup/a/b/memory.max": "9000",
            },
            4000,
        ),
        ({"proc/self/cgroup": "5:memory:/x", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "700"}, 700),
    ],
)
def test_memory_is_limited_likewise(tmp_path, files, limit):
    assert memory_limit(write(tmp_path, files)) == limit


def test_the_hosts_memory_is_what_a_container_grants(monkeypatch):
    monkeypatch.setattr("engine.device.open.memory_limit", lambda: 12345.0)
    assert host_memory_bytes() == 12345


@pytest.mark.parametrize(("limit", "count"), [(math.inf, 8), (2.9, 2), (0.5, 1), (100.0, 8)])
def test_cores_count_as_far_as_they_are_granted(host, monkeypatch, limit, count):
    host(8)
    monkeypatch.setattr("engine.device.threads.core_limit", lambda: limit)
    assert usable_count() == count


# who gets what -------------------------------------------------------------------------------------------------------


def test_a_real_accelerator_has_cores_to_launch_from_and_attention_the_rest(host):
    host(range(4, 20))
    cores = HostCores.beside(None)
    assert (cores.playing, cores.attention, cores.staging, cores.numa_node) == (
        None,
        16 - LAUNCHING,
        MOST_STAGING,
        None,
    )
    for kind in LaneKind:
        expected = range(4, 4 + LAUNCHING) if kind in STREAMS else range(4 + LAUNCHING, 20)
        assert cores.cores_of(kind) == frozenset(expected)
        assert cores.torch_threads(kind) == 1


def test_only_the_cores_of_the_node_of_the_accelerator_are_used(host, tmp_path):
    host(range(32))
    cores = HostCores.beside(ADDRESS, sysfs=sysfs(tmp_path, 1, "8-15,24-31"))
    near = [*range(8, 16), *range(24, 32)]
    assert cores.cores_of(LaneKind.GPU) == frozenset(near[:LAUNCHING])
    assert cores.cores_of(LaneKind.CPU) == frozenset(near[LAUNCHING:])
    assert cores.attention == len(near) - LAUNCHING
    assert cores.facts == {"cpu_threads": 14, "staging_threads": 4, "numa_node": 1}


def test_more_threads_than_the_node_has_cores_spread_over_the_host_and_launching_stays_near(host, tmp_path):
    host(range(16))
    cores = HostCores.beside(ADDRESS, 12, sysfs(tmp_path, 1, "8-15"))
    assert (cores.attention, cores.numa_node) == (12, None)
    assert cores.cores_of(LaneKind.H2D) == frozenset([8, 9])
    assert cores.cores_of(LaneKind.CPU) == frozenset(range(16)) - {8, 9}


def test_cores_of_the_node_that_this_process_may_not_use_are_left_alone(host, tmp_path):
    host([0, 1, 2, 3, 8])
    cores = HostCores.beside(ADDRESS, sysfs=sysfs(tmp_path, 1, "8-15"))
    assert cores.cores_of(LaneKind.GPU) == frozenset([8, 0])
    assert cores.cores_of(LaneKind.CPU) == frozenset([1, 2, 3])
    assert cores.numa_node is None


@pytest.mark.parametrize("count", [1, 2])
def test_on_a_small_host_lanes_go_wherever_there_is_room(host, count):
    host(count)
    cores = HostCores.beside(None)
    assert (cores.attention, cores.staging, cores.apart) == (1, 1, None)
    assert {cores.cores_of(kind) for kind in LaneKind} == {None}


def test_a_device_that_the_host_plays_takes_half_of_what_is_granted(host, monkeypatch):
    host(9)
    assert HostCores.that_play(None, None).facts == {"gpu_threads": 4, "cpu_threads": 5, "staging_threads": 2}
    monkeypatch.setattr("engine.device.threads.core_limit", lambda: 4.0)
    assert HostCores.that_play(None, None).facts == {"gpu_threads": 2, "cpu_threads": 2, "staging_threads": 1}


def test_the_lane_that_plays_the_device_computes_with_its_threads_and_the_others_with_one(host):
    host(8)
    cores = HostCores.that_play(3, 2)
    assert {kind: cores.torch_threads(kind) for kind in LaneKind} == {
        kind: 3 if kind is LaneKind.GPU else 1 for kind in LaneKind
    }
    assert cores.cores_of(LaneKind.GPU) == frozenset(range(3))
    assert cores.cores_of(LaneKind.H2D) == cores.cores_of(LaneKind.CPU) == frozenset(range(3, 8))


@pytest.mark.parametrize(("counts", "name"), [((0, 1), "gpu_threads"), ((1, -1), "cpu_threads")])
def test_no_threads_are_refused_by_name(counts, name):
    with pytest.raises(InputError, match=name):
        HostCores.that_play(*counts)


def test_a_device_tells_a_trace_what_it_took():
    with EmulatedDevice(None, None, 10**6, gpu_threads=1, cpu_threads=1) as device:
        assert device.cores.facts.items() <= device.facts.items()


def test_a_device_that_works_alone_takes_all_cores_and_no_other_does(host):
    host(8)
    cores = HostCores.that_play(None, None)
    alone = cores.for_run({LaneKind.GPU})
    assert (alone.playing, alone.apart) == (8, None)
    for others in LaneKind:
        assert others is LaneKind.GPU or cores.for_run({LaneKind.GPU, others}) == cores
    assert cores.held().for_run({LaneKind.GPU}).playing == 4


def test_cores_that_were_asked_for_stay_whatever_the_others_do(host):
    host(8)
    for cores in (HostCores.that_play(3, None), HostCores.beside(None)):
        assert cores.for_run({LaneKind.GPU}) == cores


@pytest.mark.parametrize(("attention", "alone"), [("gpu", True), ("cpu", False)])
def test_a_run_gives_its_device_the_cores_that_its_other_lanes_leave_idle(monkeypatch, attention, alone):
    monkeypatch.setattr("engine.device.threads.usable_count", lambda: 2)
    resident = Policy(4, 2, attention=attention, experts_on_device=1.0, kv_on_device=float(alone))
    with EmulatedDevice(None, None, 10**8, gpu_threads=None) as device:
        usual = device.cores
        result = engine.run(make("mixtral"), [[3, 4]] * 4, "cgopipe", resident, max_new_tokens=2, device=device)
        assert device.cores == usual
    assert result.trace.metadata["device"]["gpu_threads"] == (2 if alone else 1)
