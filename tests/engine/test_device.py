"""Devices: memory that is counted, links that keep their pace, lanes that keep out of each other's way."""

import mmap
import os
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from engine.calibration.measure.probes import MemoryReader
from engine.device import (
    ALIGNMENT_BYTES,
    Accelerator,
    EmulatedDevice,
    Ledger,
    PinnedOutOfMemory,
    aligned_bytes,
    make_device,
)
from engine.device.accelerator import TorchRuntime
from engine.device.accelerator.clock import ANCHOR_EVERY_NS, WIDEST_WINDOW_NS, DeviceClock
from engine.device.emulated.link import rows_of
from engine.device.host_memory import FAULT_PIECE_BYTES, PageLocked
from engine.device.ledger import DeviceOutOfMemory, OutOfMemory
from engine.device.threads import BEHIND
from sim.schedule import LaneKind
from traces.errors import InputError

MB = 10**6
PART = "tests"


def device(memory_bytes=1000 * MB, h2d=None, d2h=None, **options):
    return EmulatedDevice(h2d, d2h, memory_bytes, **options)


# memory --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-60, 60)), max_size=40))
def test_a_ledger_counts_what_is_held_and_the_most_that_was(moves):
    ledger, held, peak = Ledger("memory", 100), dict.fromkeys("abc", 0), 0
    for name, change in moves:
        total = sum(held.values())
        if change >= 0 and total + change > 100:
            with pytest.raises(OutOfMemory):
                ledger.charge(name, change)
        elif change >= 0:
            ledger.charge(name, change)
            held[name] += change
        elif held[name] < -change:
            with pytest.raises(KeyError):
                ledger.refund(name, -change)
        else:
            ledger.refund(name, -change)
            held[name] += change
        peak = max(peak, sum(held.values()))
        assert ledger.usage.current_bytes == sum(held.values())
        assert {name: count for name, count in ledger.holders.items() if count} == {n: c for n, c in held.items() if c}
    assert ledger.usage.peak_bytes == peak


def test_a_ledger_counts_right_from_many_threads():
    ledger = Ledger("memory", None)

    def work(_):
        for _ in range(500):
            ledger.charge("x", 3)
            ledger.refund("x", 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert ledger.usage.current_bytes == 8 * 500


def test_exceeding_device_memory_names_the_tensor_its_bytes_what_is_left_and_the_plan():
    with device(1000) as dev:
        dev.memory.plan = "2 weight slots of 300 bytes"
        dev.allocate("weight slot 0", (300,), torch.uint8)
        with pytest.raises(DeviceOutOfMemory) as caught:
            dev.allocate("kv cache", (50, 4), torch.float32)
    for part in ("kv cache", "800", "700 of 1000", "2 weight slots of 300 bytes"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_freed_memory_can_be_had_again_and_the_peak_stays():
    with device(1000) as dev:
        first = dev.allocate("a", (200,), torch.float32)
        dev.free(first.view(2, 100))
        second = dev.allocate("b", (250,), torch.float32)  # kept, or what comes next could take its place
        assert (dev.usage.current_bytes, dev.usage.peak_bytes) == (1000, 1000)
        with pytest.raises(KeyError):
            dev.free(torch.zeros(3))
        dev.free(second)


def test_activations_count_while_they_live():
    with device(1000) as dev:
        with dev.memory.holding("activations", 700):
            assert dev.usage.current_bytes == 700
            with pytest.raises(DeviceOutOfMemory, match="activations of another"):
                dev.memory.charge("activations of another", 301)
        assert (dev.usage.current_bytes, dev.usage.peak_bytes) == (0, 700)


def test_placing_on_an_emulated_device_counts_but_does_not_copy():
    weights = torch.ones(100)
    with device(1000) as dev:
        placed = dev.place("weights", weights)
        assert placed.data_ptr() == weights.data_ptr()
        dev.place("tied weights", weights)
        assert dev.usage.current_bytes == 400
        dev.free(placed)
        assert dev.usage.current_bytes == 0
        with pytest.raises(DeviceOutOfMemory, match="too large"):
            dev.place("too large", torch.zeros(1000))


def test_closing_gives_everything_back_and_may_happen_twice():
    dev = device(1000)
    dev.allocate("a", (100,), torch.uint8)
    dev.reserve_pinned({PART: 256})
    dev.pinned_empty("b", (100,), torch.uint8, PART)
    dev.close()
    dev.close()
    assert dev.usage.current_bytes == dev.pinned.usage.current_bytes == 0


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from([torch.uint8, torch.float16, torch.float64])), max_size=9)
)
def test_pinned_tensors_share_one_block_of_the_planned_size(requests):
    planned = sum(aligned_bytes(count * dtype.itemsize) for count, dtype in requests)
    with device() as dev:
        dev.reserve_pinned({PART: planned})
        tensors = [dev.pinned_empty(f"t{i}", (count,), dtype, PART) for i, (count, dtype) in enumerate(requests)]
        for i, tensor in enumerate(tensors):
            tensor.fill_(i)
        for i, (tensor, (count, dtype)) in enumerate(zip(tensors, requests, strict=True)):
            assert tensor.dtype == dtype
            assert tensor.shape == (count,)
            assert (tensor == i).all()
            assert tensor.numel() == 0 or tensor.data_ptr() % ALIGNMENT_BYTES == tensors[0].data_ptr() % ALIGNMENT_BYTES
        assert dev.pinned.usage.peak_bytes == planned
        with pytest.raises(PinnedOutOfMemory, match="one more"):
            dev.pinned_empty("one more", (1,), torch.uint8, PART)


