"""Any schedule, any shape: nothing races, everything is computed once, weights arrive once, steps have no end."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st
from schedule_rules import (
    EVERY,
    Backwards,
    Order,
    all_arithmetic,
    arithmetic,
    assert_buffers_suffice,
    assert_data_flows,
    assert_no_race,
    assert_weights_arrive_once,
    assert_well_formed,
    examples,
    shapes,
    touched,
)

from sim.schedule import (
    CPU,
    D2H,
    GPU,
    H2D,
    WHOLE,
    Op,
    PipelineShape,
    Place,
    Task,
    issue_steps,
    layout_of,
    registry,
    steady_step,
)
from sim.schedule.task import PIN
from traces.errors import InputError

every_schedule = pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.name)
STEPS = st.integers(1, 6)


def shape_of(schedule, num_layers=3, n=2, pages=2, **other):
    """The pipeline as the schedule usually has it."""
    usual = {
        "attention": schedule.system.attention[0],
        "streamed": (True,) * num_layers,
        "streams_non_experts": schedule.system.streams_non_experts,
        "streams_kv": not schedule.system.kv_on_device,
        "offloads_hidden": schedule.system.offloads_hidden and n > 1,
    }
    return PipelineShape(num_layers, n, pages if schedule.system.paged else 1, **{**usual, **other})


def assert_safe(schedule, shape, tasks, first, stop, memory=None):
    order = Order(tasks)
    memory = assert_no_race(tasks, lambda task: layout_of(schedule, shape).accesses(task), order, memory)
    assert_data_flows(tasks, shape, order, first, stop)
    assert_buffers_suffice(tasks, schedule, shape, order)
    return memory


# whole generations -------------------------------------------------------------------------------------------


@every_schedule
@examples(15)
@given(data=st.data(), num_steps=STEPS)
def test_every_read_finds_what_was_written_for_it_and_nothing_races(schedule, data, num_steps):
    shape = data.draw(shapes(schedule))
    tasks = list(schedule.tasks(shape, num_steps))
    assert_well_formed(tasks)
    assert_safe(schedule, shape, tasks, 0, num_steps)


@every_schedule
@pytest.mark.parametrize("streamed", list(itertools.product((True, False), repeat=3)), ids=str)
def test_nothing_races_where_few_layers_stream(schedule, streamed):
    """With an odd number of layers a layer's weight slot alternates: its last use lies two steps back."""
    for n, pinned, attention in itertools.product((1, 2), (True, False), schedule.system.attention):
        shape = shape_of(schedule, 3, n, attention=attention, streamed=streamed, weights_pinned=pinned)
        assert_safe(schedule, shape, list(schedule.tasks(shape, 6)), 0, 6)


@every_schedule
@examples(15)
@given(data=st.data(), num_steps=STEPS)
def test_all_is_computed_once_and_all_streamed_weights_arrive_once_a_step(schedule, data, num_steps):
    shape = data.draw(shapes(schedule))
    tasks = list(schedule.tasks(shape, num_steps))
    assert arithmetic(tasks) == all_arithmetic(shape, 0, num_steps)
    assert_weights_arrive_once(tasks, shape, 0, num_steps - 1)


def test_all_schedules_do_the_same_arithmetic():
    done = [arithmetic(schedule.tasks(shape_of(schedule, 3, 4, 5), 4)) for schedule in EVERY]
    assert done[0].total() == 4 * 4 * (3 * 3 + 1)
    assert all(one == done[0] for one in done)


# windows and steps without end ---------------------------------------------------------------------------------


@every_schedule
@examples(10)
@given(data=st.data(), num_steps=STEPS)
def test_copied_steps_are_those_of_the_schedule_itself(schedule, data, num_steps):
    shape = data.draw(shapes(schedule))
    stop = data.draw(st.integers(0, num_steps))
    slow = list(issue_steps(schedule, shape, 0, stop, num_steps - 1))
    assert list(schedule.steps(shape, 0, stop, last=num_steps - 1)) == slow
    if stop == num_steps:
        assert list(schedule.steps(shape, 0, stop)) == slow
        assert list(schedule.tasks(shape, stop)) == [task for step in slow for task in step]


