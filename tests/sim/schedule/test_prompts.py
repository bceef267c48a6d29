"""Prompts beside decode: nothing races, whatever the shape, and what a prompt leaves reaches those who decode."""

import itertools
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from schedule_rules import (
    EVERY,
    Backwards,
    Order,
    all_arithmetic,
    arithmetic,
    assert_no_race,
    assert_weights_arrive_once,
    assert_well_formed,
    examples,
    random_durations,
    shapes,
    simulate,
    touched,
)

from sim.schedule import CPU, GPU, Op, PipelineShape, Place, issue_steps, layout_of, steady_step
from traces.errors import InputError

MIXING = [schedule for schedule in EVERY if schedule.system.mixes]
every_mixing = pytest.mark.parametrize("schedule", MIXING, ids=lambda schedule: schedule.name)
WARM_UP = 2
"""Steps that fill memory: what the first ones read was left by steps that are not looked at."""


@st.composite
def streams(draw, schedule):
    """A pipeline in which some micro-batches carry prompts."""
    shape = draw(shapes(schedule, max_layers=4, max_micro_batches=5, max_pages=5).filter(_takes_prompts))
    prompts = draw(st.integers(1, shape.num_micro_batches - 1))
    most = shape.num_micro_batches - prompts if shape.attention is Place.CPU else 0
    return shape.beside_prompts(prompts, draw(st.integers(0, most)))


def _takes_prompts(shape):
    return shape.num_micro_batches > 1 and not shape.runs_on_host


def window(schedule, shape, stop):
    return list(itertools.chain.from_iterable(issue_steps(schedule, shape, 1, stop, stop - 1)))


def left_by(layout, tasks):
    """What is in memory when these tasks have ended."""
    return {slot: content for task in tasks for slot, content in touched(layout.accesses(task).writes)}


@every_mixing
@examples(15)
@given(data=st.data(), length=st.integers(1, 4))
def test_nothing_races_and_every_read_finds_what_was_written_for_it(schedule, data, length):
    shape = data.draw(streams(schedule))
    layout, tasks = layout_of(schedule, shape), window(schedule, shape, 1 + WARM_UP + length)
    assert_well_formed(tasks)
    before = [task for task in tasks if task.step <= WARM_UP]
    after = [task for task in tasks if task.step > WARM_UP]
    assert_no_race(after, layout.accesses, Order(tasks), left_by(layout, before))
    assert arithmetic(tasks) == all_arithmetic(shape, 1, 1 + WARM_UP + length)
    assert_weights_arrive_once(tasks, shape, 1, WARM_UP + length)


@every_mixing
@examples(10)
@given(data=st.data(), length=st.integers(1, 3))
def test_steps_of_a_stream_are_relocated_copies(schedule, data, length):
    shape = data.draw(streams(schedule))
    first = steady_step(schedule, shape)
    whole = list(issue_steps(schedule, shape, 1, first + length, first + length - 1))
    by = sum(len(step) for step in whole[: first - 1])
    moved = [
        [task._replace(id=task.id - by, deps=tuple(dep - by for dep in task.deps)) for task in step]
        for step in whole[first - 1 :]
    ]
    assert list(schedule.steps(shape, first, first + length)) == moved


@every_mixing
@examples(8)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_no_durations_make_it_wait_for_ever(schedule, data, seed):
    shape = data.draw(streams(schedule))
    steps = list(schedule.steps(shape, 1, 5))
    tasks = list(itertools.chain.from_iterable(steps))
    assert len(simulate(steps, random_durations(tasks, seed))) == len(tasks)


@every_mixing
@examples(15)
@given(data=st.data())
def test_the_cache_of_a_prompt_is_stored_before_others_read_it_and_blocks_are_free_before_they_are_used(schedule, data):
    shape = data.draw(streams(schedule))
    assert_cache_is_stored_first(shape, window(schedule, shape, 5))


def test_a_schedule_that_decodes_first_waits_for_the_cache_of_prompts():
    """Its lanes alone would not: who decodes loads the cache of a layer before the prompt does."""
    shape = PipelineShape(1, 2, 2, Place.GPU, (True,), num_prompts=1)
    assert_cache_is_stored_first(shape, window(Backwards(), shape, 5))


