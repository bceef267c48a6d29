"""A stream in simulated time: every request has its tokens, steps that are alike are simulated once, limits hold."""

from dataclasses import replace
from itertools import pairwise

import pytest
from sim_examples import few_layers, round_machine

from sim.admission import (
    Admission,
    Arrivals,
    Composition,
    Decoding,
    KvLayers,
    Lengths,
    Priority,
    RequestStream,
    StreamedRequest,
    attention_slowdown,
)
from sim.cost import CostModel
from sim.problem import Batch, MicroBatch, Policy, Problem, Workload
from sim.schedule import CPU, GPU, H2D, MemoryPart, Op, Place, Task, by_name, layout_of
from sim.simulation import Simulation
from sim.simulation.stream import Quantiles, RequestTimes, StepTimes, StreamResult, StreamSetup, serve_stream
from sim.simulation.stream.steps import WorkCosts
from traces.errors import InputError

WORKLOAD = Workload("short", (30, 70), 6)


def setup_of(
    schedule="cgopipe", *, machine=None, workload=WORKLOAD, chunk=64, num_prompts=1, size=4, count=2, **policy
):
    problem = Problem(few_layers("mixtral-8x7b", 2), machine or round_machine(), workload)
    plan = by_name(schedule)
    return StreamSetup(problem, plan, Policy.usual(plan, 2 * size, size, **policy), chunk, num_prompts)


def whole_run_ns(setup, stream):
    """All steps of a stream that comes at once in one simulation, each with its own costs."""
    admission, compositions, has, ended = Admission(setup.rules()), [], {}, []
    for request in stream.requests:
        admission.arrive(request)
    while not (composition := admission.step(ended)).is_empty:
        compositions.append(composition)
        for id_ in composition.gives_tokens_to:
            has[id_] = has.get(id_, 0) + 1
        ended = [id_ for id_ in composition.gives_tokens_to if has[id_] == stream.requests[id_].generated_tokens]
    costs = [WorkCosts(setup.sizes(one)) for one in compositions]
    steps = setup.schedule.steps(setup.shape, 1, 1 + len(costs), last=1 + len(costs))
    ends = []
    Simulation(
        steps,
        lambda task: costs[min(task.step, len(costs)) - 1](task),
        costs[0].model.capacities,
        on_step=lambda use: ends.append(use.end_ns),
    ).run()
    return ends[-1]


@pytest.mark.parametrize("schedule", ["cgopipe", "hybrid"])
def test_steps_simulated_one_by_one_take_what_they_take_in_one_run(schedule):
    setup, stream = setup_of(schedule), RequestStream.of(WORKLOAD, 24)
    result = serve_stream(setup, stream)
    assert result.total_s == pytest.approx(whole_run_ns(setup, stream) / 1e9, rel=0.01)


@pytest.mark.parametrize("schedule", ["cgopipe", "hybrid"])
@pytest.mark.parametrize("priority", Priority)
def test_every_request_has_its_tokens_in_order(schedule, priority):
    lengths, arrivals = Lengths.parse("lognormal:4,0.6"), Arrivals.parse("poisson:20/s")
    stream = RequestStream.of(WORKLOAD, 20, lengths=lengths, arrivals=arrivals)
    result = serve_stream(setup_of(schedule), stream, priority)
    assert [(one.id, one.num_tokens) for one in result.requests] == [
        (one.id, one.generated_tokens) for one in stream.requests
    ]
    assert all(one.arrival_ns < one.first_token_ns <= one.end_ns for one in result.requests)
    assert result.generated_tokens == stream.generated_tokens
    # at the end a layer is fetched, and counted, for a step that never comes: one of two layers in about 20 steps
    assert all(result.throughput_tokens_per_s <= most for most in result.at_most_tokens_per_s.values())


def test_a_request_that_comes_alone_waits_for_nobody():
    """The second comes long after the first has gone: it has what the first one had."""
    arrivals = Arrivals(times_ns=(0, 10**12))
    workload = Workload("alike", (30,), 6)
    first, second = serve_stream(setup_of(workload=workload), RequestStream.of(workload, 2, arrivals=arrivals)).requests
    assert (first.first_token_s, first.whole_s) == pytest.approx((second.first_token_s, second.whole_s))


def test_steps_that_are_alike_are_simulated_once():
    """Twice as many requests take more passes, which are like those before."""
    workload = Workload("alike", (32,), 6)
    few, many = (serve_stream(setup_of(workload=workload), RequestStream.of(workload, n)) for n in (48, 480))
    assert many.num_steps > 5 * few.num_steps
    assert many.num_simulated <= few.num_simulated + 6


