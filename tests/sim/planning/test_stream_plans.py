"""Plans for streams: what fits, what steps are expected to give, and where prompts are computed best."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from schedule_rules import examples
from sim_examples import few_layers, round_machine

from sim.admission import KvLayers, Prompts, RequestStream, Service, StreamedRequest
from sim.cost import usable_bytes
from sim.planning import Flow, PolicyGrid, best_stream_policy, plan, plan_stream
from sim.planning.streams.estimate import estimated
from sim.planning.streams.points import StreamPoint, StreamSetups
from sim.problem import Problem, Workload
from sim.schedule import Place, by_name
from sim.simulation import serve_stream
from traces.errors import InputError

MIXING = ("cgopipe", "hybrid")
WORKLOAD = Workload("alike", (120,), 20)
GRID = PolicyGrid((4, 16, 64), (1, 4), expert_values=3, levels=(0, 4, 4), host_parts=(0.0, 1.0), fetched_parts=(0.0,))


def problem_of(workload=WORKLOAD, layers=4, **machine):
    """Four layers of Mixtral, of which the device holds two."""
    usual = {"device_memory__capacity": 10e9, "host_memory__capacity": 16e9, "pinned": 8e9}
    return Problem(few_layers("mixtral-8x7b", layers), round_machine(**{**usual, **machine}), workload)


def test_means_of_a_flow_are_those_of_its_requests():
    """A request that decodes for three steps is met three times as often as one that decodes for one."""
    requests = (StreamedRequest(0, 10, 4, 4), StreamedRequest(1, 30, 8, 2))
    flow = Flow.of(RequestStream("two", requests))
    assert (flow.num_requests, flow.generated_tokens, flow.prompt_tokens, flow.decode_steps) == (2, 6, 20, 2)
    assert flow.prompt_tokens_squared == (100 + 900) / 2
    reads = [11, 12, 13, 31]
    assert flow.context_tokens == sum(reads) / 4
    assert flow.promised_tokens == pytest.approx((4 * (10 + 4 - 2) + 2 * (30 + 8 - 1)) / 6)
    assert flow.longest_tokens == 37
    assert flow.prompt_tokens_beside(60) == 60 * 20 / 3


@pytest.mark.parametrize("schedule", MIXING)
@examples(12)
@given(data=st.data())
def test_setups_of_points_fit_every_memory_and_have_places_for_those_who_have_room(schedule, data):
    problem, flow = problem_of(), Flow.of(RequestStream.of(WORKLOAD, 5000))
    system = by_name(schedule).system
    point = StreamPoint(
        data.draw(st.sampled_from([1, 3, 8])),
        data.draw(st.sampled_from(system.attention)),
        data.draw(st.sampled_from([1, 2])),
        data.draw(st.sampled_from([0.1, 0.5, 1.0])),
        data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        data.draw(st.sampled_from([0.0, 0.5, 2.0])) if system.splits_experts else 0.0,
        data.draw(st.sampled_from([0, 2])) if system.splits_experts else 0,
        block_tokens=data.draw(st.sampled_from([16, 64])),
    )
    if point.attention is Place.CPU:
        point = replace(point, over_link=data.draw(st.sampled_from([0.0, 0.3])))
    setup = StreamSetups(problem, by_name(schedule), flow).at(point)
    if setup is None:
        assert point.resident < 1, "what is not on the device may be more than the host has room for"
        return
    room = setup.num_blocks * setup.block_bytes
    peaks, capacity = setup.memory.peak_bytes(), usable_bytes(problem.hardware)
    assert all(peaks[tier] <= capacity[tier] for tier in capacity)
    assert setup.memory.host["kv cache"] <= room
    pageable = replace(setup, policy=replace(setup.policy, pin_weights=0.0))
    blocks = max(setup.num_blocks, pageable.num_blocks)
    there = point.room * blocks / flow.blocks(setup.kv_layers, setup.block_tokens)
    assert setup.policy.batch_size <= there + point.num_micro_batches
    chunk = flow.prompt_tokens_beside(setup.policy.batch_size - point.num_prompts) / point.num_prompts
    assert setup.prefill_chunk == pytest.approx(chunk, rel=point.num_micro_batches / setup.policy.batch_size, abs=2)


def test_as_many_have_a_place_as_have_room():
    problem = problem_of(layers=8, device_memory__capacity=14e9, host_memory__capacity=30e9, pinned=25e9)
    flow = Flow.of(RequestStream.of(WORKLOAD, 50_000))
    for room in (1.0, 0.4):
        setup = StreamSetups(problem, by_name("hybrid"), flow).at(StreamPoint(4, Place.CPU, room=room))
        there = room * setup.num_blocks / flow.blocks(setup.kv_layers, setup.block_tokens)
        assert 0.95 * there <= setup.policy.batch_size <= there + 4
        assert setup.policy.pin_weights == 1


def test_a_locked_kv_cache_comes_before_locked_weights():
    """With attention on the GPU both want to be page-locked: of twelve gigabytes requests have the first."""
    problem = problem_of(layers=8, device_memory__capacity=14e9, host_memory__capacity=40e9, pinned=12e9)
    flow = Flow.of(RequestStream.of(WORKLOAD, 50_000))
    setups = StreamSetups(problem, by_name("cgopipe"), flow)
    some, half = (setups.at(StreamPoint(4, Place.GPU, room=room)) for room in (0.6, 0.3))
    bare = replace(some, policy=replace(some.policy, pin_weights=0.0))
    for setup, room in ((some, 0.6), (half, 0.3)):
        there = room * bare.num_blocks / flow.blocks(setup.kv_layers, setup.block_tokens)
        assert setup.policy.batch_size == pytest.approx(there, rel=0.1)
    assert 0 < some.policy.pin_weights < half.policy.pin_weights < 1


def test_as_many_experts_stay_as_fit():
    """One more than those that stay does not fit."""
    problem, flow = problem_of(), Flow.of(RequestStream.of(WORKLOAD, 5000))
    setup = StreamSetups(problem, by_name("hybrid"), flow).at(StreamPoint(4, Place.CPU, room=0.1))
    total = 8 * 4
    resident = round(setup.policy.experts_on_device * total)
    assert 0 < resident < total
    with pytest.raises(InputError, match="device memory is"):
        replace(setup, policy=replace(setup.policy, experts_on_device=(resident + 1) / total))


def test_blocks_of_a_full_window_count_whole():
    """Of 80 tokens on average: two blocks and a half of 40, but where no more than 60 are kept, two."""
    flow = replace(Flow.of(RequestStream.of(WORKLOAD, 10)), promised_tokens=80.0)
    assert flow.blocks((KvLayers(),), 40) == 2.5
    assert flow.blocks((KvLayers(2, 60), KvLayers(3)), 40) == 2 * 2 + 3 * 2.5
    assert flow.blocks((KvLayers(1, 200),), 40) == 2.5


def test_a_busy_cpu_leaves_attention_of_some_to_the_device():
    flow = Flow.of(RequestStream.of(WORKLOAD, 5000))
    machine = {"host__request_overhead": 400e-6, "device__peak": 1e15, "host_memory__capacity": 20e9, "pinned": 16e9}
    asked = {"num_prompts": 1, "prefill_chunk": 6_000, "block_tokens": 64}
    chosen = best_stream_policy(problem_of(**machine), by_name("cgopipe"), flow, **asked).ranked[0]
    assert 0 < chosen.setup.policy.attention_on_device < 1


def test_smaller_blocks_are_tried_where_the_link_is_busy_and_what_is_given_is_kept():
    flow, slow_link = Flow.of(RequestStream.of(WORKLOAD, 2000)), problem_of(link__h2d=2e9, device__peak=1e15)
    asked = {"num_prompts": 1, "prefill_chunk": 500}
    for size, tried in ((None, {64, 32, 16}), (8, {8})):
        plan = best_stream_policy(slow_link, by_name("cgopipe"), flow, **asked, block_tokens=size)
        assert {one.setup.block_tokens for one in plan.found.values()} == tried


def test_what_the_host_cannot_hold_may_be_on_the_device():
    """The host has no room for the experts of four layers; with those of two on the device it has."""
    problem, flow = problem_of(host_memory__capacity=10e9), Flow.of(RequestStream.of(WORKLOAD, 500))
    setup = StreamSetups(problem, by_name("cgopipe"), flow).at(StreamPoint(4, Place.CPU))
    assert setup is not None
    assert setup.policy.experts_on_device > 0
    with pytest.raises(InputError, match="host memory is"):
        replace(setup, policy=replace(setup.policy, experts_on_device=0.0, pin_weights=0.0))


def test_a_machine_on_which_nothing_fits_says_so():
    plan = best_stream_policy(
        problem_of(device_memory__capacity=1e9), by_name("cgopipe"), Flow.of(RequestStream.of(WORKLOAD, 10))
    )
    assert plan.found == {}
    assert "device memory is" in plan.reason


@pytest.mark.parametrize("schedule", MIXING)
@pytest.mark.parametrize("num_requests", [60, 2000])
def test_what_is_estimated_is_what_serving_gives(schedule, num_requests):
    """All that are unlike in a ramp are three steps of it; so an estimate is good to some percent."""
    stream = RequestStream.of(WORKLOAD, num_requests)
    flow = Flow.of(stream)
    point = StreamPoint(4, Place.CPU, room=0.3)
    setup = StreamSetups(problem_of(), by_name(schedule), flow).at(point)
    found, result = estimated(point, setup, flow), serve_stream(setup, stream)
    assert found.throughput_tokens_per_s == pytest.approx(result.throughput_tokens_per_s, rel=0.1)
    if num_requests == 2000:
        assert found.steady_tokens_per_s == pytest.approx(result.steady_tokens_per_s, rel=0.05)


def test_what_is_given_is_kept():
    flow = Flow.of(RequestStream.of(WORKLOAD, 500))
    plan = best_stream_policy(problem_of(), by_name("cgopipe"), flow, num_prompts=2, prefill_chunk=64, kv_bits=8.0)
    chosen = plan.ranked[0].setup
    assert (chosen.num_prompts, chosen.prefill_chunk, chosen.policy.kv_bits) == (2, 64, 8.0)
    assert {one.setup.prefill_chunk for one in plan.found.values()} == {64}


def chosen_for(problem, num_requests, *schedules, **asked):
    stream = RequestStream.of(problem.workload, num_requests)
    batches = plan(problem, schedules, grid=replace(GRID, most_requests=num_requests), refine=False, jobs=1)
    return plan_stream(problem, stream, schedules, batches, Service(**asked), jobs=1)


def test_prompts_go_beside_decode_where_the_gpu_and_the_link_would_take_turns():
    """Prefill keeps the GPU busy, decode the link: of many requests one does it while the other does."""
    choice = chosen_for(problem_of(device__peak=10e12, link__h2d=3e9, pin=3e9), 3000, "cgopipe", "zero")
    assert (choice.best.prompts, choice.best.schedule) == (Prompts.BESIDE, "cgopipe")
    assert choice.gain > 1.1
    assert choice.best.result.num_requests == 3000
    assert set(choice.failed) == {"zero"}
    assert [one.throughput_tokens_per_s for one in choice.ways] == sorted(
        (one.throughput_tokens_per_s for one in choice.ways), reverse=True
    )


def test_batch_after_batch_is_chosen_where_it_is_faster():
    """One wave in chunks that are far too small: who waits for its prompt does not decode, and nobody comes behind."""
    choice = chosen_for(problem_of(), 24, "cgopipe", prefill_chunk=16, num_prompts=1)
    assert choice.best.prompts is Prompts.BEFORE
    assert choice.rival.prompts is Prompts.BESIDE
    assert choice.gain > 1.5


def test_every_way_bounds_what_it_gives():
    few = {"num_prompts": 1, "prefill_chunk": 500, "block_tokens": 64}
    choice = chosen_for(problem_of(), 400, "cgopipe", "hybrid", **few)
    for way in choice.ways:
        most = way.at_most_tokens_per_s[way.bottleneck]
        assert way.throughput_tokens_per_s <= most * 1.05
        assert min(way.at_most_tokens_per_s.values()) == most
    assert choice.to_dict(2)["ways"] == [one.to_dict() for one in choice.ways[:2]]
    assert {(one.schedule, one.prompts) for one in choice.ways} == {
        (name, place) for name in MIXING for place in Prompts
    }
