"""The engine's stream code on a device whose streams run late: what must be waited for, and what must be kept."""

import argparse
import contextlib
import gc
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from async_device import MISSING

from engine.device import LaneContext, PinnedOutOfMemory, add_device, device_of, make_device
from engine.device.ledger import DeviceOutOfMemory
from engine.lanes import Executor
from engine.memory import Buffers, HostBlock
from sim.schedule import Lane, LaneKind, Op, Task
from traces.errors import InputError

if MISSING:
    pytest.skip(f"torch {torch.__version__} has no {MISSING}", allow_module_level=True)

from async_device.orders import ORDERS, late_device
from async_device.runtime import AsyncRuntime

GPU, H2D, D2H, CPU = LaneKind.GPU, LaneKind.H2D, LaneKind.D2H, LaneKind.CPU
EXCHANGE = "exchange"


@pytest.fixture(params=ORDERS)
def late(request):
    device, machine = late_device(request.param)
    with device:
        device.reserve_pinned({EXCHANGE: 1 << 16})
        yield device, machine


def locked(device, name, size):
    return device.pinned_empty(name, (size,), torch.float32, EXCHANGE)


class Work(NamedTuple):
    """What a task does on its lane, and the tasks before it that it waits for."""

    kind: LaneKind
    do: Callable[[LaneContext], object]
    deps: Sequence[int] = ()


def run(device, *works):
    """Each lane does its works in order. None ends, which would wait for all it was given, before all are issued."""
    tasks = [Task(i, Op.POST_ATTN, Lane(one.kind), 0, 0, deps=tuple(one.deps)) for i, one in enumerate(works)]

    def perform(lane, task):
        works[task.id].do(lane)
        return 0

    lanes = list(dict.fromkeys(task.lane for task in tasks))
    all_issued = threading.Barrier(len(lanes))
    return Executor(device, [tasks], lanes, perform, on_thread_end=lambda lane: all_issued.wait(10)).run()


# the device of the tests itself ---------------------------------------------------------------------------------------


def test_work_is_done_when_something_waits_for_it_and_not_before():
    device, machine = late_device()
    with device, device.open_lane(GPU) as lane:
        x = torch.ones(3, device=device.torch_device)
        (x + 1).mul_(5)
        before = lane.stream.done
        assert lane.stream.issued > before
        lane.mark().wait()
        assert lane.stream.done == lane.stream.issued
        assert x.add(1).tolist() == [2, 2, 2]
    assert [wait.why for wait in machine.waits if wait.why == "copy of pageable memory"] == ["copy of pageable memory"]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_planted_race_is_found(late, ordered):
    device, machine = late
    tensor = device.allocate("tensor", (8,), torch.float32)
    run(
        device,
        Work(H2D, lambda lane: tensor.fill_(3)),
        Work(GPU, lambda lane: tensor[4:].add(1), [0] if ordered else []),
    )
    assert bool(machine.races.found) is not ordered
    assert all("aten.fill_" in found and "aten.add" in found for found in machine.races.found)


def test_parts_of_one_tensor_do_not_race_and_what_overlaps_does(late):
    device, machine = late
    tensor = device.allocate("tensor", (8,), torch.float32)
    run(
        device,
        Work(D2H, lambda lane: tensor[2:4].add(1)),
        Work(H2D, lambda lane: tensor[:2].fill_(3)),
        Work(GPU, lambda lane: tensor[2:].add(1)),
    )
    assert machine.races.found == []
    run(device, Work(H2D, lambda lane: tensor[:3].fill_(3)), Work(GPU, lambda lane: tensor[2:].add(1)))
    assert machine.races.found


def test_freed_memory_is_poison_for_who_reads_it_late():
    device, _ = late_device()
    with device, device.open_lane(D2H) as store:
        source = torch.ones(4, device=device.torch_device)  # of the pool of D2H, which goes on …
        with device.open_lane(GPU) as compute:
            read = source + 0  # … while this waits
            del source
            store.stream.run()
            compute.mark().wait()
            assert read.tolist() != [1, 1, 1, 1]


