"""Shared pools in the simulator: closed forms, and a replay of whole runs in exact arithmetic."""

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise

import pytest
from exact_sharing import filled_exactly
from hypothesis import given, strategies as st
from schedule_rules import EVERY, FIVE_LANES, contended, examples, shapes, simulate, task

from sim.cost import Cost
from sim.schedule import CPU, D2H, GPU, H2D, by_name
from sim.simulation import Simulation

every_schedule = pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.name)
SECOND = 10**9


def ends(tasks, costs, capacities=()):
    """End of each task of one step by id; costs are nanoseconds, or (nanoseconds, {pool: demand})."""
    full = {
        id_: Cost(cost[0], tuple(cost[1].items())) if isinstance(cost, tuple) else cost for id_, cost in costs.items()
    }
    return {one.task.id: one.end_ns for one in simulate([tasks], full, capacities)}


# closed forms ---------------------------------------------------------------------------------------------

ALL = {0: 100}


def test_two_that_need_all_of_a_pool_take_turns_at_half_speed_and_the_longer_speeds_up_again():
    assert ends([task(0, GPU), task(1, CPU)], {0: (10, ALL), 1: (10, ALL)}, [100]) == {0: 20, 1: 20}
    assert ends([task(0, GPU), task(1, CPU)], {0: (10, ALL), 1: (30, ALL)}, [100]) == {0: 20, 1: 40}


def test_one_that_starts_later_slows_the_other_from_then_on():
    """The CPU is alone until 40; both run at half speed until it ends at 100, and the GPU has 30 of its 60 left."""
    tasks = [task(0, H2D), task(1, CPU), task(2, GPU, 0)]
    assert ends(tasks, {0: 40, 1: (70, ALL), 2: (60, ALL)}, [100]) == {0: 40, 1: 100, 2: 130}


def test_three_with_different_demands_progress_alike_and_catch_up_when_one_ends():
    """20 + 40 + 140 of 100: all at 1/2 until the first ends at 20, then 40 + 140 at 5/9, then the last alone at 5/7."""
    tasks = [task(0, GPU), task(1, CPU), task(2, H2D)]
    costs = {0: (10, {0: 20}), 1: (60, {0: 40}), 2: (160, {0: 140})}
    second = 20 + 50 * 9 // 5
    third = second + (160 - 60) * 7 // 5
    assert ends(tasks, costs, [100]) == {0: 20, 1: second, 2: third}


def test_a_full_pool_slows_only_those_who_use_it():
    tasks = [task(0, GPU), task(1, CPU), task(2, H2D), task(3, D2H)]
    costs = {0: (10, ALL), 1: (10, ALL), 2: (10, {1: 100}), 3: 10}
    assert ends(tasks, costs, [100, 100]) == {0: 20, 1: 20, 2: 10, 3: 10}


def test_a_task_that_asks_for_more_than_there_is_runs_as_fast_as_the_pool():
    assert ends([task(0, GPU)], {0: (10, {0: 400})}, [100]) == {0: 40}


