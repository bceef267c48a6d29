"""Any schedule over several devices: equal work on each rank, two sums a (layer, micro-batch), nothing out of order."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, strategies as st
from schedule_rules import EVERY, Order, assert_no_race, examples, random_durations, shapes, simulate

from sim.schedule import (
    CPU,
    GPU,
    LANE_OF,
    NET,
    Lane,
    LaneKind,
    Op,
    PipelineShape,
    Place,
    Task,
    by_name,
    layout_of,
    over_ranks,
)
from sim.schedule.slots import Accesses
from sim.simulation import task_ends

every_schedule = pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.name)
SPLIT = {Op.OUT_PROJ, Op.EXPERTS, Op.ALL_REDUCE}
FIRST_SUM, SECOND_SUM = 0, 1
SUMS_BEHIND = {
    Op.POST_ATTN: (FIRST_SUM, SECOND_SUM),
    Op.ROUTE: (FIRST_SUM,),
    Op.DEVICE_EXPERTS: (SECOND_SUM,),
}


def flat(steps):
    return [task for step in steps for task in step]


@st.composite
def ranked(draw, schedule):
    """(shape, ranks, tasks of one device, tasks of all ranks) of any pipeline, from the start or from the middle."""
    shape = draw(shapes(schedule, 3, 4, 4))
    ranks, first = draw(st.integers(2, 4)), draw(st.sampled_from((0, 0, 1, 5)))
    stop = first + draw(st.integers(1, 4))
    one = flat(schedule.steps(shape, first, stop))
    return shape, ranks, one, flat(over_ranks(schedule.steps(shape, first, stop), ranks))


def place(task):
    """What a task is, without saying on which rank."""
    return task.op, task.lane.kind, task.step, task.layer, task.micro_batch, task.page


def turn(task):
    return task.step, task.layer, task.micro_batch


# by hand -----------------------------------------------------------------------------------------------------------


def test_post_attn_becomes_projection_sum_experts_sum_and_later_work_waits_for_the_last():
    steps = [[Task(0, Op.ATTN, CPU, 1, 0, 0), Task(1, Op.POST_ATTN, GPU, 1, 0, 0, deps=(0,)), Task(2, Op.HEAD, GPU, 1)]]
    tasks = flat(over_ranks(steps, 2))
    (attn_0, attn_1, proj_0, proj_1, first, experts_0, experts_1, second, head_0, head_1) = (task.id for task in tasks)
    assert [(task.op, str(task.lane), task.deps) for task in tasks] == [
        (Op.ATTN, "CPU", ()),
        (Op.ATTN, "CPU:1", ()),
        (Op.OUT_PROJ, "GPU", (attn_0,)),
        (Op.OUT_PROJ, "GPU:1", (attn_1,)),
        (Op.ALL_REDUCE, "NET", (proj_0, proj_1)),
        (Op.EXPERTS, "GPU", (first,)),
        (Op.EXPERTS, "GPU:1", (first,)),
        (Op.ALL_REDUCE, "NET", (experts_0, experts_1)),
        (Op.HEAD, "GPU", (second,)),
        (Op.HEAD, "GPU:1", (second,)),
    ]
    assert [head_0, head_1] == sorted({head_0, head_1})


def test_a_copy_that_waits_for_post_attn_waits_for_its_last_sum():
    store = Task(1, Op.STORE_HIDDEN, LANE_OF[Op.STORE_HIDDEN], 0, 0, 0, deps=(0,))
    tasks = flat(over_ranks([[Task(0, Op.POST_ATTN, GPU, 0, 0, 0), store]], 3))
    sums = [task.id for task in tasks if task.lane == NET]
    assert [task.deps for task in tasks if task.op is Op.STORE_HIDDEN] == [(sums[1],)] * 3


def test_a_copy_two_steps_later_still_waits_for_the_sum():
    steps = [[Task(0, Op.POST_ATTN, GPU, 0, 0, 0)], [Task(1, Op.HEAD, GPU, 1)]]
    steps.append([Task(2, Op.LOAD_WEIGHTS, LANE_OF[Op.LOAD_WEIGHTS], 2, 0, deps=(0,))])
    tasks = flat(over_ranks(steps, 2))
    last_sum = [task.id for task in tasks if task.lane == NET][-1]
    assert [task.deps for task in tasks if task.op is Op.LOAD_WEIGHTS] == [(last_sum,)] * 2


# any schedule ------------------------------------------------------------------------------------------------------


@every_schedule
def test_one_rank_changes_nothing(schedule):
    shape = PipelineShape(2, 2, 1, Place.GPU if Place.GPU in schedule.system.attention else Place.CPU, (True, True))
    steps = list(schedule.steps(shape, 0, 4))
    assert list(over_ranks(steps, 1)) == steps


@every_schedule
@examples(6)
@given(data=st.data())
def test_ids_are_unique_and_rise_and_no_name_is_used_twice(schedule, data):
    _, _, _, tasks = data.draw(ranked(schedule))
    ids = [task.id for task in tasks]
    assert ids == sorted(set(ids))
    assert all(dep < task.id and (dep < 0 or dep in set(ids)) for task in tasks for dep in task.deps)
    assert max(Counter(task.key for task in tasks).values()) == 1


@every_schedule
@examples(6)
@given(data=st.data())
def test_ranks_do_the_same_in_the_same_order_and_wait_for_their_own_or_for_sums(schedule, data):
    _, ranks, one, tasks = data.draw(ranked(schedule))
    by_id = {task.id: task for task in tasks}
    lists = defaultdict(list)
    for task in tasks:
        if task.lane != NET:
            deps = [by_id[dep] for dep in task.deps if dep >= 0]
            assert all(dep.lane == NET or dep.lane.rank == task.lane.rank for dep in deps)
            lists[task.lane.rank].append((place(task), sorted(map(place, deps)), sum(dep < 0 for dep in task.deps)))
    assert sorted(lists) == list(range(ranks))
    assert all(lists[rank] == lists[0] for rank in lists)
    split = {Op.OUT_PROJ: [], Op.EXPERTS: [Op.POST_ATTN]}  # Route keeps its name behind the sum
    whole = [op for task, _, _ in lists[0] for op in split.get(task[0], [task[0]])]
    assert whole == [task.op for task in one]


@every_schedule
@examples(6)
@given(data=st.data())
def test_each_layer_and_micro_batch_is_summed_twice_between_experts_and_what_follows(schedule, data):
    _, ranks, one, tasks = data.draw(ranked(schedule))
    sums = [task for task in tasks if task.op is Op.ALL_REDUCE]
    assert all(task.lane == NET for task in sums)
    expected = [(turn(task), which) for task in one for which in SUMS_BEHIND.get(task.op, ())]
    assert [(turn(task), task.page) for task in sums] == expected
    order = Order(tasks)
    done = {(turn(task), task.page): task for task in sums}
    newest = None  # the sum that all later compute waits for
    for task in tasks:
        if task.op is Op.OUT_PROJ:
            assert order.before(task, done[turn(task), FIRST_SUM])
        if task.op is Op.ROUTE:
            assert order.before(done[turn(task), FIRST_SUM], task)
        if task.op in (Op.EXPERTS, Op.DEVICE_EXPERTS):
            assert order.before(done[turn(task), FIRST_SUM], task)
            assert order.before(task, done[turn(task), SECOND_SUM])
        elif task.lane.kind is LaneKind.GPU and newest is not None:
            assert order.before(newest, task), f"{task} does not wait for {newest}"
        if task.op is Op.ALL_REDUCE and task.page == SECOND_SUM:
            newest = task
    apart = {task.lane.rank for task in tasks if task.op in (Op.EXPERTS, Op.ROUTE)}
    assert apart == (set(range(ranks)) if expected else set()), "layers on the host are computed once"


@every_schedule
@examples(8)
@given(data=st.data(), ranks=st.integers(2, 3), num_steps=st.integers(1, 4))
def test_nothing_races_on_any_rank(schedule, data, ranks, num_steps):
    """Each rank has buffers of its own; both halves of PostAttn read what it reads, the last sum writes.

    So do both halves of Route, of which the second writes, and the sum behind the experts of a group.
    """
    shape = data.draw(shapes(schedule, 3, 4, 4))
    tasks = flat(over_ranks(schedule.steps(shape, 0, num_steps), ranks))

    def accesses(task):
        apart = shape.splits_experts(task.step) and task.layer >= 0 and shape.experts[task.layer]
        if task.op is Op.DEVICE_EXPERTS:
            return on_rank(Accesses(layout_of(schedule, shape).accesses(task).reads), task.lane.rank)
        if task.op not in SPLIT:
            return on_rank(layout_of(schedule, shape).accesses(task), task.lane.rank)
        whole = (Op.DEVICE_EXPERTS if task.page == SECOND_SUM else Op.ROUTE) if apart else Op.POST_ATTN
        reads, writes = layout_of(schedule, shape).accesses(task._replace(op=whole, page=-1))
        if task.op is not Op.ALL_REDUCE:
            return on_rank(Accesses(reads), task.lane.rank)
        of_all = [on_rank(Accesses((), writes), rank).writes for rank in range(ranks)]
        return Accesses((), sum(of_all, ()) if task.page == SECOND_SUM else ())

    assert_no_race(tasks, accesses, Order(tasks))


def on_rank(accesses, rank):
    return Accesses(*(tuple(one._replace(buffer=(rank, one.buffer)) for one in some) for some in accesses))


@every_schedule
@examples(6)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_all_ranks_run_to_the_end_as_the_recurrence_says(schedule, data, seed):
    shape, ranks, steps = data.draw(shapes(schedule, 3, 3, 3)), data.draw(st.integers(2, 4)), 3
    tasks = flat(over_ranks(schedule.steps(shape, 0, steps), ranks))
    durations = random_durations(tasks, seed)
    ran = simulate(over_ranks(schedule.steps(shape, 0, steps), ranks), durations)
    assert {one.task.id: one.end_ns for one in ran} == task_ends(tasks, lambda task: durations[task.id])


def test_equal_ranks_take_the_time_of_one_and_the_sums():
    """Symmetry, end to end: the same durations on each rank, sums of no time, and the makespan of one device."""
    schedule, shape = by_name("cgopipe"), PipelineShape(3, 4, 4, Place.CPU, (True,) * 3)
    length = {op: 7 + 3 * number for number, op in enumerate(Op)}

    def makespan(steps, of):
        return max(task_ends(flat(steps), of).values())

    def half(task):
        whole = length[Op.POST_ATTN]
        return {Op.OUT_PROJ: 10, Op.EXPERTS: whole - 10, Op.ALL_REDUCE: 0}.get(task.op, length[task.op])

    alone = makespan(schedule.steps(shape, 0, 4), lambda task: length[task.op])
    assert makespan(over_ranks(schedule.steps(shape, 0, 4), 4), half) == alone


def test_lanes_of_ranks_are_told_apart():
    assert [str(Lane(LaneKind.GPU, rank)) for rank in range(3)] == ["GPU", "GPU:1", "GPU:2"]