def test_prompts_beside_decode_cost_what_they_do_in_prefill_and_others_what_they_do_in_decode():
    setup = setup_of(num_prompts=1, chunk=100)
    admission = Admission(setup.rules())
    for request in RequestStream.of(Workload("alike", (100,), 6), 2).requests:
        admission.arrive(request)
    _, second = admission.step(), admission.step()
    costs, model = WorkCosts(setup.sizes(second)), CostModel(setup.sizes(second))
    prompt = Task(0, Op.ATTN, GPU, 5, 1, 0)
    assert costs(prompt).duration_ns == model(prompt._replace(step=0)).duration_ns
    assert costs(Task(0, Op.ATTN, CPU, 5, 1, 1)) == costs(Task(0, Op.ATTN, CPU, 9, 1, 1))
    assert costs(Task(0, Op.ATTN, CPU, 5, 1, 1)).flops > 0
    assert costs(Task(0, Op.ATTN, CPU, 5, 1, 2)).duration_ns == 0, "nobody decodes there yet"


def test_prompts_and_those_who_decode_cost_differently_even_if_they_are_alike_in_numbers():
    setup, one = setup_of(), MicroBatch(4, 100, 2500, 25)
    composition = next_compositions(setup, WORKLOAD, 1)[0]
    costs = CostModel(replace(setup.sizes(composition), batch=Batch((one,) * 3, 0, 2)))
    decoding, prompts = (costs(Task(0, Op.PRE_ATTN, GPU, 1, 0, j)).flops for j in (1, 0))
    assert prompts == 25 * decoding


def test_a_prompt_in_chunks_loads_what_earlier_chunks_left():
    setup = setup_of(chunk=40)
    composition = next_compositions(setup, Workload("long", (100,), 6), 2)[1]
    costs = WorkCosts(setup.sizes(composition))
    layer = setup.problem.model.layers[0]
    assert costs(Task(0, Op.LOAD_KV, GPU, 1, 0, 0)).bytes == 40 * layer.kv_bytes_per_token(16)
    assert costs(Task(0, Op.STORE_KV, GPU, 1, 0, 0)).bytes == 40 * layer.kv_bytes_per_token(16)
    pairs = (80**2 - 40**2) / 2
    assert costs(Task(0, Op.ATTN, GPU, 1, 0, 0)).flops == 2 * pairs * layer.attention.prompt_pair_width


def next_compositions(setup, workload, count):
    admission = Admission(setup.rules())
    admission.arrive(RequestStream.of(workload, 1).requests[0])
    return [admission.step() for _ in range(count)]


def test_the_context_of_who_decodes_is_read_from_the_composition():
    setup = setup_of()
    idle, shorter, longer = (
        WorkCosts(setup.sizes(Composition(9, (requests, ()), ((),))))(Task(0, Op.ATTN, CPU, 9, 0, 1)).bytes
        for requests in ((), (Decoding(0, 50), Decoding(1, 10)), (Decoding(0, 50), Decoding(1, 30)))
    )
    layer = setup.problem.model.layers[0]
    assert idle == 0
    assert (shorter, longer) == (60 * layer.kv_bytes_per_token(16), 80 * layer.kv_bytes_per_token(16))


def test_blocks_are_the_room_that_the_host_has_left():
    small, large = (setup_of(machine=round_machine(host_memory__capacity=size)) for size in (20e9, 21e9))
    assert large.num_blocks - small.num_blocks == pytest.approx(1e9 / small.block_bytes, abs=1)
    assert small.block_bytes == 64 * 2 * 2 * 2 * 8 * 128 * 1.0  # tokens, layers, K and V, two bytes, heads of 128


def test_blocks_of_layers_with_a_window_are_counted_apart():
    """Of four layers two keep ten tokens: what a block counts is the bytes of two layers."""
    model = few_layers("mixtral-8x7b", 4, window=10)
    problem = Problem(model, round_machine(host_memory__capacity=40e9), WORKLOAD)
    setup = StreamSetup(problem, by_name("cgopipe"), Policy.usual(by_name("cgopipe"), 8, 4), 64, block_tokens=16)
    assert sorted(setup.kv_layers, key=str) == [KvLayers(1, 10), KvLayers(1, None)]
    assert setup.block_bytes == 16 * 2 * model.layers[0].kv_bytes_per_token(16)
    assert setup.rules().blocks_of(70) == 1 + 5