def test_pinned_memory_that_was_not_planned_is_refused():
    with device() as dev, pytest.raises(PinnedOutOfMemory, match="staging"):
        dev.pinned_empty("staging", (1,), torch.uint8, PART)


def test_one_part_of_pinned_memory_cannot_take_what_another_was_promised():
    with device() as dev:
        dev.reserve_pinned({"prefill": 128, "decode": 100})
        taken = dev.pinned_empty("kv", (128,), torch.uint8, "prefill")
        with pytest.raises(PinnedOutOfMemory, match="query"):
            dev.pinned_empty("query", (1,), torch.uint8, "prefill")
        promised = dev.pinned_empty("query", (100,), torch.uint8, "decode")
        taken.fill_(1)
        promised.fill_(2)
        assert (taken == 1).all()
        assert dev.pinned.holders == {"kv": 128, "query": 128}
        dev.reserve_pinned({})
        assert not dev.pinned.holders


@pytest.mark.parametrize("num_bytes", [0, 1, 5000, 3 * FAULT_PIECE_BYTES + 5])
def test_a_host_block_is_zeroed_bytes_on_pages_of_its_own(num_bytes):
    with device() as dev:
        block = dev.host_block(num_bytes)
    assert (block.dtype, block.shape) == (torch.uint8, (num_bytes,))
    assert not block.any()
    assert num_bytes == 0 or block.data_ptr() % mmap.PAGESIZE == 0
    block.fill_(7)  # and they may be written


class Driver:
    """Page-locks what it is asked to, up to a number of pieces."""

    def __init__(self, most=1000):
        self.locked, self.most = {}, most

    def register(self, address, num_bytes):
        if len(self.locked) == self.most:
            raise PinnedOutOfMemory("no more")
        self.locked[address] = num_bytes

    def page_locked(self):
        return PageLocked(self.register, self.locked.pop)


def test_memory_is_locked_in_place_in_pieces_and_counted(monkeypatch):
    monkeypatch.setattr("engine.device.host_memory.LARGEST_PIECE_BYTES", 4096)
    driver, block = Driver(), torch.zeros(10_000, dtype=torch.uint8)
    memory, first = driver.page_locked(), block.data_ptr()
    memory.lock("weights", block[:9000])
    assert driver.locked == {first: 4096, first + 4096: 4096, first + 8192: 808}
    assert memory.ledger.holders == {"weights": 9000}
    for wrong in (("weights", block), ("others", block[:9000]), ("weights", block[1:])):
        with pytest.raises(KeyError):
            memory.unlock(*wrong)
    memory.unlock("weights", block[:9000])
    assert not driver.locked
    assert not memory.ledger.holders