def test_who_may_copy_without_waiting(late):
    device, machine = late

    def waits_of(copy):
        before = len(machine.waits)
        run(device, Work(H2D, copy))
        return [wait.why for wait in machine.waits[before:] if wait.lane == "H2D" and wait.why.startswith("copy")]

    there, here = device.allocate("there", (4, 6), torch.float32), locked(device, "here", 24).view(4, 6)
    assert waits_of(lambda lane: lane.copy_h2d(there, here)) == []
    assert waits_of(lambda lane: lane.copy_d2h(here, there)) == []
    pageable = torch.zeros(4, 6)
    assert waits_of(lambda lane: lane.copy_h2d(there, pageable, pinned=False)) == ["copy of pageable memory"]
    assert waits_of(lambda lane: lane.copy_h2d(there, pageable)) == ["copy of pageable memory"]
    strided = here[:, :3]
    assert waits_of(lambda lane: lane.copy_h2d(there[:, :3], strided)) == ["copy of page-locked memory"]


# what must be waited for, and kept ------------------------------------------------------------------------------------


def test_lanes_wait_for_each_other_and_the_host_for_them(late):
    device, machine = late
    source, back = locked(device, "source", 1000), locked(device, "back", 1000)
    there, seen = device.allocate("there", (1000,), torch.float32), []
    source.copy_(torch.arange(1000.0))
    run(
        device,
        Work(H2D, lambda lane: lane.copy_h2d(there, source)),
        Work(GPU, lambda lane: there.mul_(2), [0]),
        Work(D2H, lambda lane: lane.copy_d2h(back, there), [1]),
        Work(CPU, lambda lane: seen.append(back.clone()), [2]),
        Work(CPU, lambda lane: source.zero_(), [0]),
    )
    assert torch.equal(seen[0], torch.arange(1000.0) * 2)
    assert machine.races.found == []


def test_a_lane_begins_after_what_was_set_up(late):
    device, machine = late
    there = torch.ones(100, device=device.torch_device)
    there += 1  # on the default stream
    made = []
    run(device, Work(GPU, lambda lane: made.append(there + 1)))
    assert made[0].tolist() == [3] * 100
    assert machine.races.found == []


def test_what_a_lane_made_is_there_when_it_has_ended(late):
    device, machine = late
    there, made, here = device.allocate("there", (100,), torch.float32), [], locked(device, "here", 100)
    run(
        device,
        Work(GPU, lambda lane: made.append(there.fill_(4) + 1)),
        Work(D2H, lambda lane: lane.copy_d2h(here, made[0]), [0]),
    )
    assert (here == 5).all()
    assert (made[0] + 1).tolist() == [6] * 100
    assert machine.races.found == []


@pytest.mark.parametrize("copies", [1, 3])
def test_what_a_copy_reads_stays_until_it_was_copied(late, copies):
    """A tensor of the GPU lane is let go of as soon as its copy is issued, and its memory asked for again."""
    device, machine = late
    made, copied = [], threading.Event()
    here = [locked(device, f"here {i}", 500) for i in range(copies)]

    def copy(lane):
        for target in here:
            lane.copy_d2h(target, made[0])
        copied.set()

    def reuse(lane):
        copied.wait(10)
        made.clear()
        gc.collect()
        made.append(torch.full((500,), 9.0, device=device.torch_device))

    make = lambda lane: made.append(torch.full((500,), 3.0, device=device.torch_device))  # noqa: E731
    run(device, Work(GPU, make), Work(D2H, copy, [0]), Work(GPU, reuse))
    assert all((one == 3).all() for one in here)
    assert machine.races.found == []


def test_what_a_lane_reorders_before_its_copy_stays_until_then(late):
    """A tensor with gaps is made dense by the copy lane, which reads it late; nobody else holds it by then."""
    device, machine = late
    buffers, here = Buffers(device), HostBlock(locked(device, "here", 500).view(torch.uint8), locked=True)
    made, copied, seen = [], threading.Event(), []

    def copy(lane):
        seen.append(buffers.to_host(lane, here, made.pop()))
        copied.set()

    def reuse(lane):
        copied.wait(10)
        gc.collect()
        made.append(torch.full((1000,), 9.0, device=device.torch_device))

    make = lambda lane: made.append(torch.full((1000,), 3.0, device=device.torch_device)[::2])  # noqa: E731
    run(device, Work(GPU, make), Work(D2H, copy, [0]), Work(GPU, reuse))
    assert (seen[0] == 3).all()
    assert machine.races.found == []


