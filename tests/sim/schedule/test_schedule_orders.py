"""The order of issue of each schedule, written by hand from Algorithm 1 and the table of schedules, and what it does.

A task is told as `Op layer,micro-batch`, a transfer of weights as `Op layer:page` (`*` is all pages), and what belongs
to the next step with a tick.
"""

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from schedule_rules import examples, random_durations, shapes, simulate

from sim.schedule import WHOLE, LaneKind, Op, PipelineShape, Place, by_name

CGOPIPE, FASTDECODE, FLEXGEN, FLEXGEN_C, ZERO, ACCELERATE = (
    by_name(name) for name in ("cgopipe", "fastdecode", "flexgen", "flexgen-c", "zero", "accelerate")
)
ON_CPU = PipelineShape(2, 3, 4, Place.CPU, (True, True))
ON_GPU = PipelineShape(2, 2, 1, Place.GPU, (True, True))
ON_DEVICE = PipelineShape(2, 1, 1, Place.GPU, (True, True), True, streams_kv=False, offloads_hidden=False)


def told(task, step):
    where = f"{task.layer}:{'*' if task.page == WHOLE else task.page}" if "Weights" in task.op else None
    own = str(task.micro_batch) if task.op is Op.HEAD else f"{task.layer},{task.micro_batch}"
    return f"{task.op} {where or own}" + "'" * (task.step - step)


def issued(schedule, shape, step, steps=4):
    """A step's tasks in order of issue, of a generation of so many steps."""
    return [told(task, step) for task in list(schedule.steps(shape, 0, steps))[step]]


def on_lanes(schedule, shape, step, steps=4):
    lanes = defaultdict(list)
    for task in list(schedule.steps(shape, 0, steps))[step]:
        lanes[task.lane.kind.value].append(told(task, step))
    return dict(lanes)


def lines(text):
    """The parts between semicolons and line ends."""
    return [part.strip() for line in text.strip().splitlines() for part in line.split(";") if part.strip()]


def spans(schedule, shape, steps, durations):
    """(start, end) of each task by how it is told, in a run of steps 0 to `steps` - 1."""
    ran = simulate(schedule.steps(shape, 0, steps), durations)
    return {told(one.task, 0): (one.start_ns, one.end_ns) for one in ran}


def durations_by_op(schedule, shape, steps, nanoseconds):
    """Durations by id: what the op takes, per page for weights; 0 if it is not named."""
    durations = {}
    for task in schedule.tasks(shape, steps):
        pages = shape.num_pages if task.op is Op.LOAD_WEIGHTS and task.page == WHOLE else 1
        durations[task.id] = pages * nanoseconds.get(task.op, 0)
    return durations


# cgopipe -----------------------------------------------------------------------------------------------------------

ALGORITHM_1 = """
    PreAttn 0,0; OffloadQKV 0,0; Attn 0,0; PinWeights 1:0
    PreAttn 0,1; OffloadQKV 0,1; Attn 0,1; PinWeights 1:1

    LoadHidden 0,0; LoadWeights 1:0; PostAttn 0,0
    PreAttn 0,2; OffloadQKV 0,2; Attn 0,2; PinWeights 1:2; PinWeights 1:3

    LoadHidden 0,1; LoadWeights 1:1; PostAttn 0,1
    PreAttn 1,0; OffloadQKV 1,0; Attn 1,0; PinWeights 0:0'

    LoadHidden 0,2; LoadWeights 1:2; LoadWeights 1:3; PostAttn 0,2
    PreAttn 1,1; OffloadQKV 1,1; Attn 1,1; PinWeights 0:1'

    LoadHidden 1,0; LoadWeights 0:0'; PostAttn 1,0; Head 0
    PreAttn 1,2; OffloadQKV 1,2; Attn 1,2; PinWeights 0:2'; PinWeights 0:3'

    LoadHidden 1,1; LoadWeights 0:1'; PostAttn 1,1; Head 1
    LoadHidden 1,2; LoadWeights 0:2'; LoadWeights 0:3'; PostAttn 1,2; Head 2
"""


@pytest.mark.parametrize("step", [1, 2])
def test_cgopipe_is_algorithm_1(step):
    """n = 3 micro-batches, 2 layers, 4 pages; j + 2 wraps to the next layer, and not from the last layer."""
    assert issued(CGOPIPE, ON_CPU, step) == lines(ALGORITHM_1)


