"""Dependencies from slots, one rule at a time: reads wait for the write, writes for the write and all reads before."""

from sim.schedule import CPU, D2H, GPU, H2D, WHOLE, DependencyTracker, Op, PipelineShape, Place, SlotLayout
from sim.schedule.tracking import Issue

SHAPE = PipelineShape(2, 2, 2, Place.GPU, (True, True), weights_pinned=True)


def deps_of(*issues):
    """Dependencies of each issue (op, lane, step, layer, micro-batch, page); None stands for a barrier."""
    tracker, found = DependencyTracker(SlotLayout(SHAPE)), []
    for one in issues:
        if one is None:
            tracker.barrier()
        else:
            found.append(tracker.add(Issue(*one)).deps)
    return found


def test_a_read_waits_for_the_write_on_another_lane():
    assert deps_of((Op.PRE_ATTN, GPU, 1, 0, 0), (Op.OFFLOAD_QKV, D2H, 1, 0, 0)) == [(), (0,)]


def test_other_micro_batches_do_not_wait():
    assert deps_of((Op.PRE_ATTN, GPU, 1, 0, 0), (Op.OFFLOAD_QKV, D2H, 1, 0, 1)) == [(), ()]


def test_a_lane_needs_no_dependency_on_itself():
    assert deps_of((Op.PRE_ATTN, GPU, 1, 0, 0), (Op.ATTN, GPU, 1, 0, 0)) == [(), ()]


def test_a_write_waits_for_the_write_before_it():
    """Attention on the device and attention from the host fill the same buffer."""
    assert deps_of((Op.ATTN, GPU, 1, 0, 0), (Op.LOAD_HIDDEN, H2D, 1, 0, 0)) == [(), (0,)]


def test_a_write_waits_for_all_reads_before_it_not_only_the_last():
    """The next PreAttn overwrites queries, keys and values that a copy reads, and attention after it."""
    copied_and_read = [(Op.PRE_ATTN, GPU, 1, 0, 0), (Op.OFFLOAD_QKV, D2H, 1, 0, 0), (Op.ATTN, GPU, 1, 0, 0)]
    assert deps_of(*copied_and_read, (Op.PRE_ATTN, GPU, 1, 1, 0))[-1] == (1,)


def test_a_whole_layer_is_all_its_pages():
    loads = [(Op.LOAD_WEIGHTS, H2D, 1, 0, -1, 0), (Op.LOAD_WEIGHTS, H2D, 1, 0, -1, 1)]
    assert deps_of(*loads, (Op.POST_ATTN, GPU, 1, 0, 0))[-1] == (1,)
    whole = (Op.LOAD_WEIGHTS_PAGEABLE, H2D, 1, 0, -1, WHOLE)
    assert deps_of(whole, (Op.POST_ATTN, GPU, 1, 0, 0))[-1] == (0,)


def test_what_another_dependency_has_waited_for_is_left_out():
    """CPU attention waits for the copy, which waited for PreAttn; the hidden states wait for CPU attention alone."""
    chain = [
        (Op.PRE_ATTN, GPU, 1, 0, 0),
        (Op.OFFLOAD_QKV, D2H, 1, 0, 0),
        (Op.ATTN, CPU, 1, 0, 0),
        (Op.LOAD_HIDDEN, H2D, 1, 0, 0),
        (Op.POST_ATTN, GPU, 1, 0, 0),
    ]
    assert deps_of(*chain) == [(), (0,), (1,), (2,), (3,)]


def test_what_the_lane_has_waited_for_is_left_out():
    before = [(Op.LOAD_WEIGHTS, H2D, 1, 0, -1, 0), (Op.POST_ATTN, GPU, 1, 0, 0)]
    assert deps_of(*before, (Op.POST_ATTN, GPU, 1, 0, 1)) == [(), (0,), ()]


def test_at_a_barrier_the_next_task_of_each_lane_waits_for_all_lanes():
    before = [(Op.LOAD_HIDDEN, H2D, 1, 0, 0), (Op.ATTN, CPU, 1, 0, 1), (Op.PRE_ATTN, GPU, 1, 0, 1)]
    after = [(Op.PRE_ATTN, GPU, 1, 1, 0), (Op.STORE_HIDDEN, D2H, 1, 1, 1), (Op.PRE_ATTN, GPU, 1, 1, 1)]
    assert deps_of(*before, None, *after)[3:] == [(0, 1), (0, 1, 2), ()]