def test_memory_that_is_freed_is_nobodys_any_more(late):
    """Given back while a lane still reads it: the next tensor must not take its place before that."""
    device, machine = late
    first = device.allocate("first", (300,), torch.float32)
    first.fill_(3)
    here, copied, go_on = locked(device, "here", 300), threading.Event(), threading.Event()

    def copy(lane):
        lane.copy_d2h(here, first)
        copied.set()
        go_on.wait(10)

    worker = threading.Thread(target=run, args=(device, Work(D2H, copy)))
    worker.start()
    copied.wait(10)
    device.free(first)
    machine.memory.drop(first.data_ptr())  # as if this were the last reference to it
    second = device.allocate("second", (300,), torch.float32)
    second.fill_(9)
    machine.default_stream.run()
    go_on.set()
    worker.join()
    assert (here == 3).all()
    assert machine.races.found == []


def test_memory_is_unlocked_when_no_copy_uses_it_any_more(late):
    device, machine = late
    block = device.host_block(4096)
    device.lock("weights", block)
    there = device.allocate("there", (4096,), torch.uint8)
    with device.open_lane(H2D) as lane:
        lane.copy_h2d(there, block)
        device.unlock("weights", block)
        assert lane.stream.done == lane.stream.issued
    assert not machine.is_page_locked(block)


def test_copies_of_a_lane_do_not_pile_up():
    """What is on its way holds memory of the device: two copies of it, however slow the link."""
    device, machine = late_device("stores late")
    with device:
        device.reserve_pinned({EXCHANGE: 1 << 16})
        here, size = locked(device, "here", 1000), 4000
        works = [
            Work(D2H, lambda lane: lane.copy_d2h(here, torch.ones(1000, device=device.torch_device))) for _ in range(20)
        ]
        run(device, *works)
        assert machine.memory.peak_bytes == 2 * size


def test_a_lane_waits_for_the_copy_before_the_last_and_no_other():
    """The next copy is issued while one is under way, so that the link never rests."""
    device, _ = late_device()
    with device:
        device.reserve_pinned({EXCHANGE: 1 << 16})
        here, there, behind = locked(device, "here", 1000), device.allocate("t", (1000,), torch.float32), []

        def copy(lane):
            behind.append(lane.stream.issued - lane.stream.done)
            lane.copy_h2d(there, here)

        run(device, *(Work(H2D, copy) for _ in range(6)))
        assert min(behind[1:]) > 0


@pytest.mark.parametrize("order", ["gpu at once", "all late"])
def test_events_do_not_live_until_the_end(order):
    device, machine = late_device(order)
    with device:
        machine.tells_early = True
        most, before = [], len(machine.events)

        def compute(lane):
            torch.ones(1, device=device.torch_device)
            if order == "all late":
                lane.mark().wait()
            most.append(len(machine.events) - before)

        ran = run(device, *(Work(GPU, compute) for _ in range(60)))
        assert max(most) < 12
        assert len(ran) == 60
        times = [time for one in ran for time in (one.start.time_ns, one.end.time_ns)]
        assert times == sorted(times)


def test_a_mark_tells_its_time_when_it_is_reached(late):
    device, _ = late
    with device.open_lane(GPU) as lane:
        torch.ones(10, device=device.torch_device)
        first, second = lane.mark(), lane.mark()
        assert first.time_ns <= second.time_ns
        assert first.time_ns == first.time_ns
        lane.wait(first)
        first.wait()  # harmless, although its event is gone


def test_a_device_waits_for_all_its_lanes(late):
    device, _ = late
    with device.open_lane(GPU) as lane:
        torch.ones(10, device=device.torch_device)
        device.synchronize()
        assert lane.stream.done == lane.stream.issued


def test_a_lane_that_has_ended_keeps_nothing_alive(late):
    device, machine = late
    with device.open_lane(D2H) as lane:
        lane.copy_d2h(locked(device, "here", 9), torch.ones(9, device=device.torch_device))
        lane.mark()
        lane.copy_d2h(locked(device, "there", 9), torch.ones(9, device=device.torch_device))
    assert machine.memory.allocated_bytes == 0
    assert lane.kind == D2H


# what fails -----------------------------------------------------------------------------------------------------------


def fail():
    raise RuntimeError("a kernel failed")


def test_a_lane_whose_work_failed_says_so_and_leaves_its_thread_as_it_was():
    device, _ = late_device()
    with device:
        threads = torch.get_num_threads()
        with pytest.raises(RuntimeError, match="a kernel failed"), device.open_lane(GPU) as lane:
            lane.stream.put(fail)
        assert torch.get_num_threads() == threads
        assert not torch.is_inference_mode_enabled()