def test_cgopipe_fetches_nothing_in_the_last_layer_of_the_last_step():
    assert issued(CGOPIPE, ON_CPU, 3) == [one for one in lines(ALGORITHM_1) if not one.endswith("'")]


def test_cgopipe_on_its_lanes():
    assert on_lanes(CGOPIPE, ON_CPU, 1) == {
        "GPU": lines(
            "PreAttn 0,0; PreAttn 0,1; PostAttn 0,0; PreAttn 0,2; PostAttn 0,1; PreAttn 1,0; PostAttn 0,2; PreAttn 1,1;"
            "PostAttn 1,0; Head 0; PreAttn 1,2; PostAttn 1,1; Head 1; PostAttn 1,2; Head 2"
        ),
        "CPU": lines("Attn 0,0; Attn 0,1; Attn 0,2; Attn 1,0; Attn 1,1; Attn 1,2"),
        "H2D": lines(
            "LoadHidden 0,0; LoadWeights 1:0; LoadHidden 0,1; LoadWeights 1:1;"
            "LoadHidden 0,2; LoadWeights 1:2; LoadWeights 1:3; LoadHidden 1,0; LoadWeights 0:0';"
            "LoadHidden 1,1; LoadWeights 0:1'; LoadHidden 1,2; LoadWeights 0:2'; LoadWeights 0:3'"
        ),
        "D2H": lines("OffloadQKV 0,0; OffloadQKV 0,1; OffloadQKV 0,2; OffloadQKV 1,0; OffloadQKV 1,1; OffloadQKV 1,2"),
        "PIN": lines(
            "PinWeights 1:0; PinWeights 1:1; PinWeights 1:2; PinWeights 1:3;"
            "PinWeights 0:0'; PinWeights 0:1'; PinWeights 0:2'; PinWeights 0:3'"
        ),
    }


@pytest.mark.parametrize(
    ("n", "gpu"),
    [
        (1, "PreAttn 0,0; PostAttn 0,0; PreAttn 1,0; PostAttn 1,0; Head 0"),
        (
            2,
            "PreAttn 0,0; PreAttn 0,1; PostAttn 0,0; PreAttn 1,0; PostAttn 0,1; PreAttn 1,1;"
            "PostAttn 1,0; Head 0; PostAttn 1,1; Head 1",
        ),
    ],
)
def test_cgopipe_with_few_micro_batches_looks_as_far_ahead_as_there_are(n, gpu):
    shape = PipelineShape(2, n, 1, Place.CPU, (True, True), offloads_hidden=n > 1)
    assert on_lanes(CGOPIPE, shape, 1)["GPU"] == lines(gpu)


def test_cgopipe_with_fewer_pages_than_micro_batches_sends_some_hidden_states_without_a_page():
    shape = PipelineShape(2, 3, 2, Place.CPU, (True, True))
    assert on_lanes(CGOPIPE, shape, 1)["H2D"][:5] == lines(
        "LoadHidden 0,0; LoadHidden 0,1; LoadWeights 1:0; LoadHidden 0,2; LoadWeights 1:1"
    )


def test_cgopipe_skips_what_is_pinned_or_resident():
    pinned = PipelineShape(2, 3, 4, Place.CPU, (True, True), weights_pinned=True)
    assert issued(CGOPIPE, pinned, 1) == [one for one in lines(ALGORITHM_1) if "Pin" not in one]
    resident = PipelineShape(2, 3, 4, Place.CPU, (True, False))
    unwanted = ("PinWeights 1", "LoadWeights 1")
    assert issued(CGOPIPE, resident, 1) == [one for one in lines(ALGORITHM_1) if not one.startswith(unwanted)]


def test_cgopipe_with_gpu_attention_loads_caches_where_hidden_states_were():
    shape = PipelineShape(1, 3, 3, Place.GPU, (True,))
    assert on_lanes(CGOPIPE, shape, 1) == {
        "GPU": lines(
            "PreAttn 0,0; Attn 0,0; PreAttn 0,1; Attn 0,1; PostAttn 0,0; Head 0;"
            "PreAttn 0,2; Attn 0,2; PostAttn 0,1; Head 1; PostAttn 0,2; Head 2"
        ),
        "H2D": lines("LoadKV 0,0; LoadKV 0,1; LoadWeights 0:0'; LoadKV 0,2; LoadWeights 0:1'; LoadWeights 0:2'"),
        "D2H": lines("StoreKV 0,0; StoreKV 0,1; StoreKV 0,2"),
        "PIN": lines("PinWeights 0:0'; PinWeights 0:1'; PinWeights 0:2'"),
    }