def test_memory_that_cannot_be_locked_whole_is_not_locked_at_all(monkeypatch):
    monkeypatch.setattr("engine.device.host_memory.LARGEST_PIECE_BYTES", 4096)
    driver = Driver(most=2)
    memory = driver.page_locked()
    with pytest.raises(PinnedOutOfMemory, match="no more"):
        memory.lock("weights", torch.zeros(9000, dtype=torch.uint8))
    with pytest.raises(PinnedOutOfMemory, match="no more"):
        memory.reserve({"weights": 9000})
    assert not driver.locked
    assert not memory.ledger.holders
    memory.lock("fewer", torch.zeros(5000, dtype=torch.uint8))


def test_closing_unlocks_everything_and_locked_memory_stays_alive_until_then():
    driver = Driver()
    memory = driver.page_locked()
    block = torch.zeros(100, dtype=torch.uint8)
    memory.lock("weights", block)
    memory.reserve({"exchange": 64})
    gone = weakref.ref(block)
    del block
    assert gone() is not None, "a driver must not hold addresses of memory that is gone"
    memory.close()
    memory.close()
    assert not driver.locked
    assert gone() is None


def test_pinned_memory_counts_on_a_device_and_has_its_limit():
    with device() as dev:
        block = dev.host_block(3000)
        dev.pinned.capacity_bytes = 4000
        dev.lock("weights", block)
        with pytest.raises(PinnedOutOfMemory, match="more weights"):
            dev.lock("more weights", dev.host_block(1001))
        assert dev.pinned.usage.current_bytes == 3000
        dev.unlock("weights", block)
        dev.lock("more weights", block)
    assert dev.pinned.usage.current_bytes == 0


# the link ------------------------------------------------------------------------------------------------------------


def copies(dev, direction, num_bytes, times=1, pinned=True):
    """How long each copy took, in seconds."""
    src, dst = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    took_s = []
    with dev.open_lane(LaneKind(direction)) as lane:
        for _ in range(times):
            start = lane.mark()
            (lane.copy_h2d if direction == "H2D" else lane.copy_d2h)(dst, src, pinned=pinned)
            took_s.append((lane.mark().time_ns - start.time_ns) / 1e9)
    assert torch.equal(dst, src)
    return took_s


@pytest.mark.parametrize("num_bytes", [1, 100_000, 5 * MB, 20 * MB])
@pytest.mark.parametrize(
    ("direction", "pinned", "rate"),
    [("H2D", True, 2e9), ("H2D", False, 1e9), ("D2H", True, 1.5e9), ("D2H", False, 0.5e9)],
)
def test_no_transfer_is_faster_than_the_link(direction, pinned, rate, num_bytes):
    dev = device(h2d=2e9, d2h=1.5e9, h2d_pageable_bytes_per_s=1e9, d2h_pageable_bytes_per_s=0.5e9)
    assert min(copies(dev, direction, num_bytes, 3, pinned)) >= num_bytes / rate


def test_transfers_take_the_time_that_the_link_needs():
    """How exactly, `benchmarks/pacing.py` shows: here others may hold the processor."""
    dev = device(h2d=1e9)
    assert min(copies(dev, "H2D", 20 * MB, 20)) < 1.5 * 0.02


def test_a_copy_that_is_slower_than_the_link_is_not_hidden():
    dev = device(h2d=1e15)
    assert copies(dev, "H2D", 20 * MB)[0] > 20 * MB / 100e9  # no memory is that fast


