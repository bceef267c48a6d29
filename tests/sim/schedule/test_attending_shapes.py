"""Attention of some micro-batches on the device beside that of others on the CPU: which, by which tasks, kept where."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from schedule_rules import examples

from sim.schedule import GPU, LaneKind, Op, PipelineShape, Place, Task, by_name, layout_of
from traces.errors import InputError


def shape_of(n, count, attention=Place.CPU):
    return PipelineShape(2, n, n, attention, (True, True), offloads_hidden=n > 1, attending_on_device=count)


@given(n=st.integers(1, 40), data=st.data())
@examples(50)
def test_they_are_spread_evenly_over_the_others(n, data):
    count = data.draw(st.integers(0, n))
    shape = shape_of(n, count)
    there = [j for j in range(n) if shape.attends(j) is Place.GPU]
    assert len(there) == count
    assert [j for j in range(n) if not shape.kv_on_host(j)] == there
    gaps = [later - earlier for earlier, later in pairwise([-1, *there])]
    assert all(gap in (n // count, -(-n // count)) for gap in gaps)


@pytest.mark.parametrize(("count", "attention"), [(-1, Place.CPU), (5, Place.CPU), (1, Place.GPU)])
def test_no_more_than_there_are_and_only_beside_the_cpu(count, attention):
    with pytest.raises(InputError, match=f"attending_on_device: {count} of 4 micro-batches"):
        shape_of(4, count, attention)


@pytest.mark.parametrize("name", ["cgopipe", "hybrid"])
def test_nothing_of_theirs_but_hidden_states_in_prefill_crosses_the_link(name):
    tasks = list(by_name(name).tasks(shape_of(4, 2), 3))
    lanes = {j: {t.lane.kind for t in tasks if t.op is Op.ATTN and t.step and t.micro_batch == j} for j in range(4)}
    assert lanes == {0: {LaneKind.CPU}, 1: {LaneKind.GPU}, 2: {LaneKind.CPU}, 3: {LaneKind.GPU}}
    crossing = {(t.op, t.micro_batch) for t in tasks if t.op in (Op.OFFLOAD_QKV, Op.STORE_KV, Op.LOAD_KV)}
    crossing |= {(t.op, t.micro_batch) for t in tasks if t.op is Op.LOAD_HIDDEN and t.step}
    assert crossing == {(op, j) for op in (Op.OFFLOAD_QKV, Op.STORE_KV, Op.LOAD_HIDDEN) for j in (0, 2)}


@pytest.mark.parametrize("step", [0, 1, 5])
def test_their_cache_grows_where_it_is(step):
    layout = layout_of(by_name("cgopipe"), shape_of(4, 2))
    here, there = (layout.accesses(Task(0, Op.ATTN, GPU, step, 1, j)) for j in (0, 1))

    def caches(some):
        return {(one.buffer, one.content) for one in some if one.when and "kv" in one.buffer and "q" not in one.buffer}

    assert caches(there.writes) == {("resident kv", (step,))}
    assert caches(there.reads) == ({("resident kv", (step - 1,))} if step else set())
    if step == 0:
        assert caches(here.writes) == {("new kv", (0, 1, 0))}