@pytest.mark.parametrize("locks", [True, False])
def test_what_comes_over_the_link_is_page_locked_where_the_schedule_locks_it(locks, monkeypatch):
    """Of two micro-batches one: half of the blocks, and no more blocks than twice what may be locked."""
    if not locks:
        monkeypatch.setattr(type(by_name("cgopipe")), "system", replace(by_name("cgopipe").system, pins_kv=False))
        layout_of.cache_clear()
    pinned = 4e9
    setup = setup_of(machine=round_machine(host_memory__capacity=40e9, pinned=pinned), attention_on_device=0.5)
    used = sum(setup.memory.pinned.values())
    cost = WorkCosts(setup.sizes_of([MicroBatch(4, 400, 0, 0)] * 3, [0]))(Task(0, Op.LOAD_KV, H2D, 1, 0, 2))
    links = setup.problem.hardware.link
    rate = links.h2d_bytes_per_s if locks else links.h2d_pageable_bytes_per_s
    assert cost.duration_ns == pytest.approx(1e9 * (2 * links.latency_s + cost.bytes / rate), rel=0.01)
    assert setup.locked_blocks == (1 / 2 if locks else 0)
    if locks:
        assert setup.num_blocks * setup.block_bytes == pytest.approx(2 * (pinned - used), rel=0.01)
    layout_of.cache_clear()


def test_small_blocks_make_attention_on_the_host_slower_and_nothing_else():
    usual, small = (replace(setup_of(attention_on_device=0.5), block_tokens=tokens) for tokens in (64, 16))
    sizes = [one.sizes_of([MicroBatch(4, 400_000, 0, 0)] * 3, [0]) for one in (usual, small)]
    tasks = [Task(0, Op.ATTN, lane, 1, 0, j) for lane, j in ((CPU, 1), (GPU, 2), (GPU, 0))]
    slower = [WorkCosts(sizes[1])(task).duration_ns / WorkCosts(sizes[0])(task).duration_ns for task in tasks]
    assert slower == [pytest.approx(attention_slowdown(16), rel=0.01), 1, 1]


def test_earlier_chunks_leave_no_more_than_a_window_of_a_layer():
    model = few_layers("mixtral-8x7b", 4, window=10)
    plan = by_name("cgopipe")
    problem = Problem(model, round_machine(host_memory__capacity=40e9), WORKLOAD)
    setup = StreamSetup(problem, plan, Policy.usual(plan, 8, 4), 64)
    costs = WorkCosts(setup.sizes_of([MicroBatch(1, 40, 1600, 40), *[MicroBatch(4, 99, 0, 0)] * 2], [50]))
    each = model.layers[0].kv_bytes_per_token(16)
    assert [costs(Task(0, Op.LOAD_KV, H2D, 1, layer, 0)).bytes for layer in (0, 1)] == [10 * each, 50 * each]


def test_a_full_stream_holds_all_blocks_and_what_is_locked_of_them_twice_told():
    """As part of the host's memory, and of what is page-locked there."""
    setup = setup_of(machine=round_machine(host_memory__capacity=40e9, pinned=30e9), attention_on_device=0.5)
    cache, full = setup.num_blocks * setup.block_bytes, setup.full_memory
    assert (full.host[MemoryPart.KV_CACHE], full.pinned[MemoryPart.KV_CACHE]) == (cache, cache // 2)
    assert full.device == setup.memory.device


def test_quantiles_are_values_of_requests():
    assert Quantiles.of(range(1, 101)) == (50, 90, 99)
    assert Quantiles.of([3.0]) == (3, 3, 3)


def test_goodput_counts_who_met_both_limits():
    times = [RequestTimes(0, 0, 10**9, 3 * 10**9, 3), RequestTimes(1, 0, 2 * 10**9, 4 * 10**9, 2)]
    result = StreamResult(tuple(times), {}, None, 4, 4, 0, 1.0)
    assert [(one.first_token_s, one.token_s, one.whole_s) for one in times] == [(1, 1, 3), (2, 2, 4)]
    assert (result.goodput(), result.goodput(1.5), result.goodput(5, 1.5), result.goodput(1.5, 0.5)) == (
        0.5, 0.25, 0.25, 0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "zero"}, "zero: its steps cannot carry prompts beside decode; take cgopipe or hybrid"),
        ({"attention": "gpu", "kv_on_device": 1.0}, "kv_on_device: 1 in a stream"),
        ({"schedule": "hybrid", "layers_on_host": (0, 1)}, "num_prompts: 1 beside layers_on_host"),
        ({"chunk": 0}, "prefill_chunk: 0"),
        ({"machine": round_machine(2)}, "has 2 devices; streams are simulated on one"),
        ({"machine": round_machine(host_memory__capacity=1e9)}, "cgopipe in a stream: host memory is .* bytes short"),
    ],
)
def test_what_cannot_be_served_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        setup_of(**fields)


