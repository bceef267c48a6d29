"""What others keep of the memories, and one memory of device and host: no plan takes more than there is."""

from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from plan_examples import SMALL, problems, simple_problem

from sim.cost import Setup, usable_bytes
from sim.planning import explain, plan
from sim.planning.explanation import MemoryUse
from sim.planning.policies import candidates_of
from sim.problem import Hardware, Policy, Problem, Quantity, Reserve, kept_on_host_bytes
from sim.schedule import WHOLE, Lane, LaneKind, Op, Task, by_name, registered

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40)
SHARES = st.floats(0, 1)


def with_reserve(hardware, device, host):
    """The machine, of whose memories others keep these shares."""
    kept = (device * hardware.device_memory.capacity_bytes, host * hardware.host_memory.capacity_bytes)
    return replace(hardware, reserve=Reserve(*(Quantity(float(one), "B") for one in kept)))


def unified(hardware):
    """The machine with one memory, as large as its host's."""
    memory = hardware.host_memory
    return replace(hardware, num_devices=1, network=None, device_memory=memory, unified=True)


@given(problem=problems(), name=st.sampled_from(sorted(registered())), device=SHARES, host=SHARES, one=st.booleans())
@SETTINGS
def test_every_policy_that_fits_leaves_the_reserve(problem, name, device, host, one):
    hardware = unified(problem.hardware) if one else problem.hardware
    hardware = with_reserve(hardware, device, host)
    problem = replace(problem, hardware=hardware)
    found = candidates_of(problem, by_name(name), SMALL)
    for row in range(0, len(found), max(1, len(found) // 5)):
        setup = found.setup(row)
        assert not setup.shortages
        for memory in MemoryUse.of(setup.memory, hardware):
            assert memory.used_bytes <= memory.capacity_bytes


def test_a_host_that_is_full_without_a_reserve_is_too_small_with_one():
    """gpt-oss-120b streamed from 64 GB: what was 62.9 of 64.0 GB leaves nothing for the operating system."""
    machine = Hardware.load("rtx3090", ["host_memory.capacity=64GB", "host_memory.bandwidth=204.8GB/s"])
    problem = Problem.of("gpt-oss-120b", machine, prompt_len=500, gen_len=128)
    setup = Setup.of(problem, "zero", micro_batch_size=1, num_micro_batches=1)
    short = {one.tier: one for one in setup.shortages}
    assert short["host"].room_bytes == pytest.approx(64e9 - kept_on_host_bytes(64e9), abs=2)
    assert not replace(setup, problem=replace(problem, hardware=replace(machine, reserve=None))).shortages


@pytest.mark.parametrize(("gib", "kept"), [(4, 1), (8, 1.8), (16, 2.6), (128, 9.32), (256, 11.88)])
def test_what_a_host_keeps_grows_with_its_memory(gib, kept):
    machine = Hardware.load("rtx4090", [f"host_memory.capacity={gib}GiB"])
    assert machine.reserve.host_kept_bytes == pytest.approx(kept * 1024**3)
    assert machine.reserve.device_kept_bytes == 1024**3


def test_the_paper_s_machines_keep_nothing_so_that_its_runs_fit():
    assert usable_bytes(Hardware.load("gcp-t4")) == {"device": 15 * 1024**3, "host": 192e9, "pinned": 96e9}


class TestOneMemory:
    """A machine whose device and host are one memory."""

    def test_it_is_one_memory_in_where_the_bytes_are(self):
        choice = plan(Problem.of("qwen3-30b-a3b", "strix-halo", prompt_len=64, gen_len=8), ["cgopipe"], jobs=1)
        memories = {one.name: one for one in explain(choice, replan=False).tiers}
        assert memories.keys() == {"unified", "pinned"}
        assert memories["unified"].capacity_bytes == 128e9
        assert choice.best.policy.experts_on_device == 1  # nothing needs to travel

    def test_what_streams_is_held_twice(self):
        problem = simple_problem(host_memory__capacity=20e9)
        machine = unified(problem.hardware)
        setup = Setup(replace(problem, hardware=machine), by_name("cgopipe"), Policy(4, 2))
        peaks = setup.memory.peak_bytes()
        tight = machine.with_value("host_memory.capacity", float(peaks["device"] + peaks["host"]) - 1)
        (short,) = replace(setup, problem=replace(problem, hardware=tight)).shortages
        assert (short.tier, short.short_bytes) == ("unified", 1)

    def test_device_and_host_share_its_bandwidth(self):
        problem = simple_problem()
        costs = Setup(replace(problem, hardware=unified(problem.hardware)), by_name("cgopipe"), Policy(4, 2)).costs()
        task = Task(0, Op.POST_ATTN, Lane(LaneKind.GPU), 1, 0, 0, WHOLE, ())
        assert [pool for pool, _ in costs(task).demands] == [0]