def test_a_device_whose_work_failed_says_so_and_closes_all_the_same():
    device, machine = late_device(memory_bytes=1 << 20)
    device.reserve_pinned({EXCHANGE: 1 << 16})
    device.allocate("there", (100,), torch.float32)
    machine.default_stream.put(fail)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        device.close()
    assert device.memory.usage.current_bytes == 0
    assert machine.page_locked == {}
    assert machine.memory.limit_bytes == machine.memory.total_bytes
    device.close()


def test_memory_that_cannot_be_locked_is_refused_in_one_line():
    device, machine = late_device()
    with device:
        machine.lockable_bytes = 5000
        with pytest.raises(PinnedOutOfMemory, match=r"8192 bytes.*page-locked \(Python error 2\)") as caught:
            device.lock("weights", device.host_block(8192))
        assert "\n" not in str(caught.value)
        assert device.pinned.usage.current_bytes == 0


# accounts -------------------------------------------------------------------------------------------------------------


def test_the_cap_holds_for_the_models_own_code_and_the_accounts_leave_room_for_libraries():
    device, _ = late_device(memory_bytes=10**9)
    with device:
        assert device.memory_bytes == 10**9 - 5 * 10**7 - 128 * 2**20
        with pytest.raises(DeviceOutOfMemory, match="device memory is full"), device.open_lane(GPU):
            torch.empty(10**9 + 1, dtype=torch.uint8, device=device.torch_device)
        torch.empty(device.memory_bytes + 10**7, dtype=torch.uint8, device=device.torch_device)
        with pytest.raises(DeviceOutOfMemory, match="tensor"):
            device.allocate("tensor", (device.memory_bytes + 1,), torch.uint8)
    small, _ = late_device(memory_bytes=10**6)
    with small:
        assert small.memory_bytes == 10**6 // 2


def test_a_peak_starts_anew_on_the_device_too():
    device, machine = late_device()
    with device:
        device.free(device.allocate("large", (10**6,), torch.uint8))
        machine.memory.alloc_retries = 3
        assert device.usage.peak_bytes == 10**6
        assert device.facts["alloc_retries"] == 3
        device.reset_peak()
        small = device.allocate("small", (100,), torch.uint8)
        assert device.usage.peak_bytes < 10**6
        assert device.facts["cap_bytes"] == 10**9
        assert device.facts["alloc_retries"] == 0
        assert device.facts["peak_reserved_bytes"] >= small.nbytes


@pytest.mark.parametrize(("memory_bytes", "match"), [(9 * 10**9, "give at most those"), (1, "at least 2 are needed")])
def test_memory_that_is_not_there_is_refused(memory_bytes, match):
    with pytest.raises(InputError, match=match):
        late_device(memory_bytes=memory_bytes)


# by name --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_accelerator(monkeypatch):
    """A machine whose accelerator is the asynchronous device."""
    monkeypatch.setattr("engine.device.accelerator.runtime_of", lambda name: AsyncRuntime())


def test_auto_is_the_accelerator_where_there_is_one(with_accelerator):
    with make_device("auto", memory_bytes=10**9, cpu_threads=1) as device:
        assert device.origin == "real GPU (asynchronous device of the tests)"
    with make_device("emulated", h2d_bytes_per_s=1e9) as device:
        assert device.origin == "emulated device"


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(
    "told", ["--h2d-gbs 5", "--d2h-gbs 5", "--gpu-threads 1", "--gpu-threads 1 --h2d-gbs 5"], ids=str
)
def test_a_real_device_cannot_be_told_what_only_an_emulated_one_can(with_accelerator, name, told):
    parser = argparse.ArgumentParser()
    add_device(parser)
    with pytest.raises(InputError, match="only an emulated device can be told, Python has its own") as caught:
        device_of(parser.parse_args(["--device", name, *told.split()]))
    assert all(flag in str(caught.value) for flag in told.split() if flag.startswith("--"))
    assert "\n" not in str(caught.value)


def test_a_buffer_that_cannot_grow_says_so_and_nothing_is_given_back_twice():
    device, _ = late_device(memory_bytes=10**6)
    with device, contextlib.closing(Buffers(device)) as buffers:
        buffers.on_device("cache", (1000,), torch.uint8)
        with pytest.raises(DeviceOutOfMemory, match="cache"):
            buffers.on_device("cache", (10**7,), torch.uint8)
    assert device.memory.usage.current_bytes == 0