@examples(15)
@given(data=st.data(), seed=st.integers(0, 2**32), steps=st.integers(2, 4))
def test_cgopipe_drains_every_step(data, seed, steps):
    """No decode step computes before the last token of the step before it."""
    shape = data.draw(shapes(CGOPIPE, 3, 4, 4))
    ran = simulate(CGOPIPE.steps(shape, 0, steps), random_durations(list(CGOPIPE.tasks(shape, steps)), seed))
    for step in range(1, steps):
        token = max(one.end_ns for one in ran if one.task.op is Op.HEAD and one.task.step == step - 1)
        computed = [one for one in ran if one.task.step == step and one.task.lane.kind in (LaneKind.GPU, LaneKind.CPU)]
        assert min(one.start_ns for one in computed) >= token


# fastdecode --------------------------------------------------------------------------------------------------------

WHOLE_LAYERS = PipelineShape(2, 3, 1, Place.CPU, (True, True))


def test_fastdecode_is_cgopipe_with_each_layer_as_one_piece():
    pieces = {"PinWeights 1:0": "PinWeights 1:*", "LoadWeights 1:0": "LoadWeights 1:*"}
    pieces |= {f"{one[:-1]}0'".replace("1:", "0:"): f"{whole}'".replace("1:", "0:") for one, whole in pieces.items()}
    expected = [pieces.get(one, one) for one in lines(ALGORITHM_1) if "Weights" not in one or one in pieces]
    assert issued(FASTDECODE, WHOLE_LAYERS, 1) == expected
    assert on_lanes(FASTDECODE, WHOLE_LAYERS, 1)["H2D"] == lines(
        "LoadHidden 0,0; LoadWeights 1:*; LoadHidden 0,1; LoadHidden 0,2;"
        "LoadHidden 1,0; LoadWeights 0:*'; LoadHidden 1,1; LoadHidden 1,2"
    )


def test_fastdecodes_weights_hold_up_the_hidden_states_behind_them_and_cgopipes_pages_less():
    """Only weights take time, 30 ns a layer, all pinned: the second hidden states wait 30 ns, or 10 behind one page."""
    pages = PipelineShape(2, 3, 3, Place.CPU, (True, True), weights_pinned=True)
    piece = PipelineShape(2, 3, 1, Place.CPU, (True, True), weights_pinned=True)
    before = 30 + 30 + 30  # both layers in prefill, then the first layer of decode
    for schedule, shape, page, wait in ((CGOPIPE, pages, 10, 10), (FASTDECODE, piece, 30, 30)):
        durations = durations_by_op(schedule, shape, 2, {Op.LOAD_WEIGHTS: page})
        found = spans(schedule, shape, 2, durations)
        first, second = found["LoadHidden 0,0'"], found["LoadHidden 0,1'"]
        assert first[0] == before
        assert second[0] - first[1] == wait


# prefill -----------------------------------------------------------------------------------------------------------


def test_prefill_moves_whole_layers_from_pageable_memory_and_hidden_states_and_cache_beside_compute():
    shape = PipelineShape(2, 2, 4, Place.CPU, (True, True))
    assert issued(CGOPIPE, shape, 0) == lines("""
        LoadWeightsPageable 0:*
        LoadWeightsPageable 1:*; PreAttn 0,0; Attn 0,0; PostAttn 0,0
        StoreKV 0,0; StoreHidden 0,0; LoadHidden 1,0; PreAttn 0,1; Attn 0,1; PostAttn 0,1
        StoreKV 0,1; StoreHidden 0,1; LoadHidden 1,1; LoadWeightsPageable 0:*'
        PreAttn 1,0; Attn 1,0; PostAttn 1,0; Head 0
        StoreKV 1,0; PreAttn 1,1; Attn 1,1; PostAttn 1,1; Head 1
        StoreKV 1,1
    """)


def test_prefill_from_pinned_memory_needs_no_relay():
    shape = PipelineShape(2, 2, 4, Place.CPU, (True, True), weights_pinned=True)
    loads = [one for one in issued(CGOPIPE, shape, 0) if "Weights" in one]
    assert loads == ["LoadWeights 0:*", "LoadWeights 1:*", "LoadWeights 0:*'"]