def assert_cache_is_stored_first(shape, tasks):
    """Blocks of a prompt may be those of a request that decoded, anywhere, in the step before."""
    order, named = Order(tasks), {(task.op, task.step, task.layer, task.micro_batch): task for task in tasks}
    decoding, prompts = range(shape.num_prompts, shape.num_micro_batches), range(shape.num_prompts)
    writes = Op.STORE_KV if shape.streams_kv else Op.ATTN
    for step, layer, j, prompt in itertools.product(range(2, 5), range(shape.num_layers), decoding, prompts):
        stored, again = (named[writes, one, layer, prompt] for one in (step - 1, step))
        reads = Op.LOAD_KV if shape.streams_kv and shape.attends(j) is Place.GPU else Op.ATTN
        assert order.before(stored, named[reads, step, layer, j])
        assert order.before(named[reads, step - 1, layer, j], again)
        assert order.before(named[Op.HEAD, step - 1, -1, prompt], named[Op.PRE_ATTN, step, 0, j])


@every_mixing
@examples(10)
@given(data=st.data())
def test_a_prompt_attends_on_the_gpu_to_what_its_earlier_chunks_left(schedule, data):
    shape = data.draw(streams(schedule))
    tasks = window(schedule, shape, 4)
    order, named = Order(tasks), {(task.op, task.step, task.layer, task.micro_batch): task for task in tasks}
    moves = [Op.LOAD_KV, Op.ATTN, Op.STORE_KV] if shape.streams_kv else [Op.ATTN]
    for step, layer, j in itertools.product((2, 3), range(shape.num_layers), range(shape.num_prompts)):
        path = [named[moves[-1], step - 1, layer, j], *(named[op, step, layer, j] for op in moves)]
        assert all(order.before(earlier, later) for earlier, later in pairwise(path))
        assert named[Op.ATTN, step, layer, j].lane == GPU
        assert (Op.OFFLOAD_QKV, step, layer, j) not in named


@every_mixing
def test_the_cpu_attends_for_all_who_decode_while_the_gpu_computes_prompts(schedule):
    """Of a layer in the middle all attention on the CPU has been handed over before its prompts end on the GPU."""
    shape = PipelineShape(3, 4, 4, Place.CPU, (True,) * 3, num_prompts=1)
    tasks = [task for task in window(schedule, shape, 2) if task.step == 1]
    at = {(task.op, task.layer, task.micro_batch): place for place, task in enumerate(tasks)}
    ahead = [at[Op.OFFLOAD_QKV, 1, j] < at[Op.POST_ATTN, 1, 0] for j in (1, 2, 3)]
    assert ahead == [True, True, True]
    assert {task.micro_batch for task in tasks if task.op is Op.ATTN and task.lane == CPU} == {1, 2, 3}


def test_a_shape_of_prompts_alone_is_refused():
    with pytest.raises(InputError, match="num_prompts: 2 of 2 micro-batches: at least one must decode"):
        PipelineShape(2, 2, 2, Place.CPU, (True, True), num_prompts=2)


def test_no_more_attend_on_the_device_than_decode():
    with pytest.raises(InputError, match="attending_on_device: 2 of 1 micro-batches beside attention on the cpu"):
        PipelineShape(2, 2, 2, Place.CPU, (True, True), num_prompts=1, attending_on_device=2)


def test_who_attends_on_the_device_is_one_of_those_who_decode():
    shape = PipelineShape(2, 6, 6, Place.CPU, (True, True)).beside_prompts(2, 2)
    assert shape.over_link == [3, 5]
    assert [shape.attends(j) for j in range(6)] == [Place.GPU] * 2 + [Place.CPU, Place.GPU] * 2
    assert all(shape.kv_on_host(j) for j in range(6))


@every_mixing
def test_the_cache_of_who_attends_beside_others_comes_a_micro_batch_ahead(schedule):
    """Of two in each of three layers, all but the first have it asked for while the one before attends."""
    shape = PipelineShape(3, 5, 5, Place.CPU, (True,) * 3).beside_prompts(1, 2)
    tasks = [task for task in window(schedule, shape, 2) if task.step == 1 and task.micro_batch in shape.over_link]
    order = [(task.op, task.layer, task.micro_batch) for task in tasks if task.op in (Op.LOAD_KV, Op.ATTN)]
    turns = list(itertools.product(range(3), shape.over_link))
    ahead = [(op, *turn) for before, turn in pairwise(turns) for op, turn in ((Op.ATTN, before), (Op.LOAD_KV, turn))]
    assert order == [(Op.LOAD_KV, *turns[0]), *ahead, (Op.ATTN, *turns[-1])]
    before = Order(window(schedule, shape, 2)).before
    named = {(task.op, task.layer, task.micro_batch): task for task in tasks}
    assert all(before(named[Op.LOAD_KV, *turn], named[Op.ATTN, *turn]) for turn in turns)
    assert all(
        before(named[Op.ATTN, *turn], named[Op.LOAD_KV, *third]) for turn, third in zip(turns, turns[2:], strict=False)
    )
