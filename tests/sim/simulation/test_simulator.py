"""The simulator against its law, the recurrence, and what it reports: causes, waits, steps, memory, deadlocks."""

import gc
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, strategies as st
from schedule_rules import (
    EVERY,
    FIVE_LANES,
    HAND_OVERS,
    contended,
    examples,
    random_durations,
    shapes,
    simulate,
    task,
    task_lists,
)

from sim.cost import Cost
from sim.schedule import CPU, D2H, GPU, H2D, DeadlockError, Lane, LaneKind, Op, PipelineShape, Place, by_name
from sim.schedule.task import PIN
from sim.simulation import Simulation, in_turn, task_ends

every_schedule = pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.name)
AMPLE = 10**12


def ends(tasks, durations, hand_over_ns=0):
    """End of each task of one step by id."""
    return {one.task.id: one.end_ns for one in simulate([tasks], durations, hand_over_ns=hand_over_ns)}


# the recurrence ----------------------------------------------------------------------------------------------------


def law(tasks, durations, hand_over_ns=0):
    """The recurrence, written down again: a task starts when its lane is free and its dependencies have ended.

    Those of other lanes have to have ended a hand-over ago.
    """
    ended, free, by_id = {}, {}, {one.id: one for one in tasks}
    for one in tasks:
        start = free.get(one.lane, 0)
        for dep in one.deps:
            if dep in ended:
                start = max(start, ended[dep] if by_id[dep].lane == one.lane else ended[dep] + hand_over_ns)
        ended[one.id] = free[one.lane] = start + durations[one.id]
    return ended


def test_the_recurrence_by_hand():
    """GPU 0-5; the link works 0-3 and waits for the GPU, then 5-9; the CPU waits for it, 9-10; the GPU goes on at 5."""
    tasks = [task(0, GPU), task(1, H2D), task(2, H2D, 0), task(3, CPU, 1, 2), task(4, GPU, 1), task(5, PIN, -3)]
    durations = {0: 5, 1: 3, 2: 4, 3: 1, 4: 2, 5: 6}
    by_hand = {0: 5, 1: 3, 2: 9, 3: 10, 4: 7, 5: 6}
    assert task_ends(tasks, lambda one: durations[one.id]) == by_hand
    assert ends(tasks, durations) == by_hand


@every_schedule
@examples(12)
@given(data=st.data(), seed=st.integers(0, 2**32), num_steps=st.integers(1, 6), first=st.sampled_from((0, 0, 0, 1, 4)))
def test_without_sharing_every_task_ends_when_the_recurrence_says(schedule, data, seed, num_steps, first):
    """No schedule deadlocks, no task waits for more than its lane and its dependencies."""
    shape = data.draw(shapes(schedule))
    tasks = [one for step in schedule.steps(shape, first, first + num_steps) for one in step]
    durations = random_durations(tasks, seed)
    ran = simulate(schedule.steps(shape, first, first + num_steps), durations)
    expected = law(tasks, durations)
    assert {one.task.id: one.end_ns for one in ran} == expected
    assert all(one.end_ns - one.start_ns == durations[one.task.id] for one in ran)
    assert task_ends(tasks, lambda one: durations[one.id]) == expected


@every_schedule
@examples(12)
@given(data=st.data(), seed=st.integers(0, 2**32), num_steps=st.integers(1, 6), hand_over_ns=HAND_OVERS)
def test_other_lanes_start_a_hand_over_later(schedule, data, seed, num_steps, hand_over_ns):
    shape, first = data.draw(shapes(schedule)), data.draw(st.sampled_from((0, 0, 3)))
    tasks = [one for step in schedule.steps(shape, first, first + num_steps) for one in step]
    durations = random_durations(tasks, seed)
    ran = simulate(schedule.steps(shape, first, first + num_steps), durations, hand_over_ns=hand_over_ns)
    expected = law(tasks, durations, hand_over_ns)
    assert {one.task.id: one.end_ns for one in ran} == expected
    assert all(one.end_ns - one.start_ns == durations[one.task.id] for one in ran)
    assert task_ends(tasks, lambda one: durations[one.id], hand_over_ns) == expected


