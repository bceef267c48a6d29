"""Requests batch after batch: one batch is what `predict` says, equal ones take the same, holes and waits count."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import few_layers, round_machine

from sim.admission import Arrivals, Lengths, Priority, RequestStream, StreamedRequest
from sim.cost import Setup
from sim.problem import Policy, Problem, Workload
from sim.schedule import by_name
from sim.simulation import predict, serve_in_batches
from traces.errors import InputError

ALIKE = Workload("alike", (32,), 20)
LONG_AFTER = 10**12
"""Nanoseconds after which every batch of these tests has ended."""


@cache
def setup_of(schedule="cgopipe", workload=ALIKE, size=4, count=2, num_devices=1, **policy):
    problem = Problem(few_layers("mixtral-8x7b", 2), round_machine(num_devices), workload)
    plan = by_name(schedule)
    batch = size if plan.system.one_batch else size * count
    return Setup(problem, plan, Policy.usual(plan, batch, size, **policy))


def serve(num_requests, workload=ALIKE, setup=None, priority=Priority.ARRIVAL, **drawn):
    stream = RequestStream.of(workload, num_requests, **drawn)
    return serve_in_batches(setup or setup_of(workload=workload), stream, priority)


def stream_of(*requests):
    """Requests as (prompt, generated, arrival in ns)."""
    made = (StreamedRequest(at, prompt, 20, tokens, when) for at, (prompt, tokens, when) in enumerate(requests))
    return RequestStream("made", tuple(made))


def ends_s(result):
    return [one.end_ns / 1e9 for one in result.requests]


@pytest.mark.parametrize("gen_len", [1, 2, 20, 90])
@pytest.mark.parametrize("schedule", ["cgopipe", "flexgen", "zero", "hybrid"])
def test_one_batch_is_what_predict_says(schedule, gen_len):
    workload = replace(ALIKE, gen_len=gen_len)
    setup = setup_of(schedule, workload)
    known = predict(setup)
    result = serve(setup.policy.batch_size, workload, setup)
    assert result.total_s == pytest.approx(known.total_s, abs=1e-9)
    assert result.first_token_s == pytest.approx((known.prefill_s,) * 3, abs=1e-9)
    assert result.throughput_tokens_per_s == pytest.approx(known.throughput_tokens_per_s)
    assert {name: lane.busy_s for name, lane in result.lanes.items()} == pytest.approx(
        {name: lane.busy_s for name, lane in known.lanes.items()}
    )
    assert result.bottleneck == known.bottleneck
    assert result.occupancy == pytest.approx(1)
    assert result.steady_tokens_per_s is None


def test_unpadded_prompts_are_balanced_as_for_one_batch():
    workload = Workload("mixed", (20, 90, 40, 70), 6)
    setup = setup_of(workload=workload)
    assert serve(8, workload, setup).total_s == pytest.approx(predict(setup).total_s, abs=1e-9)


def test_padded_prompts_are_as_long_as_the_longest():
    workload = Workload("padded", (20, 90, 40, 70), 6, padded=True)
    setup = setup_of(workload=workload)
    assert serve(8, workload, setup).total_s == pytest.approx(predict(setup).total_s, abs=1e-9)


def test_devices_that_divide_the_requests_share_a_batch():
    setup = setup_of("zero", size=8, num_devices=2)
    assert setup.num_parts == 2
    assert serve(8, setup=setup).total_s == pytest.approx(predict(setup).total_s, abs=1e-9)


def test_equal_batches_take_the_same_and_are_simulated_once():
    one, three = serve(8), serve(24)
    assert three.total_s == pytest.approx(3 * one.total_s, abs=1e-8)
    assert three.num_steps == 3 * one.num_steps
    assert three.num_simulated == one.num_simulated
    assert [lane.busy_s for lane in three.lanes.values()] == pytest.approx(
        [3 * lane.busy_s for lane in one.lanes.values()]
    )
    assert three.steady_tokens_per_s == pytest.approx(one.throughput_tokens_per_s)
    firsts = [request.first_token_s for request in three.requests]
    assert firsts[8::8] == pytest.approx([firsts[0] + wave * one.total_s for wave in (1, 2)])


def test_the_last_batch_has_its_real_size():
    whole, rest = serve(8), predict(replace(setup_of(), policy=replace(setup_of().policy, batch_size=3)))
    result = serve(11)
    assert result.total_s == pytest.approx(whole.total_s + rest.total_s, abs=1e-8)
    assert result.occupancy == pytest.approx((8 * whole.total_s + 3 * rest.total_s) / (8 * result.total_s))
    assert result.steady_tokens_per_s == pytest.approx(whole.throughput_tokens_per_s)


def test_who_ends_early_leaves_a_hole_and_the_batch_lasts_as_long_as_its_longest():
    alone = serve(8)
    uneven = serve_in_batches(setup_of(), stream_of(*[(32, 5, 0)] * 4, *[(32, 20, 0)] * 4))
    assert uneven.total_s == pytest.approx(alone.total_s, abs=1e-9)
    early, late = uneven.requests[0], uneven.requests[-1]
    assert early.first_token_ns == late.first_token_ns < early.end_ns < late.end_ns
    share = early.end_ns / late.end_ns
    assert uneven.occupancy == pytest.approx((1 + share) / 2)
    assert uneven.generated_tokens == 100


def test_a_batch_whose_longest_is_short_ends_sooner():
    short = serve_in_batches(setup_of(), stream_of(*[(32, 5, 0)] * 8))
    assert short.total_s == pytest.approx(predict(setup_of(workload=replace(ALIKE, gen_len=5))).total_s, abs=1e-9)


def test_memory_is_counted_for_all_that_they_may_generate():
    capacity = setup_of().memory.peak_bytes()["host"]
    problem = setup_of().problem
    small = replace(problem, hardware=round_machine(host_memory__capacity=float(capacity - 1)))
    with pytest.raises(InputError, match="host memory is 1 bytes short"):
        serve_in_batches(replace(setup_of(), problem=small), stream_of(*[(32, 5, 0)] * 8))


def test_a_batch_waits_until_it_is_full_or_nobody_is_left_to_come():
    """Nine at once; the ninth of ten then waits for the last one to come, though the device is free."""
    times = (*[0] * 9, 4 * LONG_AFTER)
    result = serve(10, arrivals=Arrivals(times_ns=times))
    first, second = result.requests[7], result.requests[8]
    assert first.end_ns < LONG_AFTER
    assert second.first_token_ns > 4 * LONG_AFTER
    assert second.first_token_s == pytest.approx(4000 + result.requests[9].first_token_s)


def test_the_longest_prompts_of_those_that_wait_come_first_where_that_is_asked():
    made = [(10 * (at + 1), 20, 0) for at in range(16)]
    setup = setup_of(workload=Workload("average", (160,), 20))
    by_arrival = serve_in_batches(setup, stream_of(*made))
    longest = serve_in_batches(setup, stream_of(*made), Priority.LONGEST)
    assert max(one.end_ns for one in by_arrival.requests[:8]) < by_arrival.requests[8].first_token_ns
    assert max(one.end_ns for one in longest.requests[8:]) < longest.requests[0].first_token_ns


def test_a_prompt_longer_than_the_usual_room_has_a_batch_all_the_same():
    """Room for the average prompt is less than the longest one needs."""
    setup = setup_of(workload=Workload("average", (10,), 20), size=1, count=2)
    result = serve_in_batches(setup, stream_of((500, 20, 0), (10, 20, 0), (500, 20, 0)))
    assert [one.num_tokens for one in result.requests] == [20, 20, 20]


def test_who_finds_no_room_in_the_kv_cache_waits_for_the_next_batch():
    """Micro-batches of 4 × (100 + 20) tokens hold two requests of 200 + 20; the four that are left are one of four."""
    setup = setup_of(workload=Workload("average", (100,), 20))
    result = serve_in_batches(setup, stream_of(*[(200, 20, 0)] * 8))
    assert [one.id for one in result.requests] == list(range(8))
    starts = sorted({one.first_token_ns for one in result.requests})
    assert [sum(one.first_token_ns == start for one in result.requests) for start in starts] == [4, 2, 2]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.sampled_from(["constant", "lognormal:6,0.8", "lognormal:19,2"]),
    st.sampled_from(["at-once", "poisson:3/s", "poisson:900/s"]),
    st.sampled_from(Priority),
    st.integers(0, 3),
)
def test_every_request_has_its_tokens(count, lengths, arrivals, priority, seed):
    workload = Workload("mixed", (20, 90, 40, 70, 33), 20)
    drawn = {"lengths": Lengths.parse(lengths), "arrivals": Arrivals.parse(arrivals), "seed": seed}
    stream = RequestStream.of(workload, count, **drawn)
    result = serve_in_batches(setup_of(workload=workload), stream, priority)
    assert [(one.id, one.num_tokens) for one in result.requests] == [
        (one.id, one.generated_tokens) for one in stream.requests
    ]
    assert all(one.arrival_ns < one.first_token_ns <= one.end_ns for one in result.requests)
    assert all(0 < one.first_token_s <= one.whole_s for one in result.requests)
    assert result.throughput_tokens_per_s * result.total_s == pytest.approx(stream.generated_tokens)
    assert 0 < result.occupancy <= 1 + 1e-9
    assert all(lane.utilisation <= 1 + 1e-9 for lane in result.lanes.values())
    assert result.goodput() * result.total_s == pytest.approx(count)
