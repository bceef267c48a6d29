"""Costs on a device that the host's own cores play, and fixed times of classes of work."""

from dataclasses import replace

import pytest
from sim_examples import cost_of, made_setup, one_task, round_machine

from sim.cost import ALL_CORES, CPU_CORES, DRAM, hbm, link
from sim.hardware import Efficiency, Emulation, Hardware
from sim.quantity import Basis, Quantity
from sim.schedule.task import Op


def number(value, unit="1"):
    return Quantity(value, unit, Basis.ASSUMED, "a test")


def emulated(**changes):
    emulation = {
        "device_cores": 0.5,
        "attention_cores": 0.25,
        "one_core": 0.25,
        "beside_stream": 1.0,
        "attention_beside_stream": 1.0,
    } | changes
    made = {name: None if value is None else number(value) for name, value in emulation.items()}
    return replace(round_machine(), emulation=Emulation(**made))


def demand(cost, pool):
    return dict(cost.demands).get(pool, 0)


def with_latency(part, **latencies):
    classes = {
        name: Efficiency(number(0.5), number(0.5), number(seconds, "s") if seconds else None)
        for name, seconds in latencies.items()
    }
    return replace(round_machine(), device=replace(part, **classes))


@pytest.mark.parametrize(
    ("task", "cores"),
    [
        (one_task(Op.PRE_ATTN), 0.5),
        (one_task(Op.POST_ATTN), 0.5),
        (one_task(Op.HEAD), 0.5),
        (one_task(Op.ATTN, on_cpu=True), 0.25),
        (one_task(Op.PIN_WEIGHTS), 0.25),
    ],
)
def test_what_the_host_plays_takes_its_cores(task, cores):
    assert demand(cost_of(task, machine=emulated()), CPU_CORES) == ALL_CORES * cores


def test_a_device_with_cores_apart_takes_none_of_the_host_s():
    apart = emulated(device_cores=None)
    assert demand(cost_of(one_task(Op.POST_ATTN), machine=apart), CPU_CORES) == 0
    assert demand(cost_of(one_task(Op.ATTN, on_cpu=True), machine=apart), CPU_CORES) == ALL_CORES * 0.25
    assert Hardware.from_dict(apart.to_dict()) == apart


def test_a_paced_copy_keeps_its_pace_whoever_has_the_cores():
    assert demand(cost_of(one_task(Op.LOAD_WEIGHTS), machine=emulated()), CPU_CORES) == 0


def test_the_device_s_memory_is_the_host_s():
    for op in (Op.POST_ATTN, Op.LOAD_WEIGHTS):
        real, played = (cost_of(one_task(op), machine=machine) for machine in (round_machine(), emulated()))
        assert real.duration_ns == played.duration_ns
        assert demand(real, hbm(0)) > 0
        assert demand(played, hbm(0)) == 0
        times = 2 if op is Op.LOAD_WEIGHTS else 1
        assert demand(played, DRAM) == pytest.approx(times * demand(real, hbm(0)), abs=times)
        assert demand(played, link(0)) == demand(real, link(0))


def test_no_demand_on_cores_is_left_out_as_harmless():
    setup = made_setup(machine=emulated())
    task = one_task(Op.POST_ATTN)
    assert demand(setup.costs(only_contended=True)(task), CPU_CORES) == ALL_CORES * 0.5


def test_a_class_of_work_has_a_fixed_time_of_its_own():
    plain = with_latency(round_machine().device, gemm=0, experts=0, head=0)
    slow = with_latency(round_machine().device, gemm=1e-3, experts=2e-3, head=4e-3)
    for op, added_ms in ((Op.PRE_ATTN, 1), (Op.POST_ATTN, 2), (Op.OUT_PROJ, 1), (Op.HEAD, 4)):
        before, after = (cost_of(one_task(op), machine=machine) for machine in (plain, slow))
        assert after.duration_ns - before.duration_ns == pytest.approx(added_ms * 1e6, abs=2)
    for share, added_ms in ((0.0, 2), (0.5, 4), (1.0, 2)):
        before, after = (
            cost_of(one_task(Op.POST_ATTN), machine=machine, experts_on_device=share) for machine in (plain, slow)
        )
        assert after.duration_ns - before.duration_ns == pytest.approx(added_ms * 1e6, abs=2)