@every_schedule
@examples(12)
@given(data=st.data(), first=st.integers(1, 7), length=st.integers(1, 3), left=st.integers(0, 2))
def test_a_window_in_the_middle_goes_on_where_earlier_steps_left_memory(schedule, data, first, length, left):
    shape = data.draw(shapes(schedule, max_layers=4, max_micro_batches=4, max_pages=6))
    stop, last = first + length, first + length - 1 + left
    steps = list(schedule.steps(shape, first, stop, last=last))
    tasks = [task for step in steps for task in step]
    assert tasks[0].id == 0
    assert_well_formed(tasks, window_is_cut=True)
    whole = list(issue_steps(schedule, shape, 0, stop, last))
    earlier = [task for step in whole[:first] for task in step]
    memory = assert_no_race(earlier, lambda task: layout_of(schedule, shape).accesses(task), Order(earlier))
    assert_safe(schedule, shape, tasks, first, stop, memory)
    assert arithmetic(tasks) == all_arithmetic(shape, first, stop)
    assert_weights_arrive_once(tasks, shape, first, last)
    if first >= steady_step(schedule, shape):
        assert tasks == [_moved(task, len(earlier)) for step in whole[first:] for task in step]


def _moved(task, by):
    return task._replace(id=task.id - by, deps=tuple(dep - by for dep in task.deps))


@every_schedule
def test_the_same_question_has_the_same_answer(schedule):
    shape = shape_of(schedule)
    assert list(schedule.tasks(shape, 4)) == list(schedule.tasks(shape, 4))
    assert list(schedule.steps(shape, 3, 6, last=9)) == list(schedule.steps(shape, 3, 6, last=9))