def test_both_directions_run_at_once():
    """A transfer that begins while the other direction has one under way ends before that one."""
    dev = device(h2d=2e7)  # 1 s
    src, dst = torch.ones(20 * MB, dtype=torch.uint8), torch.zeros(20 * MB, dtype=torch.uint8)
    ended = []

    def there():
        with dev.open_lane(LaneKind.H2D) as lane:
            lane.copy_h2d(dst, src)
        ended.append("there")

    thread = threading.Thread(target=there)
    thread.start()
    while not dst[0] and thread.is_alive():
        time.sleep(1e-3)
    copies(dev, "D2H", MB)
    ended.append("back")
    thread.join()
    assert ended == ["back", "there"]


def test_one_direction_carries_one_transfer_at_a_time():
    dev = device(h2d=1e8)
    start_s = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: copies(dev, "H2D", 3 * MB), range(2)))
    assert time.perf_counter() - start_s >= 0.06


def test_bytes_arrive_evenly():
    dev = device(h2d=2e7)
    src, dst = torch.ones(10 * MB, dtype=torch.uint8), torch.zeros(10 * MB, dtype=torch.uint8)
    seen = []

    def watch(stop):
        while not stop.is_set():
            arrived = int(dst[::1000].sum()) * 1000
            seen.append((time.perf_counter(), arrived))
            time.sleep(0.002)

    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop,))
    with dev.open_lane(LaneKind.H2D) as lane:
        watcher.start()
        start_s = time.perf_counter()
        lane.copy_h2d(dst, src)
        stop.set()
        watcher.join()
    during = [(at - start_s, arrived) for at, arrived in seen if 0 < arrived < 10 * MB]
    assert len(during) > 3
    assert all(arrived <= after_s * 2e7 + 0.3 * MB for after_s, arrived in during)  # a piece, and a look that took long


@pytest.mark.parametrize("rate", [None, 1e7])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(300, 700),
        lambda: torch.randn(30, 70, 100).transpose(0, 2),
        lambda: torch.randn(3, 70_000)[:, ::2],
        lambda: torch.randn(1, 1, 200_000).expand(2, 1, 200_000),
        lambda: torch.randn(4, 2, 64, 48)[:, :, 3:50],
        lambda: torch.randn(3, 2, 2, 2, 5, 40)[:, :, :1, :, 1:, :16],
        lambda: torch.tensor(3.5),
        lambda: torch.empty(0, 4),
        lambda: torch.arange(70_000, dtype=torch.int16).view(torch.bfloat16),
    ],
)
def test_every_layout_arrives(make, rate):
    src = make()
    if rate:
        rate *= src.nbytes / 20_000 + 1  # some pieces, a few milliseconds
    reverse = range(src.dim() - 1, -1, -1)
    for order in (range(src.dim()), reverse):  # laid out as the shape says, and the other way round
        dst = torch.empty([src.shape[i] for i in order], dtype=src.dtype).permute(tuple(order))
        with device(h2d=rate).open_lane(LaneKind.H2D) as lane:
            lane.copy_h2d(dst, src)
        found, wanted = (t.contiguous().view(-1).view(torch.uint8) for t in (dst, src))
        assert torch.equal(found, wanted)


def test_a_copy_is_taken_as_the_rows_that_lie_together_on_both_sides():
    cache = torch.zeros(4, 2, 64, 48)
    part = cache[:, :, :50]
    assert rows_of(torch.zeros(4, 2, 50, 48), part) == ((1, 1, 8), (0, 0, 9600), (0, 0, 12288), 9600)
    assert rows_of(cache, torch.zeros(4, 2, 64, 48)) == ((1, 1, 1), (0, 0, 0), (0, 0, 0), cache.nbytes)
    assert rows_of(torch.zeros(3, 5), torch.zeros(3, 10)[:, ::2]) is None
    assert rows_of(torch.zeros(2, 2, 2, 2, 3), torch.zeros(3, 3, 3, 3, 4)[:2, :2, :2, :2, :3]) is None