@examples(75)
@given(given=task_lists(), hand_over_ns=HAND_OVERS)
def test_any_tasks_on_any_ranks_end_when_the_law_says(given, hand_over_ns):
    steps, durations = given
    tasks = [one for step in steps for one in step]
    expected = law(tasks, durations, hand_over_ns)
    assert {one.task.id: one.end_ns for one in simulate(steps, durations, (), hand_over_ns)} == expected
    assert task_ends(tasks, lambda one: durations[one.id], hand_over_ns) == expected


@examples(25)
@given(given=task_lists())
def test_the_law_is_the_same_for_arrays(given):
    """Two rows at once: durations as they are, and thrice as long."""
    steps, durations = given
    tasks = [one for step in steps for one in step]
    rows = np.array([1, 3])
    turns = in_turn(tasks, lambda one, ready: ready + rows * durations[one.id], np.zeros(1), latest=np.maximum)
    once, thrice = law(tasks, durations), law(tasks, {id_: 3 * ns for id_, ns in durations.items()})
    assert {turn.task.id: turn.end.tolist() for turn in turns} == {id_: [once[id_], thrice[id_]] for id_ in once}


@examples(25)
@given(given=task_lists(), hand_over_ns=HAND_OVERS)
def test_the_law_says_what_a_task_waited_for_last(given, hand_over_ns):
    """Of its lane's task before and its dependencies the one that counts latest, at which the task is ready."""
    steps, durations = given
    tasks = [one for step in steps for one in step]
    delay = lambda before, after: hand_over_ns * (before.lane != after.lane)  # noqa: E731
    ends, before = law(tasks, durations, hand_over_ns), {}
    for turn in in_turn(tasks, lambda one, ready: ready + durations[one.id], 0, delay=delay):
        one, last = turn.task, turn.last
        waits = [before[one.lane]] if one.lane in before else []
        waits += [tasks[dep] for dep in one.deps if dep >= 0]
        counts = {other.id: ends[other.id] + delay(other, one) for other in waits}
        assert turn.ready == turn.end - durations[one.id] == max(counts.values(), default=0)
        assert last is None if not counts else counts[last.id] == turn.ready
        before[one.lane] = one