def test_decode_attention_has_a_class_of_its_own_if_the_machine_says_so():
    usual, own = Efficiency(number(0.5), number(0.5)), Efficiency(number(0.5), number(0.25))
    plain = replace(round_machine().device, attention=usual)
    machines = [replace(round_machine(), device=replace(plain, decode_attention=one)) for one in (None, own)]
    for step, factor in ((0, 1), (1, 2)):
        before, after = (cost_of(one_task(Op.ATTN, step), machine=machine).duration_ns for machine in machines)
        assert after - 10_000 == pytest.approx(factor * (before - 10_000), abs=2)


def test_several_tensors_pay_the_latency_of_a_copy_each():
    slow = round_machine().with_value("link.latency", float(round_machine().link.latency_s) + 1e-3)
    tensors = {Op.OFFLOAD_QKV: 3, Op.STORE_KV: 2, Op.LOAD_KV: 2, Op.LOAD_HIDDEN: 1, Op.LOAD_WEIGHTS: 1}
    for op, copies in tensors.items():
        before, after = (cost_of(one_task(op, 1), machine=machine) for machine in (round_machine(), slow))
        assert after.duration_ns - before.duration_ns == pytest.approx(copies * 1e6, abs=2)


def test_the_head_counts_as_gemm_where_it_has_no_class_of_its_own():
    gemm, head = Efficiency(number(0.5), number(0.5)), Efficiency(number(0.25), number(0.25))
    plain = replace(round_machine().device, gemm=gemm)
    own, usual = (
        cost_of(one_task(Op.HEAD), machine=replace(round_machine(), device=replace(plain, head=head_)))
        for head_ in (head, None)
    )
    latency = 10_000
    assert own.duration_ns - latency == pytest.approx(2 * (usual.duration_ns - latency), abs=2)


def test_a_machine_with_an_emulated_device_survives_its_file():
    machine = emulated()
    assert Hardware.from_dict(machine.to_dict()) == machine
    assert float(machine.value("emulation.one_core")) == 0.25


@pytest.mark.parametrize("hidden", [0.25, 1.0])
def test_what_does_not_overlap_adds_up(hidden):
    def took(compute, memory, overlap=None):
        experts = Efficiency(number(compute), number(memory), None, overlap)
        device = replace(round_machine().device, experts=experts)
        task = one_task(Op.EXPERTS)
        return cost_of(task, machine=replace(round_machine(), device=device), micro_batch_size=512).duration_ns

    fast = 0.999
    compute_bound, memory_bound = (took(*shares) - took(fast, fast) for shares in ((1e-4, fast), (fast, 1e-4)))
    assert compute_bound > 0
    assert memory_bound > 0
    shorter, longer = sorted((took(1e-4, fast), took(fast, 1e-4)))
    both = took(1e-4, 1e-4, number(hidden))
    assert both == pytest.approx(longer + (1 - hidden) * shorter, rel=0.01)


def test_compute_beside_a_stream_keeps_a_share_of_its_speed_in_decode():
    slow = emulated(beside_stream=0.8)
    for op in (Op.PRE_ATTN, Op.POST_ATTN, Op.HEAD):
        for step, factor in ((0, 1.0), (1, 1.25)):
            task = one_task(op, step)
            usual, beside = (cost_of(task, machine=machine).duration_ns for machine in (emulated(), slow))
            assert beside == pytest.approx(factor * usual, abs=2)
    on_host = one_task(Op.ATTN, on_cpu=True)
    usual, beside = (
        cost_of(on_host, machine=emulated(attention_beside_stream=share)).duration_ns for share in (1.0, 0.5)
    )
    assert beside == pytest.approx(2 * usual, abs=2)
    alone = {"experts_on_device": 1.0, "attention": "gpu", "kv_on_device": 1.0}
    usual, resident = (cost_of(one_task(Op.POST_ATTN), machine=one, **alone) for one in (emulated(), slow))
    assert usual.duration_ns == resident.duration_ns