def test_a_paced_copy_lets_other_threads_run_python():
    """A copy of 0.4 s does not hold the interpreter's lock: another thread counts meanwhile."""
    dev, counted = device(h2d=5e7), 0
    done = threading.Event()

    def copy():
        copies(dev, "H2D", 20 * MB)
        done.set()

    thread = threading.Thread(target=copy)
    thread.start()
    while not done.is_set():
        counted += 1
        time.sleep(1e-4)
    thread.join()
    assert counted > 2


@pytest.mark.parametrize("dst", [torch.empty(3), torch.empty(2, dtype=torch.float64)])
def test_copies_convert_and_broadcast_nothing(dst):
    with device().open_lane(LaneKind.H2D) as lane, pytest.raises(ValueError, match="cannot be copied"):
        lane.copy_h2d(dst, torch.empty(2))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"h2d": 0.0}, "h2d bandwidth"),
        ({"d2h": -1.0}, "d2h bandwidth"),
        ({"h2d_pageable_bytes_per_s": float("nan")}, "h2d pageable bandwidth"),
        ({"memory_bytes": 0}, "device memory"),
        ({"gpu_threads": 0}, "gpu_threads"),
        ({"cpu_threads": -1}, "cpu_threads"),
    ],
)
def test_an_impossible_device_is_refused_by_name(options, name):
    with pytest.raises(InputError, match=name):
        device(**options)


# lanes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell")
def test_the_device_and_the_other_lanes_have_cores_of_their_own():
    before = os.sched_getaffinity(0)
    for dev in (device(), device(gpu_threads=len(before))):
        seen = {}
        for kind in (LaneKind.GPU, LaneKind.CPU, LaneKind.H2D):
            with dev.open_lane(kind):
                seen[kind] = os.sched_getaffinity(0)
        assert os.sched_getaffinity(0) == before
        if dev.gpu_threads == len(before):
            assert dev.cores.apart is None
            assert set(map(frozenset, seen.values())) == {frozenset(before)}
        else:
            assert len(seen[LaneKind.GPU]) == dev.gpu_threads
            assert seen[LaneKind.CPU] == seen[LaneKind.H2D] == before - seen[LaneKind.GPU]


def test_lanes_keep_their_thread_counts_whatever_the_others_set():
    dev = device(gpu_threads=3, cpu_threads=2)
    wanted = {LaneKind.GPU: 3, LaneKind.CPU: 1, LaneKind.H2D: 1, LaneKind.D2H: 1, LaneKind.PIN: 1}
    all_entered = threading.Barrier(len(wanted))

    def work(kind):
        with dev.open_lane(kind):
            all_entered.wait(10)
            torch.ones(100, 100) @ torch.ones(100, 100)  # a thread's first work must not change its count
            return torch.get_num_threads()

    before = torch.get_num_threads()
    with ThreadPoolExecutor(len(wanted)) as pool:
        assert dict(zip(wanted, pool.map(work, wanted), strict=True)) == wanted
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before
    assert torch.get_num_threads() == before


def test_a_lane_computes_without_gradients_and_leaves_others_alone():
    with device().open_lane(LaneKind.GPU):
        assert torch.is_inference_mode_enabled()
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(torch.is_inference_mode_enabled).result()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no niceness of a thread's own")
@pytest.mark.parametrize("kind", [LaneKind.GPU, LaneKind.CPU, LaneKind.H2D, LaneKind.D2H, LaneKind.PIN])
@pytest.mark.parametrize("apart", [True, False])
def test_lanes_that_compute_on_the_cores_of_copies_let_them_go_first(kind, apart):
    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def inside():
        with dev.open_lane(kind):
            return niceness() - usual

    dev, usual = device(), niceness()
    if not apart:
        dev.cores = replace(dev.cores, apart=None)
    elif dev.cores.apart is None:
        pytest.skip("too few cores")
    with ThreadPoolExecutor(1) as pool:
        expected = BEHIND if kind in ("CPU", "PIN") or (kind == "GPU" and not apart) else 0
        assert pool.submit(inside).result() == expected
    assert inside() == 0, "the main thread may not come back"