@every_schedule
def test_a_billion_steps_are_begun_at_once(schedule):
    shape, billion = shape_of(schedule), 10**9
    assert next(schedule.tasks(shape, billion)).step == 0
    steps = schedule.steps(shape, billion // 2, billion)
    assert [{task.step for task in next(steps) if task.op is Op.HEAD} for _ in range(3)] == [
        {billion // 2}, {billion // 2 + 1}, {billion // 2 + 2}
    ]  # fmt: skip


@every_schedule
def test_only_the_last_step_fetches_nothing_for_a_next_one(schedule):
    shape = shape_of(schedule)
    ahead = [any(task.step > step for task in tasks) for step, tasks in enumerate(schedule.steps(shape, 0, 5))]
    fetches = schedule.name not in ("accelerate", "flexgen-c")
    assert ahead == [fetches] * 4 + [False]
    assert [any(t.step > step for t in tasks) for step, tasks in enumerate(schedule.steps(shape, 0, 5, last=9))] == [
        fetches
    ] * 5


# what tasks touch ------------------------------------------------------------------------------------------------

TINY = PipelineShape(2, 2, 2, Place.CPU, (True, True))
ON_GPU = PipelineShape(3, 2, 2, Place.GPU, (True, False, True), streams_non_experts=True)
RESIDENT_KV = PipelineShape(2, 1, 1, Place.GPU, (True, True), streams_kv=False, offloads_hidden=False)
PINNED = PipelineShape(2, 2, 2, Place.CPU, (True, True), weights_pinned=True)


@pytest.mark.parametrize(
    ("shape", "task", "reads", "writes"),
    [
        # cpu attention, decode step 1: layer 1 is the third run of a layer (0-based), so its weights are in slot 1
        (TINY, (Op.PRE_ATTN, GPU, 1, 1, 0), {("hidden", 0): (1, 1)}, {("qkv", 0): (1, 1)}),
        (TINY, (Op.OFFLOAD_QKV, D2H, 1, 1, 0), {("qkv", 0): (1, 1)}, {("qkv on host", 0): (1, 1)}),
        (
            TINY,
            (Op.ATTN, CPU, 2, 1, 0),
            {("qkv on host", 0): (2, 1), ("kv", 2): (1,)},
            {("kv", 2): (2,), ("attention on host", 0): (2, 1)},
        ),
        (TINY, (Op.LOAD_HIDDEN, H2D, 1, 1, 0), {("attention on host", 0): (1, 1)}, {("attention", 0): (1, 1)}),
        (
            TINY,
            (Op.POST_ATTN, GPU, 1, 1, 0),
            {
                ("attention", 0): (1, 1),
                ("hidden", 0): (1, 1),
                ("weights", 2): (3,),
                ("weights", 3): (3,),
            },
            {("hidden", 0): (1, 2)},
        ),
        (TINY, (Op.HEAD, GPU, 1, -1, 1), {("hidden", 1): (1, 2)}, {("hidden", 1): (2, 0)}),
        # weights: one page, or all of them; from staging, from page-locked and from pageable memory
        (TINY, (Op.PIN_WEIGHTS, PIN, 1, 1, -1, 1), {}, {("pinned", 1): (3,)}),
        (TINY, (Op.LOAD_WEIGHTS, H2D, 1, 1, -1, 1), {("pinned", 1): (3,)}, {("weights", 3): (3,)}),
        (PINNED, (Op.LOAD_WEIGHTS, H2D, 1, 1, -1, 1), {}, {("weights", 3): (3,)}),
        (
            TINY,
            (Op.LOAD_WEIGHTS_PAGEABLE, H2D, 1, 0, -1, WHOLE),
            {},
            {("weights", 0): (2,), ("weights", 1): (2,)},
        ),
        # prefill: embeds, computes in one of two buffers, keeps the cache, and moves hidden states by way of the host
        (TINY, (Op.PRE_ATTN, GPU, 0, 0, 1), {}, {("activation", 1): (0, 0, 1), ("qkv", 1): (0, 0)}),
        (TINY, (Op.ATTN, GPU, 0, 0, 1), {("qkv", 1): (0, 0)}, {("attention", 1): (0, 0), ("new kv", 1): (0, 0, 1)}),
        (TINY, (Op.STORE_KV, D2H, 0, 0, 1), {("new kv", 1): (0, 0, 1)}, {("kv", 1): (0,)}),
        (TINY, (Op.STORE_HIDDEN, D2H, 0, 0, 1), {("activation", 1): (0, 1, 1)}, {("hidden on host", 1): (1,)}),
        (TINY, (Op.LOAD_HIDDEN, H2D, 0, 1, 1), {("hidden on host", 1): (1,)}, {("activation", 1): (0, 1, 1)}),
        (TINY, (Op.HEAD, GPU, 0, -1, 1), {("activation", 1): (0, 2, 1)}, {("hidden", 1): (1, 0)}),
        # gpu attention with the cache on the host: comes in one of two buffers; layer 1 has no streamed weights
        (
            ON_GPU,
            (Op.PRE_ATTN, GPU, 1, 0, 0),
            {("hidden", 0): (1, 0), ("weights", 2): (3,), ("weights", 3): (3,)},
            {("qkv", 0): (1, 0)},
        ),
        (ON_GPU, (Op.LOAD_KV, H2D, 1, 0, 1), {("kv", 1): (0,)}, {("kv on device", 1): (1, 0, 1)}),
        (
            ON_GPU,
            (Op.ATTN, GPU, 1, 0, 1),
            {("qkv", 1): (1, 0), ("kv on device", 1): (1, 0, 1), ("resident kv", 1): (0,)},
            {
                ("attention", 1): (1, 0),
                ("new kv", 1): (1, 0, 1),
                ("resident kv", 1): (1,),
                ("joined kv", 0): (1, 0, 1),
            },
        ),
        (
            ON_GPU,
            (Op.POST_ATTN, GPU, 1, 1, 0),
            {("attention", 0): (1, 1), ("hidden", 0): (1, 1)},
            {("hidden", 0): (1, 2)},
        ),
        # gpu attention with the cache on the device
        (
            RESIDENT_KV,
            (Op.ATTN, GPU, 2, 1, 0),
            {("qkv", 0): (2, 1), ("kv", 1): (1,)},
            {("attention", 0): (2, 1), ("kv", 1): (2,)},
        ),
        (RESIDENT_KV, (Op.PRE_ATTN, GPU, 0, 0, 0), {}, {("hidden", 0): (0, 0), ("qkv", 0): (0, 0)}),
    ],
)  # fmt: skip
def test_a_task_touches(shape, task, reads, writes):
    found = layout_of(registry.by_name("cgopipe"), shape).accesses(Task(0, *task))
    assert sorted(touched(found.reads)) == sorted(reads.items())
    assert sorted(touched(found.writes)) == sorted(writes.items())


def test_fastdecode_stages_two_layers():
    task = Task(0, Op.PIN_WEIGHTS, PIN, 1, 1, -1, WHOLE)
    shape = PipelineShape(2, 2, 1, Place.CPU, (True, True))
    assert touched(layout_of(registry.by_name("fastdecode"), shape).accesses(task).writes) == [(("pinned", 1), (3,))]


# shapes and names ------------------------------------------------------------------------------------------------


@examples(50)
@given(num_pages=st.integers(1, 40), n=st.integers(1, 20))
def test_page_groups_hold_each_page_once_and_differ_by_one_at_most(num_pages, n):
    shape = PipelineShape(1, n, num_pages, Place.CPU, (True,), offloads_hidden=False)
    groups = [list(shape.page_group(j)) for j in range(n)]
    assert list(itertools.chain(*groups)) == list(range(num_pages))
    assert {len(group) for group in groups} <= {num_pages // n, -(-num_pages // n)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 0, "streamed": ()}, "num_layers: 0"),
        ({"num_micro_batches": 0}, "num_micro_batches: 0"),
        ({"num_pages": -1}, "num_pages: -1"),
        ({"streamed": (True,)}, "1 entries for 2 layers"),
        ({"streams_kv": False}, "attention on the cpu"),
        ({"num_micro_batches": 1}, "offloads_hidden"),
    ],
)
def test_an_impossible_shape_is_refused(fields, message):
    usual = {"num_layers": 2, "num_micro_batches": 2, "num_pages": 2, "attention": Place.CPU, "streamed": (True, True)}
    with pytest.raises(InputError, match=message):
        PipelineShape(**{**usual, **fields})


def test_schedules_are_known_by_name():
    assert {"cgopipe", "fastdecode", "flexgen", "flexgen-c", "zero", "accelerate"} <= set(registry.registered())
    for name, schedule in registry.registered().items():
        assert registry.by_name(name) is schedule
        assert schedule.name == name
    with pytest.raises(InputError, match=r"(?s)'flexgem'.*flexgen"):
        registry.by_name("flexgem")


@pytest.fixture
def installed(monkeypatch):
    """Installs a package that adds one schedule."""

    def install(name, found):
        entry = SimpleNamespace(name=name, load=lambda: found)
        monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "cgopipe.schedules" else [])
        registry.registered.cache_clear()

    yield install
    registry.registered.cache_clear()


def test_an_installed_package_adds_a_schedule(installed):
    installed("backwards", Backwards)
    assert isinstance(registry.by_name("backwards"), Backwards)


@pytest.mark.parametrize("found", [Backwards(), dict, "backwards"], ids=["instance", "other class", "text"])
def test_an_installed_thing_that_is_no_schedule_is_refused(installed, found):
    installed("broken", found)
    with pytest.raises(InputError, match="broken is not a Schedule class"):
        registry.registered()
