"""Costs on a device that the host's own cores play, and fixed times of classes of work."""

from dataclasses import replace

import pytest
from sim_examples import cost_of, made_setup, one_task, round_machine

from sim.cost import DRAM, Cost
from sim.cost.pools import WHOLE_INTERPRETER, hbm, interpreter, link, pool_capacities
from sim.problem import AtTokens, Basis, Efficiency, Emulation, Hardware, Network, Quantity
from sim.schedule import CPU, GPU, Lane, LaneKind, Op, Task
from sim.simulation import Simulation


def number(value, unit="1"):
    return Quantity(value, unit, Basis.ASSUMED, "a test")


def emulated(turns=0.75, beside_stream=1.0):
    return replace(round_machine(), emulation=Emulation(number(turns), number(beside_stream)))


def demand(cost, pool):
    return dict(cost.demands).get(pool, 0)


def with_latency(part, **latencies):
    classes = {
        name: Efficiency(number(0.5), number(0.5), number(seconds, "s") if seconds else None)
        for name, seconds in latencies.items()
    }
    return replace(round_machine(), device=replace(part, **classes))


INTERPRETER = interpreter(1, 0)


@pytest.mark.parametrize(
    "task",
    [
        one_task(Op.PRE_ATTN),
        one_task(Op.POST_ATTN),
        one_task(Op.HEAD),
        one_task(Op.ATTN, on_cpu=True),
    ],
)
def test_lanes_of_one_interpreter_take_turns(task):
    assert demand(cost_of(task, machine=emulated()), INTERPRETER) == WHOLE_INTERPRETER * 0.75
    assert demand(cost_of(task), INTERPRETER) == 0


def test_each_of_several_devices_has_an_interpreter_of_its_own():
    network = Network(number(1e9, "B/s"), number(1e-6, "s"))
    machine = replace(emulated(), num_devices=2, network=network)
    first = one_task(Op.PRE_ATTN)
    for rank, task in enumerate((first, first._replace(lane=Lane(LaneKind.GPU, 1)))):
        cost = cost_of(task, machine=machine)
        assert demand(cost, interpreter(2, rank)) == WHOLE_INTERPRETER * 0.75
        assert demand(cost, interpreter(2, 1 - rank)) == 0
    assert pool_capacities(machine)[interpreter(2, 0) :] == (WHOLE_INTERPRETER,) * 2


@pytest.mark.parametrize("op", [Op.LOAD_WEIGHTS, Op.PIN_WEIGHTS, Op.LOAD_HIDDEN])
def test_only_a_copy_that_is_mostly_latency_takes_turns(op):
    small, usual = emulated(), emulated()
    for path in ("link.latency", "host.launch_latency"):
        small = small.with_value(path, 10.0)
        usual = usual.with_value(path, 0.0)
    demands = [demand(cost_of(one_task(op), machine=machine), INTERPRETER) for machine in (small, usual)]
    assert demands == [WHOLE_INTERPRETER * 0.75, 0]


@pytest.mark.parametrize(("turns", "times"), [(0.5, 1.0), (0.75, 1.5), (1.0, 2.0)])
def test_two_that_take_turns_need_that_much_longer(turns, times):
    costs, ended = made_setup(machine=emulated(turns)).costs(only_contended=True), {}
    demands = [cost_of(one_task(op), machine=emulated(turns)).demands for op in (Op.POST_ATTN, Op.PRE_ATTN)]
    pair = [Cost(1000, tuple(one for one in own if one[0] == INTERPRETER)) for own in demands]
    tasks = [Task(0, Op.POST_ATTN, GPU, 1), Task(1, Op.ATTN, CPU, 1)]

    def note(one):
        ended[one.task.id] = one.end_ns

    Simulation([tasks], lambda task: pair[task.id], costs.capacities, on_task=note).run()
    assert ended == {0: 1000 * times, 1: 1000 * times}


def test_the_device_s_memory_is_the_host_s():
    for op in (Op.POST_ATTN, Op.LOAD_WEIGHTS):
        real, played = (cost_of(one_task(op), machine=machine) for machine in (round_machine(), emulated()))
        assert real.duration_ns == played.duration_ns
        assert demand(real, hbm(0)) > 0
        assert demand(played, hbm(0)) == 0
        times = 2 if op is Op.LOAD_WEIGHTS else 1
        assert demand(played, DRAM) == pytest.approx(times * demand(real, hbm(0)), abs=times)
        assert demand(played, link(0)) == demand(real, link(0))


def test_no_demand_on_the_interpreter_is_left_out_as_harmless():
    setup = made_setup(machine=emulated())
    task = one_task(Op.POST_ATTN)
    assert demand(setup.costs(only_contended=True)(task), INTERPRETER) == WHOLE_INTERPRETER * 0.75


def test_a_measured_kernel_reads_the_cache_where_it_lies_whatever_the_schedule():
    kernel = Efficiency(number(1.0), number(0.5))
    plain = replace(round_machine().host, attention=Efficiency(number(1.0), number(0.5)))
    copying, measured = (
        cost_of(
            one_task(Op.ATTN, on_cpu=True),
            schedule="flexgen-c",
            machine=replace(round_machine(), host=replace(plain, decode_attention=one)),
        )
        for one in (None, kernel)
    )
    assert copying.bytes == 25 * measured.bytes


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