def test_a_lane_that_fails_leaves_its_thread_as_it_was():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), device(gpu_threads=before + 1).open_lane(LaneKind.GPU):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


def test_marks_tell_the_host_time_at_which_they_were_made():
    dev = device()
    with dev.open_lane(LaneKind.GPU) as gpu, dev.open_lane(LaneKind.CPU) as cpu:
        before_ns = time.perf_counter_ns()
        mark = gpu.mark()
        after_ns = time.perf_counter_ns()
        cpu.wait(mark)
    assert before_ns <= mark.time_ns <= after_ns


@pytest.mark.parametrize("threads", [1, 3])
def test_a_memory_reader_reads_its_whole_block(threads):
    with MemoryReader(threads, 4_000_003) as reader:
        assert 4_000_003 <= reader.read() < 4_000_003 + 4
        assert 1e6 < reader.bytes_per_s() < 1e13


@pytest.mark.parametrize(("threads", "num_bytes", "name"), [(0, 100, "threads"), (1, 0, "num_bytes")])
def test_a_memory_reader_of_nothing_is_refused(threads, num_bytes, name):
    with pytest.raises(InputError, match=name):
        MemoryReader(threads, num_bytes)


# the clock of a CUDA device ------------------------------------------------------------------------------------------


class Gpu:
    """A device whose clock has an origin and a rate of its own and tells differences in 32-bit milliseconds."""

    def __init__(self, drift=0.0, latency_ns=4000, busy_ns=0):
        self.host_ns, self.drift, self.latency_ns, self.busy_ns = 10**12, drift, latency_ns, busy_ns

    def record(self):
        self.host_ns += self.latency_ns + self.busy_ns
        return Happened(777 + self.host_ns * (1 + self.drift), self)

    def clock(self):
        return DeviceClock(self.record, lambda: self.host_ns)


class Happened:
    def __init__(self, device_ns, gpu):
        self.device_ns, self.gpu = device_ns, gpu

    def synchronize(self):
        self.gpu.host_ns += self.gpu.latency_ns

    def elapsed_time(self, end):
        return float(np.float32((end.device_ns - self.device_ns) / 1e6))


@pytest.mark.parametrize("drift", [0.0, 50e-6, -50e-6])
def test_device_events_are_told_in_host_time_over_a_long_run(drift):
    gpu = Gpu(drift)
    clock = gpu.clock()
    events = []
    for _ in range(300):  # a minute
        gpu.host_ns += 200_000_000
        anchor = clock.tick()
        event = gpu.record()
        events.append((event, anchor, gpu.host_ns))
    told_ns = [clock.host_ns(event, anchor) for event, anchor, _ in events]
    assert max(abs(told - true) for told, (_, _, true) in zip(told_ns, events, strict=True)) < 10_000
    assert told_ns == sorted(told_ns)


def test_an_event_soon_after_the_first_anchor_is_told_at_once():
    gpu = Gpu()
    clock = gpu.clock()
    gpu.host_ns += 3_000_000
    assert clock.host_ns(gpu.record(), clock.tick()) == pytest.approx(gpu.host_ns, abs=5000)


def test_anchors_close_together_do_not_invent_a_drift():
    gpu = Gpu()
    clock = gpu.clock()
    for _ in range(5):
        gpu.latency_ns = 20_000  # an anchor that is 20 µs off, next to one that is not
        clock.tick(at_once=True)
        gpu.latency_ns = 4000
        clock.tick(at_once=True)
    gpu.host_ns += 4_000_000_000
    assert clock.host_ns(gpu.record(), clock.tick()) == pytest.approx(gpu.host_ns, abs=25_000)


def test_a_busy_device_gives_no_anchor():
    gpu = Gpu(drift=20e-6)
    clock = gpu.clock()
    gpu.host_ns += ANCHOR_EVERY_NS + 1
    gpu.busy_ns = WIDEST_WINDOW_NS
    assert clock.tick() == 0
    gpu.busy_ns = 0
    assert clock.tick() == 1
    assert clock.tick() == 1  # young enough