def test_a_weight_stream_of_5_s_takes_6_s_beside_cpu_attention_that_needs_all_of_dram():
    """As MoE-Lens measured: the stream needs a fifth of it."""
    dram = 200 * 10**9
    stream, attention = (5 * SECOND, {0: dram // 5}), (20 * SECOND, {0: dram})
    assert ends([task(0, H2D), task(1, CPU)], {0: stream, 1: attention}, [dram])[0] == 6 * SECOND
    assert ends([task(0, H2D)], {0: stream}, [dram])[0] == 5 * SECOND


def test_both_directions_of_a_link_slow_each_other_as_measured():
    """12.36 GB in one second alone; at 11.16 GB/s when both directions carry as much."""
    alone, both = 12_360_000_000, 11_160_000_000
    found = ends([task(0, H2D), task(1, D2H)], {i: (SECOND, {0: alone}) for i in (0, 1)}, [2 * both])
    assert found == {0: pytest.approx(SECOND * alone / both, abs=1), 1: found[0]}
    assert ends([task(0, H2D)], {0: (SECOND, {0: alone})}, [2 * both]) == {0: SECOND}


@examples(25)
@given(lengths=st.lists(st.tuples(st.sampled_from(FIVE_LANES), st.integers(0, 500)), min_size=1, max_size=25))
def test_a_pool_that_all_need_wholly_never_idles(lengths):
    """Work conservation: however the lanes share, the last task ends when all work has passed one after the other."""
    tasks = [task(i, lane) for i, (lane, _) in enumerate(lengths)]
    found = ends(tasks, {i: (length, ALL) for i, (_, length) in enumerate(lengths)}, [100])
    total = sum(length for _, length in lengths)
    assert total <= max(found.values()) <= total + len(lengths)  # each end is rounded up to a nanosecond


# replay ---------------------------------------------------------------------------------------------------


def work_done(ran, capacities):
    """Nanoseconds of solo work by id, from when tasks started and ended alone: exact fair rates in each interval."""
    done = defaultdict(Fraction)
    times = sorted({time for one in ran for time in (one.start_ns, one.end_ns)})
    for begin, end in pairwise(times):
        running = [one for one in ran if one.start_ns <= begin and one.end_ns >= end]
        for one, rate in zip(running, filled_exactly([each.cost.demands for each in running], capacities), strict=True):
            done[one.task.id] += rate * (end - begin)
    return done


@every_schedule
@examples(8)
@given(data=st.data())
def test_each_task_ends_in_the_nanosecond_in_which_its_fair_share_has_done_its_work(schedule, data):
    """Replays a run from its starts and ends: no work is lost, none is done twice, no pool idles while a task waits."""
    shape = data.draw(shapes(schedule, 2, 2, 2))
    tasks = list(schedule.tasks(shape, 3))
    costs, capacities = data.draw(contended(tasks))
    ran = simulate(schedule.steps(shape, 0, 3), costs, capacities)
    done = work_done(ran, capacities)
    for one in ran:
        assert -1e-3 <= done[one.task.id] - one.cost.duration_ns < 1 + 1e-3, one
    ended, free = {}, {}
    for one in sorted(ran, key=lambda one: one.task.id):
        due = max([free.get(one.task.lane, 0), *(ended[dep] for dep in one.task.deps)])
        assert one.start_ns == due, "sharing slows tasks down, it never delays their start"
        ended[one.task.id] = free[one.task.lane] = one.end_ns


@examples(20)
@given(data=st.data(), lanes=st.lists(st.sampled_from(FIVE_LANES), min_size=1, max_size=25))
def test_unordered_work_is_replayed_too(data, lanes):
    tasks = [task(i, lane) for i, lane in enumerate(lanes)]
    costs, capacities = data.draw(contended(tasks))
    ran = simulate([tasks], costs, capacities)
    done = work_done(ran, capacities)
    assert all(-1e-3 <= done[one.task.id] - one.cost.duration_ns < 1 + 1e-3 for one in ran)
    assert len(ran) == len(tasks)


@every_schedule
@examples(5)
@given(data=st.data())
def test_the_same_run_twice_is_the_same(schedule, data):
    shape = data.draw(shapes(schedule, 3, 3, 3))
    costs, capacities = data.draw(contended(list(schedule.tasks(shape, 4))))
    first = simulate(schedule.steps(shape, 0, 4), costs, capacities)
    assert simulate(schedule.steps(shape, 0, 4), costs, capacities) == first


@examples(8)
@given(data=st.data())
def test_costs_made_anew_for_each_task_share_as_those_that_are_kept(data):
    schedule = by_name("cgopipe")
    shape = data.draw(shapes(schedule, 3, 4, 4))
    costs, capacities = data.draw(contended(list(schedule.tasks(shape, 4))))

    def ends_with(cost):
        found = {}
        steps = schedule.steps(shape, 0, 4)
        Simulation(steps, cost, capacities, on_task=lambda one: found.update({one.task.id: one.end_ns})).run()
        return found

    assert ends_with(lambda one: Cost(*costs[one.id])) == ends_with(lambda one: costs[one.id])
