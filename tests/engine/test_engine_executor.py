"""The executor: lanes in order of issue, dependencies and nothing else; a failure stops all and hangs nothing."""

import threading
import time

import pytest

from engine.device import EmulatedDevice
from engine.device.base import HostMark
from engine.lanes import Executor
from engine.lanes.executor import TaskError
from engine.lanes.task_queue import TaskQueue
from sim.schedule import CPU, GPU, H2D, DeadlockError, Op, PipelineShape, Task, by_name, registered
from traces.errors import InputError


@pytest.fixture
def device():
    with EmulatedDevice(None, None, 1 << 20) as made:
        yield made


def shape_for(schedule, layers=3, micro_batches=4, pages=3):
    return PipelineShape(
        layers,
        micro_batches,
        pages if schedule.system.paged else 1,
        schedule.system.attention[0],
        (True,) * layers,
        schedule.system.streams_non_experts,
        not schedule.system.kv_on_device,
        schedule.system.offloads_hidden,
    )


def lanes_of(tasks):
    return list(dict.fromkeys(task.lane for task in tasks))


@pytest.mark.parametrize("name", registered())
def test_lanes_work_in_order_of_issue_and_wait_for_dependencies(device, name):
    schedule = by_name(name)
    shape = shape_for(schedule)
    tasks = list(schedule.tasks(shape, 5))
    ended, too_early, lock = set(), [], threading.Lock()

    def perform(lane, task):
        with lock:
            too_early.extend(dep for dep in task.deps if dep not in ended)
        time.sleep(0)
        with lock:
            ended.add(task.id)
        return 0

    ran = Executor(device, schedule.steps(shape, 0, 5), lanes_of(tasks), perform).run()
    assert not too_early
    for lane in lanes_of(tasks):
        assert [one.task for one in ran if one.task.lane == lane] == [task for task in tasks if task.lane == lane]


def test_lanes_overlap_where_dependencies_allow(device):
    meet = threading.Barrier(2, timeout=10)
    tasks = [Task(0, Op.POST_ATTN, GPU, 0), Task(1, Op.LOAD_WEIGHTS, H2D, 0)]
    assert len(Executor(device, [tasks], [GPU, H2D], lambda lane, task: meet.wait()).run()) == 2


def test_steps_are_issued_only_a_little_ahead(device):
    issued = []

    def steps():
        for step in range(50):
            issued.append(step)
            yield [Task(step, Op.HEAD, GPU, step)]

    lead = []

    def perform(lane, task):
        time.sleep(1e-3)  # time for lanes without work to run ahead
        lead.append(len(issued) - task.step)
        return 0

    Executor(device, steps(), [GPU, H2D, CPU], perform).run()
    assert len(issued) == 50
    assert max(lead) <= 4


def test_a_dependency_on_a_task_long_ended_is_met(device):
    steps = [[Task(step, Op.HEAD, GPU, step)] for step in range(20)]
    steps.append([Task(20, Op.HEAD, GPU, 20), Task(21, Op.LOAD_WEIGHTS, H2D, 20, deps=(0, 20))])
    assert len(Executor(device, steps, [GPU, H2D], lambda lane, task: 0).run()) == 22