# a real CUDA device --------------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_an_input_error():
    with pytest.raises(InputError, match="cuda:0 is not there"):
        Accelerator()


@pytest.mark.parametrize(("name", "missing"), [("mps", "streams, a default stream"), ("nothing", "streams, events")])
def test_an_accelerator_that_lacks_something_is_refused_in_one_line_that_names_it(name, missing):
    with pytest.raises(InputError, match=f"lacks for {name}: {missing}.*page-locking") as caught:
        TorchRuntime(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_accelerator_that_torch_has_but_the_engine_cannot_use_is_refused_by_auto(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    with pytest.raises(InputError, match="lacks for mps"):
        make_device("auto")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with make_device("auto", memory_bytes=1000) as dev:
        assert dev.name == "emulated"


@needs_cuda
def test_cuda_copies_both_ways_and_orders_lanes():
    with Accelerator(memory_bytes=1000 * MB) as dev:
        dev.reserve_pinned({PART: 80 * MB})
        src = dev.pinned_empty("source", (10 * MB,), torch.float32, PART)
        back = dev.pinned_empty("target", (10 * MB,), torch.float32, PART)
        assert src.is_pinned()
        src.copy_(torch.arange(10 * MB))
        on_device = dev.allocate("tensor", (10 * MB,), torch.float32)
        with dev.open_lane(LaneKind.H2D) as h2d:
            start = h2d.mark()
            h2d.copy_h2d(on_device, src)
            loaded = h2d.mark()
        with dev.open_lane(LaneKind.GPU) as gpu:
            gpu.wait(loaded)
            on_device.mul_(2)
            doubled = gpu.mark()
        with dev.open_lane(LaneKind.D2H) as d2h:
            d2h.wait(doubled)
            d2h.copy_d2h(back, on_device)
            stored = d2h.mark()
        with dev.open_lane(LaneKind.CPU) as cpu:
            cpu.wait(stored)
            assert torch.equal(back, src * 2)
        assert start.time_ns < loaded.time_ns < doubled.time_ns < stored.time_ns


@needs_cuda
def test_cuda_times_lie_between_looks_at_the_host_clock():
    with Accelerator(memory_bytes=1000 * MB) as dev, dev.open_lane(LaneKind.GPU) as gpu:
        for _ in range(20):
            before_ns = time.perf_counter_ns()
            mark = gpu.mark()
            mark.wait()
            after_ns = time.perf_counter_ns()
            assert before_ns - 30_000 <= mark.time_ns <= after_ns + 30_000


@needs_cuda
def test_cuda_pageable_copies_arrive():
    with Accelerator(memory_bytes=1000 * MB) as dev:
        on_device, src = dev.allocate("tensor", (1000, 1000), torch.float32), torch.randn(1000, 1000)
        back = torch.empty(1000, 1000)
        with dev.open_lane(LaneKind.H2D) as lane:
            lane.copy_h2d(on_device, src.T, pinned=False)
            lane.copy_d2h(back.T, on_device, pinned=False)
            lane.mark().wait()
        assert torch.equal(back, src)


@needs_cuda
def test_cuda_memory_is_limited_for_the_models_own_code_too():
    with Accelerator(memory_bytes=400 * MB) as dev:
        with pytest.raises(DeviceOutOfMemory), dev.open_lane(LaneKind.GPU):
            torch.empty(500 * MB, dtype=torch.uint8, device=dev.torch_device)
        with pytest.raises(DeviceOutOfMemory, match="tensor"):
            dev.allocate("tensor", (500 * MB,), torch.uint8)
        tensor = dev.allocate("tensor", (50 * MB,), torch.uint8)
        assert 50 * MB <= dev.usage.current_bytes < 60 * MB
        dev.free(tensor)
    torch.empty(500 * MB, dtype=torch.uint8, device=dev.torch_device)