def test_compositions_of_a_stream_follow_each_other():
    steps = [one.step for one in next_compositions(setup_of(), WORKLOAD, 4)]
    assert all(later == earlier + 1 for earlier, later in pairwise(steps))


def test_step_times_know_what_lanes_did():
    setup = setup_of()
    times = StepTimes(setup)
    composition = next_compositions(setup, WORKLOAD, 1)[0]
    span = times.span_ns(None, composition)
    assert 0 < times.lanes["GPU"].busy_ns <= span
    assert times.span_ns(None, composition) == span
    assert times.num_simulated == 1
    longer = next_compositions(setup, Workload("longer", (60,), 6), 1)[0]
    one = times.lanes["GPU"].busy_ns / 2
    times.span_ns(None, longer)
    assert times.lanes["GPU"].busy_ns > 3 * one


def test_a_prompt_of_many_chunks_has_room_on_the_device_for_what_the_earlier_ones_left():
    """Twice: a layer's comes while the one before is attended to. Ten times the prompt, ten times the room."""
    short, long = (setup_of(workload=Workload("long", (tokens,), 6), chunk=50) for tokens in (95, 995))
    layer = short.problem.model.layers[0]
    assert (short.longest_tokens, long.longest_tokens) == (100, 1000)
    more = long.memory.device[MemoryPart.KV_BUFFERS] - short.memory.device[MemoryPart.KV_BUFFERS]
    assert more == 2 * 900 * layer.kv_bytes_per_token(16)


@pytest.mark.parametrize("attention", [{"attention": "cpu"}, {"attention": "gpu"}, {"attention_on_device": 0.5}])
def test_what_comes_to_the_device_never_exceeds_its_room(attention):
    """Of prompts of up to twenty chunks, and of those who decode and attend there."""
    workload = Workload("long", (1000, 30), 6)
    setup = setup_of(workload=workload, chunk=50, **attention)
    admission = Admission(setup.rules())
    for request in RequestStream.of(workload, 12).requests:
        admission.arrive(request)
    model, room = setup.problem.model, setup.memory.device[MemoryPart.KV_BUFFERS]
    loaded = [0] * setup.shape.num_micro_batches
    attending = [j for j in range(len(loaded)) if setup.shape.attends(j) is Place.GPU]
    while not (composition := admission.step()).is_empty:
        costs = WorkCosts(setup.sizes(composition))
        for j in attending:
            loaded[j] = max(loaded[j], costs(Task(0, Op.LOAD_KV, H2D, 1, 0, j)).bytes)
    landing = 2 * 50 * model.layers[0].kv_bytes_per_token(16)
    there = sum(loaded) if setup.shape.over_link else max(loaded)  # whoever comes over the link has slots of his own
    assert 2 * there + landing <= room
    if attention == {"attention": "cpu"}:
        assert 2 * there + landing > 0.9 * room


def test_the_device_has_room_for_the_longest_request_of_a_stream(monkeypatch):
    """Whatever the workload says that the setup was made for."""
    seen = []
    monkeypatch.setattr("sim.simulation.stream.serving.StepTimes", lambda setup: seen.append(setup) or StepTimes(setup))
    requests = (StreamedRequest(0, 300, 8, 8), StreamedRequest(1, 40, 90, 2))
    serve_stream(setup_of(), RequestStream("two", requests))
    assert seen[0].longest_tokens == 307


def test_experts_of_the_host_compute_prompts_too_so_that_nothing_of_them_has_room_on_the_device():
    policy = {"experts_on_host": 0.5, "experts_on_device": 0.25}
    setup = setup_of("hybrid", **policy)
    layer = setup.problem.model.layers[0]
    assert setup.memory.device[MemoryPart.WEIGHT_SLOTS] == 2 * 2 * layer.expert_bytes(16)
    assert setup.policy.prefill_experts is Place.CPU


@pytest.mark.parametrize("schedule", ["cgopipe", "hybrid"])
@pytest.mark.parametrize(("num_requests", "gen_len"), [(1, 1), (1, 6), (10, 2)])
def test_no_lane_works_longer_than_the_stream_lasts(schedule, num_requests, gen_len):
    """A step fetches for the one behind it; behind the last there is none, whatever binds."""
    asked = replace(WORKLOAD, gen_len=gen_len)
    for rate in (1e9, 1e10):
        setup = setup_of(schedule, machine=round_machine(link__h2d=rate), workload=asked)
        result = serve_stream(setup, RequestStream.of(asked, num_requests))
        assert max(lane.utilisation for lane in result.lanes.values()) <= 1
        assert result.throughput_tokens_per_s <= min(result.at_most_tokens_per_s.values())