@pytest.mark.parametrize("name", registered())
@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), KeyboardInterrupt()])
def test_a_failing_task_stops_the_run_with_its_name_and_error(device, name, error):
    schedule = by_name(name)
    shape = shape_for(schedule)
    tasks = list(schedule.tasks(shape, 4))
    victim = tasks[len(tasks) // 2]

    def perform(lane, task):
        if task.id == victim.id:
            raise error
        return 0

    before = threading.active_count()
    with pytest.raises(TaskError) as caught:
        Executor(device, schedule.steps(shape, 0, 4), lanes_of(tasks), perform).run()
    assert caught.value.__cause__ is error
    assert f"task {victim.op} (step {victim.step}" in str(caught.value)
    assert threading.active_count() == before


def test_an_input_error_comes_out_as_it_is_and_names_the_task(device):
    def perform(lane, task):
        raise InputError("no room")

    with pytest.raises(InputError, match="no room") as caught:
        Executor(device, [[Task(0, Op.HEAD, GPU, 0, micro_batch=2)]], [GPU], perform).run()
    assert caught.value.__notes__ == ["in task Head (step 0, micro-batch 2) on lane GPU"]


def test_a_schedule_that_fails_to_issue_stops_the_run(device):
    def steps():
        yield [Task(0, Op.HEAD, GPU, 0)]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Executor(device, steps(), [GPU, H2D], lambda lane, task: 0).run()


def test_nothing_more_is_done_once_all_is_finished(device):
    done = []

    def perform(lane, task):
        done.append(task.id)
        return 0

    steps = [[Task(step, Op.HEAD, GPU, step)] for step in range(100)]
    Executor(device, steps, [GPU, H2D], perform, finished=lambda: len(done) == 10).run()
    assert done == list(range(10))


def test_each_lane_is_told_when_its_thread_ends(device):
    ended = []
    Executor(
        device,
        [[Task(0, Op.HEAD, GPU, 0)]],
        [GPU, H2D],
        lambda lane, task: 0,
        on_thread_end=lambda lane: ended.append((lane, threading.current_thread().name)),
    ).run()
    assert sorted(ended) == [(GPU, "GPU"), (H2D, "H2D")]


def test_tasks_that_wait_for_each_other_are_an_error_and_no_hang(device):
    tasks = [Task(0, Op.POST_ATTN, GPU, 0, deps=(1,)), Task(1, Op.LOAD_WEIGHTS, H2D, 0, deps=(0,))]
    with pytest.raises(DeadlockError, match="wait for each other"):
        Executor(device, [tasks], [GPU, H2D], lambda lane, task: 0).run()


def test_a_task_that_waits_for_one_never_issued_is_an_error_and_no_hang(device):
    steps = [[Task(step, Op.HEAD, GPU, step)] for step in range(3)]
    steps.append([Task(3, Op.LOAD_WEIGHTS, H2D, 3, deps=(77,))])
    with pytest.raises(DeadlockError, match="wait for each other"):
        Executor(device, steps, [GPU, H2D, CPU], lambda lane, task: 0).run()


def test_a_lane_that_does_not_sleep_is_at_work_from_one_task_to_the_next(device):
    """What a thread does between two tasks belongs to the second; a lane that slept starts when it is awake."""
    held = threading.Event()

    def perform(lane, task):
        if task.id == 2:
            assert held.wait(10)
        if task.id == 1:
            held.set()
        return 0

    tasks = [
        Task(0, Op.PRE_ATTN, GPU, 0),
        Task(1, Op.POST_ATTN, GPU, 0),
        Task(2, Op.LOAD_WEIGHTS, H2D, 0),
        Task(3, Op.HEAD, GPU, 0, deps=(2,)),
    ]
    ran = {one.task.id: one for one in Executor(device, [tasks], [GPU, H2D], perform).run()}
    assert ran[1].start.time_ns == ran[0].end.time_ns
    assert ran[3].start.time_ns >= ran[2].end.time_ns > ran[1].start.time_ns


def test_the_queue_says_which_lane_had_to_sleep():
    tasks = [Task(0, Op.PRE_ATTN, GPU, 0), Task(1, Op.HEAD, GPU, 0, deps=(2,)), Task(2, Op.LOAD_KV, H2D, 0)]
    queue = TaskQueue([tasks], [GPU, H2D])
    slept, on_gpu, on_link = {}, queue.tasks(GPU), queue.tasks(H2D)
    first, copy = next(on_gpu), next(on_link)
    slept |= {0: first.slept, 2: copy.slept}
    queue.ended(first.task, HostMark())

    def compute():
        slept[1] = next(on_gpu).slept

    thread = threading.Thread(target=compute)
    thread.start()
    while GPU in queue.at_work:
        time.sleep(1e-4)
    queue.ended(copy.task, HostMark())
    thread.join()
    assert slept == {0: False, 1: True, 2: False}


@pytest.mark.parametrize("name", registered())
def test_no_task_starts_before_its_dependencies_have_ended(device, name):
    schedule = by_name(name)
    tasks = list(schedule.tasks(shape_for(schedule), 5))
    ran = Executor(device, schedule.steps(shape_for(schedule), 0, 5), lanes_of(tasks), lambda lane, task: 0).run()
    ends = {one.task.id: one.end.time_ns for one in ran}
    for one in ran:
        assert one.start.time_ns >= max((ends[dep] for dep in one.task.deps), default=0)


class TellingDevice(EmulatedDevice):
    """A device whose lanes say in words what an error of the work on them means."""

    def open_lane(self, kind):
        lane = super().open_lane(kind)
        close = lane.__exit__

        class Telling(type(lane)):
            def __exit__(self, kind=None, error=None, *trace):
                close()
                if isinstance(error, MemoryError):
                    raise InputError("the device is full") from error

        lane.__class__ = Telling
        return lane


def test_what_a_lane_says_of_an_error_is_what_the_caller_hears():
    def perform(lane, task):
        raise MemoryError("out of memory")

    with TellingDevice(None, None, 1 << 20) as device, pytest.raises(InputError, match="the device is full"):
        Executor(device, [[Task(0, Op.PRE_ATTN, GPU, 0, 0, 0)]], [GPU], perform).run()


def test_another_lanes_error_does_not_hide_the_first(device):
    begun, failed = threading.Event(), threading.Event()

    def perform(lane, task):
        if task.lane == GPU:
            begun.wait(10)
            failed.set()
            raise RuntimeError("the first")
        begun.set()
        failed.wait(10)
        time.sleep(0.05)  # until the first is noted
        raise InputError("the second")

    tasks = [Task(0, Op.PRE_ATTN, GPU, 0, 0, 0), Task(1, Op.LOAD_HIDDEN, H2D, 0, 0, 0)]
    with pytest.raises(TaskError, match="the first"):
        Executor(device, [tasks], [GPU, H2D], perform).run()