# flexgen -----------------------------------------------------------------------------------------------------------

FLEXGEN_TURNS = """
    LoadWeightsPageable 0:*; LoadKV 0,1; PreAttn 0,0; Attn 0,0
    StoreKV 0,0; PreAttn 0,1; Attn 0,1
    StoreKV 0,1; PostAttn 0,0
    LoadKV 1,0; PostAttn 0,1
    LoadWeightsPageable 1:*; LoadKV 1,1; PreAttn 1,0; Attn 1,0
    StoreKV 1,0; PreAttn 1,1; Attn 1,1
    StoreKV 1,1; PostAttn 1,0; Head 0
    LoadKV 0,0'; PostAttn 1,1; Head 1
"""


def test_flexgen_is_two_layers_a_layer_with_the_next_cache_beside_attention_and_weights_in_its_first_turn():
    assert issued(FLEXGEN, ON_GPU, 1) == lines(FLEXGEN_TURNS)
    assert issued(FLEXGEN, ON_GPU, 3) == [one for one in lines(FLEXGEN_TURNS) if not one.endswith("'")]


def flexgen_turn(task, shape):
    """The number of the turn in which FlexGen issues a task: its barriers lie between turns."""
    n, layers = shape.num_micro_batches, shape.num_layers
    if task.step == 0:
        return flexgen_prefill_turn(task, shape)
    layer = layers - 1 if task.op is Op.HEAD else task.layer
    first = layers * n + (task.step - 1) * 2 * layers * n + 2 * n * layer  # of this layer's attention
    weights = task.op in (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE)
    begins = task.op is Op.LOAD_KV and task.step == 1 and task.layer == 0 and task.micro_batch == 0
    offset = {
        Op.HEAD: n,
        Op.POST_ATTN: n,
        Op.STORE_KV: 1,  # while the next one computes
        Op.LOAD_KV: 0 if begins else -1,
        Op.LOAD_HIDDEN: n - 1,
    }.get(task.op, 0)
    return first if weights else first + task.micro_batch + offset


def flexgen_prefill_turn(task, shape):
    n = shape.num_micro_batches
    turn = task.layer * n + task.micro_batch
    match task.op:
        case Op.HEAD:
            return (shape.num_layers - 1) * n + task.micro_batch
        case Op.STORE_KV | Op.STORE_HIDDEN:
            return turn + 1
        case Op.LOAD_WEIGHTS | Op.LOAD_WEIGHTS_PAGEABLE:
            return max(0, (task.layer - 1) * n)  # at the first micro-batch of the layer before
        case Op.LOAD_HIDDEN:
            return turn - 1
        case _:
            return turn


@pytest.mark.parametrize("schedule", [FLEXGEN, FLEXGEN_C], ids=["flexgen", "flexgen-c"])
@examples(25)
@given(data=st.data(), seed=st.integers(0, 2**32), steps=st.integers(1, 4))
def test_flexgens_barrier_holds_all_lanes_after_each_turn(schedule, data, seed, steps):
    shape = data.draw(shapes(schedule, 4, 4))
    durations = random_durations(list(schedule.tasks(shape, steps)), seed)
    turns = defaultdict(list)
    for one in simulate(schedule.steps(shape, 0, steps), durations):
        turns[flexgen_turn(one.task, shape)].append(one)
    met = 0
    for turn in sorted(turns):
        assert min(one.start_ns for one in turns[turn]) >= met, f"turn {turn} starts before the one before it ended"
        met = max(met, *(one.end_ns for one in turns[turn]))


def test_flexgens_barrier_makes_the_first_turn_wait_for_all_weights():
    """Only weights take time: each layer's second micro-batch starts when its experts' weights have come."""
    shape = PipelineShape(3, 2, 1, Place.GPU, (True,) * 3)
    found = spans(FLEXGEN, shape, 2, durations_by_op(FLEXGEN, shape, 2, {Op.LOAD_WEIGHTS_PAGEABLE: 10}))
    starts = [found[f"PreAttn {layer},{j}'"][0] for layer in range(3) for j in range(2)]
    assert starts == [30, 40, 40, 50, 50, 60]  # three layers came before decode