@pytest.mark.parametrize(
    ("op", "classes"),
    [
        (Op.PRE_ATTN, ["gemm"]),
        (Op.POST_ATTN, ["gemm", "experts"]),
        (Op.EXPERTS, ["gemm", "experts"]),
        (Op.HEAD, ["head"]),
    ],
)
def test_work_takes_what_was_measured_at_its_number_of_tokens(op, classes):
    """A ratio holds for all of a class's time in a task of so many tokens, but not for the task's launch."""
    latencies = dict.fromkeys(("gemm", "experts", "head"), 1e-3)
    plain = with_latency(round_machine().device, **latencies)
    launch_ns = 10_000

    def took(requests, ratio):
        known = (AtTokens(4, number(1.0)), AtTokens(16, number(ratio)))
        changed = {name: replace(getattr(plain.device, name), at_tokens=known) for name in classes}
        machine = replace(plain, device=replace(plain.device, **changed))
        return cost_of(one_task(op), machine=machine, micro_batch_size=requests).duration_ns - launch_ns

    for requests in (4, 8, 16, 32):
        half, usual = took(requests, 0.5), cost_of(one_task(op), machine=plain, micro_batch_size=requests).duration_ns
        expected = {4: 1.0, 8: 0.75, 16: 0.5, 32: 0.5}[requests]
        assert half == pytest.approx(expected * (usual - launch_ns), abs=3)


def test_a_second_place_costs_the_same_at_every_number_of_tokens():
    """It was measured in seconds; the ratio is of experts in one place."""
    plain = with_latency(round_machine().device, gemm=0, experts=1e-3)
    experts = replace(plain.device.experts, at_tokens=(AtTokens(1, number(0.25)),))
    machine = replace(plain, device=replace(plain.device, experts=experts))
    one, two = (
        cost_of(one_task(Op.POST_ATTN), machine=machine, experts_on_device=share).duration_ns for share in (0.0, 0.5)
    )
    assert two - one == pytest.approx(1e6, abs=2)


@pytest.mark.parametrize(("place", "fixed_ns"), [("gpu", 10_000), ("cpu", None)])
def test_attention_takes_what_was_measured_for_its_requests(place, fixed_ns):
    part, task = ("host" if place == "cpu" else "device"), one_task(Op.ATTN, on_cpu=place == "cpu")
    usual = round_machine()
    fixed_ns = fixed_ns or 1e9 * usual.host.launch_latency_s
    known = (AtTokens(4, number(1.0)), AtTokens(16, number(3.0)))
    kernel = replace(getattr(usual, part).attention, at_tokens=known)
    slow = replace(usual, **{part: replace(getattr(usual, part), attention=kernel)})
    for requests, ratio in ((4, 1), (8, 2), (16, 3)):
        took = [
            cost_of(task, machine=machine, micro_batch_size=requests, attention=place).duration_ns - fixed_ns
            for machine in (usual, slow)
        ]
        assert took[1] == pytest.approx(ratio * took[0], abs=3)


def test_memory_that_work_uses_faster_than_its_share_is_watched():
    """Half the time for as many bytes is twice the bandwidth."""
    low = Efficiency(number(1.0), number(0.4), None, number(1.0))
    fast = replace(low, at_tokens=(AtTokens(1, number(0.4)),))
    for gemm, watched in ((low, False), (fast, True)):
        classes = {"gemm": gemm, "experts": low, "attention": low}
        machine = replace(round_machine(), device=replace(round_machine().device, **classes))
        setup = made_setup(machine=machine)
        assert demand(setup.costs()(one_task(Op.PRE_ATTN)), hbm(0)) > 0
        assert (demand(setup.costs(only_contended=True)(one_task(Op.PRE_ATTN)), hbm(0)) > 0) == watched


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
    assert float(machine.value("emulation.interpreter_share")) == 0.75


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


def test_pools_that_decode_attention_alone_can_fill_are_watched():
    low, high = (Efficiency(number(1.0), number(share)) for share in (0.05, 1.0))
    classes = {"gemm": low, "experts": low, "attention": low}
    for attention, whose, pool in (("gpu", "device", hbm(0)), ("cpu", "host", DRAM)):
        task = one_task(Op.ATTN, on_cpu=attention == "cpu")
        for own, watched in ((low, False), (high, True)):
            machine = round_machine()
            for part in ("device", "host"):
                shares = {**classes, "decode_attention": own if part == whose else low}
                machine = replace(machine, **{part: replace(getattr(machine, part), **shares)})
            setup = made_setup(machine=machine, attention=attention)
            assert demand(setup.costs()(task), pool) > 0
            assert (demand(setup.costs(only_contended=True)(task), pool) > 0) == watched


def test_compute_beside_a_stream_keeps_a_share_of_its_speed_in_decode():
    slow = emulated(beside_stream=0.8)
    for op in (Op.PRE_ATTN, Op.POST_ATTN, Op.HEAD):
        for step, factor in ((0, 1.0), (1, 1.25)):
            task = one_task(op, step)
            usual, beside = (cost_of(task, machine=machine).duration_ns for machine in (emulated(), slow))
            assert beside == pytest.approx(factor * usual, abs=2)
    for place in ("cpu", "gpu"):
        alone = {"experts_on_device": 1.0, "attention": place, "kv_on_device": float(place == "gpu")}
        usual, resident = (cost_of(one_task(Op.POST_ATTN), machine=one, **alone) for one in (emulated(), slow))
        assert usual.duration_ns == resident.duration_ns