def test_a_hand_over_by_hand():
    """The copy ends at 5, is heard of at 15 and waited for; the second of 6 at 16; the GPU's own end at once."""
    tasks = [task(0, H2D), task(1, GPU, 0), task(2, H2D), task(3, GPU, 2, 1), task(4, GPU, 1, 3), task(5, CPU, 4, -1)]
    durations = {0: 5, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    by_hand = {0: 5, 1: 15, 2: 6, 3: 18, 4: 21, 5: 35}
    assert ends(tasks, durations, 10) == by_hand
    assert task_ends(tasks, lambda one: durations[one.id], 10) == by_hand
    assert ends(tasks, durations) == {0: 5, 1: 5, 2: 6, 3: 8, 4: 11, 5: 15}


@pytest.mark.parametrize("hand_over_ns", [0, 1, 1000])
def test_a_lane_needs_no_time_to_know_of_its_own_tasks(hand_over_ns):
    """Also while the news of them is under way to somebody else, who had asked before or asks then."""
    chain = [task(0, GPU), *(task(number, GPU, *range(number)) for number in range(1, 20))]
    assert max(ends(chain, dict.fromkeys(range(20), 7), hand_over_ns).values()) == 140
    beside = [*chain, task(20, CPU, 3), task(21, CPU, 19, 20)]
    found = ends(beside, dict.fromkeys(range(22), 7), hand_over_ns)
    assert found[19] == 140
    assert found[20] == 28 + hand_over_ns + 7
    assert found[21] == 140 + hand_over_ns + 7


def test_a_task_may_be_heard_of_by_several_lanes_at_several_times():
    """H2D asks before the GPU's task ends, D2H while the news is under way, PIN when it has long arrived."""
    tasks = [task(0, GPU), task(1, H2D, 0), task(2, D2H), task(3, D2H, 0), task(4, PIN), task(5, PIN, 0), task(6, CPU)]
    durations = {0: 10, 1: 1, 2: 15, 3: 1, 4: 30, 5: 1, 6: 100}
    assert ends(tasks, durations, 10) == {0: 10, 1: 21, 2: 15, 3: 21, 4: 30, 5: 31, 6: 100}


@every_schedule
@examples(10)
@given(data=st.data(), seed=st.integers(0, 2**32), times=st.lists(st.integers(0, 500), min_size=2, max_size=5))
def test_the_longer_the_hand_over_the_longer_the_run(schedule, data, seed, times):
    shape = data.draw(shapes(schedule, 4, 4))
    durations = random_durations(list(schedule.tasks(shape, 3)), seed)
    cost = lambda one: Cost(durations[one.id])  # noqa: E731
    spans = [
        Simulation(schedule.steps(shape, 0, 3), cost, hand_over_ns=time).run().makespan_ns for time in sorted(times)
    ]
    assert spans == sorted(spans)


@every_schedule
@pytest.mark.parametrize("slow", list(Op)[:12], ids=str)
@pytest.mark.parametrize("streamed", [(True,), (False, True, False)], ids=str)
def test_a_lane_may_run_ahead_as_far_as_buffers_let_it(schedule, slow, streamed):
    """One op takes long and the others next to nothing, so that lanes drift apart by whole steps."""
    for attention in schedule.system.attention:
        for streams_kv in {attention is Place.CPU, not schedule.system.kv_on_device}:
            shape = PipelineShape(
                len(streamed), 1, 1, attention, streamed, schedule.system.streams_non_experts, streams_kv, False
            )
            tasks = list(schedule.tasks(shape, 12))
            durations = {one.id: 100 if one.op is slow else int(one.lane == PIN) for one in tasks}
            ran = simulate(schedule.steps(shape, 0, 12), durations)
            assert {one.task.id: one.end_ns for one in ran} == law(tasks, durations)


@every_schedule
@examples(10)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_pools_that_suffice_change_nothing(schedule, data, seed):
    shape = data.draw(shapes(schedule, 4, 4))
    tasks = list(schedule.tasks(shape, 3))
    durations = random_durations(tasks, seed)
    lanes = sorted({one.lane for one in tasks})
    costs = {one.id: Cost(durations[one.id], ((0, 10), (1 + lanes.index(one.lane) % 2, 7))) for one in tasks}
    ran = simulate(schedule.steps(shape, 0, 3), costs, (10 * len(lanes), 7 * len(lanes), AMPLE))
    assert {one.task.id: one.end_ns for one in ran} == law(tasks, durations)


def test_two_stages_take_the_longer_for_all_but_one_and_both_for_the_last():
    for copy, compute in ((7, 3), (3, 7), (5, 5), (4, 0)):
        n = 20
        tasks = [one for i in range(n) for one in (task(2 * i, H2D), task(2 * i + 1, GPU, 2 * i))]
        found = ends(tasks, {one.id: copy if one.lane == H2D else compute for one in tasks})
        assert max(found.values()) == (n - 1) * max(copy, compute) + copy + compute


# what is reported --------------------------------------------------------------------------------------------------


@every_schedule
@examples(8)
@given(data=st.data(), share=st.booleans(), num_steps=st.integers(1, 5), hand_over_ns=HAND_OVERS)
def test_a_cause_is_what_ended_when_the_task_started(schedule, data, share, num_steps, hand_over_ns):
    shape = data.draw(shapes(schedule, 3, 4, 4))
    tasks = list(schedule.tasks(shape, num_steps))
    costs, capacities = data.draw(contended(tasks))
    costs = costs if share else without_pools(costs)
    ran = simulate(schedule.steps(shape, 0, num_steps), costs, capacities, hand_over_ns)
    by_id = {one.task.id: one for one in ran}
    before = {}
    for one in ran:
        last = before.get(one.task.lane)
        before[one.task.lane] = one
        if one.cause == -1:
            assert (one.start_ns, one.waited_for, last) == (0, "", None)
            continue
        cause = by_id[one.cause]
        assert cause.end_ns + hand_over_ns * (cause.task.lane != one.task.lane) == one.start_ns
        if one.waited_for:
            assert one.cause in one.task.deps
            assert one.waited_for == cause.task.op
        else:
            assert cause is last


def without_pools(costs):
    return {id_: Cost(cost.duration_ns) for id_, cost in costs.items()}


@every_schedule
@examples(8)
@given(data=st.data(), share=st.booleans(), num_steps=st.integers(1, 5), hand_over_ns=HAND_OVERS)
def test_lanes_and_steps_add_up(schedule, data, share, num_steps, hand_over_ns):
    """Busy and waited fill a lane from 0 to its last end; steps add up to the whole and end with their last token."""
    shape = data.draw(shapes(schedule, 3, 4, 4))
    costs, capacities = data.draw(contended(list(schedule.tasks(shape, num_steps))))
    costs = costs if share else without_pools(costs)
    ran, uses = [], []
    simulation = Simulation(
        schedule.steps(shape, 0, num_steps),
        lambda one: costs[one.id],
        capacities,
        on_task=ran.append,
        on_step=uses.append,
        hand_over_ns=hand_over_ns,
    )
    result = simulation.run()
    assert result.makespan_ns == max(one.end_ns for one in ran)
    assert result.num_tasks == len(ran) == sum(use.num_tasks for use in uses)
    assert len(uses) == num_steps
    for lane, use in result.lanes.items():
        own = [one for one in ran if one.task.lane == lane]
        assert use.busy_ns == sum(one.end_ns - one.start_ns for one in own)
        assert use.busy_ns + sum(use.waited_ns.values()) == max(one.end_ns for one in own)
        assert use.busy_ns == sum(step.lanes[lane].busy_ns for step in uses if lane in step.lanes)
        waited = sum((Counter(step.lanes[lane].waited_ns) for step in uses if lane in step.lanes), Counter())
        assert waited == +Counter(use.waited_ns)
    for number, (use, tasks) in enumerate(zip(uses, schedule.steps(shape, 0, num_steps), strict=True)):
        assert use.end_ns == max(one.end_ns for one in ran if one.task.op is Op.HEAD and one.task.step == number)
        assert use.num_tasks == len(tasks)


def test_waiting_is_told_by_what_was_waited_for():
    """The GPU waits 3 for the link, then 4 more for the CPU, and 2 for the CPU again."""
    tasks = [
        task(0, H2D, op=Op.LOAD_KV),
        task(1, CPU),
        task(2, GPU, 0, 1, op=Op.POST_ATTN),
        task(3, CPU, op=Op.PIN_WEIGHTS),
        task(4, GPU, 3, op=Op.POST_ATTN),
    ]
    ran = []
    simulation = Simulation([tasks], lambda one: Cost({0: 3, 1: 7, 2: 1, 3: 3, 4: 1}[one.id]), on_task=ran.append)
    gpu = simulation.run().lanes[GPU]
    assert (gpu.busy_ns, gpu.waited_ns) == (2, {Op.LOAD_KV: 3, Op.ATTN: 4, Op.PIN_WEIGHTS: 2})
    assert [(one.task.id, one.start_ns, one.waited_for, one.cause) for one in ran if one.task.lane == GPU] == [
        (2, 7, Op.ATTN, 1),
        (4, 10, Op.PIN_WEIGHTS, 3),
    ]


def test_waiting_for_the_news_is_waiting_for_the_task():
    """The copy of 3 is heard of after 5, the CPU's 7 after 9: one wait of 5, one of 4 more, and 1 beside own work."""
    tasks = [
        task(0, H2D, op=Op.LOAD_KV),
        task(1, CPU),
        task(2, GPU, 0, 1, op=Op.POST_ATTN),
        task(3, H2D, op=Op.LOAD_HIDDEN),
        task(4, GPU, 3, op=Op.POST_ATTN),
    ]
    ran = []
    durations = {0: 3, 1: 7, 2: 1, 3: 6, 4: 1}
    simulation = Simulation([tasks], lambda one: Cost(durations[one.id]), on_task=ran.append, hand_over_ns=2)
    gpu = simulation.run().lanes[GPU]
    assert (gpu.busy_ns, gpu.waited_ns) == (2, {Op.LOAD_KV: 5, Op.ATTN: 4, Op.LOAD_HIDDEN: 1})
    assert [(one.task.id, one.start_ns, one.waited_for, one.cause) for one in ran if one.task.lane == GPU] == [
        (2, 9, Op.ATTN, 1),
        (4, 11, Op.LOAD_HIDDEN, 3),
    ]


# steps without end, and mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "many", "growth", "hand_over_ns"),
    [(False, 160, 1.1, 0), (True, 120, 1.2, 0), (False, 160, 1.1, 3)],
    ids=["alone", "shared", "handed over"],
)
def test_memory_does_not_grow_with_steps(share, many, growth, hand_over_ns):
    """Costs grow from step to step, as attention's do; steps from 1,000 on, so that no number is a cached small one.

    Fair rates are remembered, up to a number that 40 steps reach: their leak would triple the peak.
    """
    schedule, shape = by_name("cgopipe"), PipelineShape(2, 4, 4, Place.CPU, (True, True))
    demands = {lane: ((0, 40 + place),) for place, lane in enumerate(FIVE_LANES)} if share else {}

    def peak(num_steps):
        steps = schedule.steps(shape, 1_000, 1_000 + num_steps)
        cost = lambda one: Cost(20 + one.step, demands.get(one.lane, ()))  # noqa: E731
        simulation = Simulation(steps, cost, (100,), hand_over_ns=hand_over_ns)
        gc.collect()
        tracemalloc.start()
        simulation.run()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)  # what is remembered of the shape is remembered before
    assert peak(many) < growth * peak(40)