def test_flexgen_fetches_no_cache_but_the_next_layers_first_beside_the_experts():
    """Caches of 3 ns and experts of 5: beside attention, which takes nothing, all but the first cost their time."""
    shape = PipelineShape(2, 4, 1, Place.GPU, (False, False))
    found = spans(FLEXGEN, shape, 3, durations_by_op(FLEXGEN, shape, 3, {Op.LOAD_KV: 3, Op.POST_ATTN: 5}))
    starts = [found[f"PostAttn {layer},0''"][0] for layer in (0, 1)]
    assert starts[1] - starts[0] == 4 * 5 + 3 * 3


# flexgen-c ---------------------------------------------------------------------------------------------------------


def test_flexgen_c_sends_each_micro_batch_to_the_cpu_before_the_next_and_then_fetches_each_beside_experts():
    shape = PipelineShape(2, 2, 1, Place.CPU, (True, True))
    layers = """
        LoadWeightsPageable {0}:*; PreAttn {0},0; OffloadQKV {0},0; Attn {0},0
        PreAttn {0},1; OffloadQKV {0},1; Attn {0},1; LoadHidden {0},0
        LoadHidden {0},1; PostAttn {0},0; {1}PostAttn {0},1{2}
    """
    heads = layers.format(1, "Head 0; ", "; Head 1")
    assert issued(FLEXGEN_C, shape, 1) == lines(layers.format(0, "", "")) + lines(heads)


@examples(15)
@given(data=st.data(), seed=st.integers(0, 2**32), steps=st.integers(2, 4))
def test_flexgen_c_never_computes_on_gpu_and_cpu_at_once(data, seed, steps):
    shape = data.draw(shapes(FLEXGEN_C, 4, 4))
    durations = random_durations(list(FLEXGEN_C.tasks(shape, steps)), seed)
    ran = simulate(FLEXGEN_C.steps(shape, 0, steps), durations)
    assert_one_at_a_time(one for one in ran if one.task.lane.kind in (LaneKind.GPU, LaneKind.CPU))


def assert_one_at_a_time(ran):
    busy = sorted((one.start_ns, one.end_ns) for one in ran if one.end_ns > one.start_ns)
    for (_, end), (start, _) in pairwise(busy):
        assert start >= end, f"two tasks run at {start}"


# zero --------------------------------------------------------------------------------------------------------------


def test_zero_fetches_the_next_layer_before_it_computes_this_one():
    assert issued(ZERO, ON_DEVICE, 1) == lines("""
        LoadWeightsPageable 1:*; PreAttn 0,0; Attn 0,0; PostAttn 0,0
        LoadWeightsPageable 0:*'; PreAttn 1,0; Attn 1,0; PostAttn 1,0; Head 0
    """)


@pytest.mark.parametrize(("load", "compute"), [(70, 30), (30, 70), (50, 50)])
def test_zero_takes_the_longer_of_fetching_and_computing(load, compute):
    """The first layer is fetched alone and the last one computed alone; between them both run."""
    shape = PipelineShape(4, 1, 1, Place.GPU, (True,) * 4, True, streams_kv=False, offloads_hidden=False)
    durations = durations_by_op(ZERO, shape, 5, {Op.LOAD_WEIGHTS_PAGEABLE: load, Op.POST_ATTN: compute})
    ran = simulate(ZERO.steps(shape, 0, 5), durations)
    assert max(one.end_ns for one in ran) == load + (4 * 5 - 1) * max(load, compute) + compute


# accelerate --------------------------------------------------------------------------------------------------------


def test_accelerate_copies_a_layer_then_computes_it():
    expected = lines("""
        LoadWeightsPageable 0:*; PreAttn 0,0; Attn 0,0; PostAttn 0,0
        LoadWeightsPageable 1:*; PreAttn 1,0; Attn 1,0; PostAttn 1,0; Head 0
    """)
    assert [issued(ACCELERATE, ON_DEVICE, step) for step in range(4)] == [expected] * 4


@examples(20)
@given(data=st.data(), seed=st.integers(0, 2**32), steps=st.integers(1, 4))
def test_accelerate_keeps_one_lane_busy_at_a_time(data, seed, steps):
    shape = data.draw(shapes(ACCELERATE, 4, 4))
    durations = random_durations(list(ACCELERATE.tasks(shape, steps)), seed)
    ran = simulate(ACCELERATE.steps(shape, 0, steps), durations)
    assert_one_at_a_time(ran)
    assert max(one.end_ns for one in ran) == sum(durations.values())