def test_a_lane_that_is_first_needed_late_starts_late():
    steps = [[task(number, GPU, step=number)] for number in range(20)]
    steps[-1].append(task(20, CPU, step=19))
    ran = []
    result = Simulation(steps, lambda one: Cost(10), on_task=ran.append).run()
    (late,) = [one for one in ran if one.task.lane == CPU]
    assert late.end_ns - late.start_ns == result.lanes[CPU].busy_ns == 10
    assert result.makespan_ns == 200


def test_a_step_without_tasks_holds_up_nothing():
    steps = [[task(number, GPU, step=number)] if number % 10 == 9 else [] for number in range(50)]
    assert Simulation(steps, lambda one: Cost(10)).run().makespan_ns == 50


def test_no_steps_take_no_time():
    result = Simulation([], lambda one: Cost(10)).run()
    assert (result.makespan_ns, result.num_tasks, result.lanes) == (0, 0, {})


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param([task(5, GPU, 6), task(6, H2D, 5)], id="two lanes wait for each other"),
        pytest.param([task(5, GPU, 6), task(6, GPU)], id="a task waits for the one behind it on its lane"),
        pytest.param([task(5, GPU, 5)], id="a task waits for itself"),
        pytest.param([task(1, CPU), task(5, GPU, 7), task(6, H2D, 5), task(7, CPU, 6)], id="three in a ring"),
    ],
)
@pytest.mark.parametrize("hand_over_ns", [0, 100])
def test_tasks_that_wait_for_each_other_are_a_deadlock(tasks, hand_over_ns):
    stuck = len([one for one in tasks if one.id != 1])
    with pytest.raises(DeadlockError, match=rf"{stuck} tasks never ended, the first of them is number 5"):
        Simulation([tasks], lambda one: Cost(1), hand_over_ns=hand_over_ns).run()


def test_a_deadlock_in_a_later_step_is_found():
    steps = [[task(0, GPU)], [task(1, GPU, 2, step=1), task(2, H2D, 1, step=1)], [task(3, CPU, step=2)]]
    with pytest.raises(DeadlockError, match="number 1"):
        Simulation(steps, lambda one: Cost(1)).run()


def test_ranks_are_lanes_of_their_own():
    second = Lane(LaneKind.GPU, 1)
    assert ends([task(0, GPU), task(1, second), task(2, second, 0)], {0: 5, 1: 7, 2: 1}) == {0: 5, 1: 7, 2: 8}
