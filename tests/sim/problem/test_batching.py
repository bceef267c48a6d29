from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from sim.problem import Batch, MicroBatch, Workload, make_batch
from traces.errors import InputError

AMPLE = 10**9
LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=30).map(tuple)
SIZES = st.integers(1, 60)
CAPACITIES = st.integers(1, 12)


def of(*lengths):
    return MicroBatch(len(lengths), sum(lengths), sum(length * length for length in lengths), max(lengths))


def workload_of(lengths, gen_len=3, padded=False):
    return Workload("w", tuple(lengths), gen_len, padded)


def algorithm_2(lengths, capacity, gen_len, budget):
    """Algorithm 2 as the paper prints it, with plain lists: (micro-batches, requests that wait)."""
    open_ones, closed, waiting = [[] for _ in range(-(-len(lengths) // capacity))], [], 0
    for length in sorted(lengths, reverse=True):
        fewest = min(open_ones, key=sum, default=None)
        if fewest is None or sum(fewest) + length + (1 + len(fewest)) * gen_len > budget:
            waiting += 1
            continue
        fewest.append(length)
        if len(fewest) == capacity:
            open_ones = [one for one in open_ones if one is not fewest]
            closed.append(fewest)
    return [one for one in closed + open_ones if one], waiting


# Hand-computed examples


def test_each_request_goes_to_the_open_micro_batch_with_the_fewest_tokens():
    # 9 | 7 -> 9 | 7 6 -> 9 5 | 7 6 -> 9 5 | 7 6 4 (closed: 17 tokens, room for no fourth) -> 9 5 3 | 7 6 4
    batch = make_batch(workload_of((3, 9, 4, 7, 5, 6)), 6, 3, AMPLE)
    assert batch.micro_batches == (of(9, 5, 3), of(7, 6, 4))
    assert batch.micro_batches[0] == MicroBatch(3, 17, 81 + 25 + 9, 9)
    assert (batch.num_requests, batch.num_deferred, batch.gen_len) == (6, 0, 3)
    assert (batch.prompt_tokens, batch.generated_tokens) == (34, 18)


def test_a_request_that_would_overflow_the_budget_waits_and_a_shorter_one_takes_its_place():
    # gen_len 2, budget 22: the 4 would make 7 + 6 + 4 + 3 x 2 = 23; the 3 makes 22 and closes that micro-batch.
    batch = make_batch(workload_of((9, 7, 6, 5, 4, 3), gen_len=2), 6, 3, kv_budget_tokens=22)
    assert batch.micro_batches == (of(9, 5), of(7, 6, 3))
    assert (batch.num_requests, batch.num_deferred) == (5, 1)


def test_the_default_budget_is_that_of_the_average_prompt():
    # mean 34 / 6, so 3 x (34 / 6 + 2) = 23 tokens: exactly what both micro-batches of the first example need.
    batch = make_batch(workload_of((9, 7, 6, 5, 4, 3), gen_len=2), 6, 3)
    assert batch.num_deferred == 0
    # Mean 4, so 2 x (4 + 1) = 10 tokens: 9 + 1 fills one micro-batch, 5 and a 1 close the other; the last 1 waits.
    batch = make_batch(workload_of((9, 1, 1, 5), gen_len=1), 4, 2)
    assert batch.micro_batches == (of(9), of(5, 1))
    assert batch.num_deferred == 1


def test_padded_requests_fill_one_micro_batch_after_the_other():
    batch = make_batch(workload_of((2, 5, 3), padded=True), 10, 4)
    assert batch.micro_batches == (of(5, 5, 5, 5), of(5, 5, 5, 5), of(5, 5))
    assert batch.num_deferred == 0


def test_padded_requests_that_the_budget_cannot_hold_wait():
    # 5 + 3 tokens each, 17 a micro-batch: two requests in each of the three.
    batch = make_batch(workload_of((5,), padded=True), 10, 4, kv_budget_tokens=17)
    assert batch.micro_batches == (of(5, 5),) * 3
    assert batch.num_deferred == 4


def test_context_grows_by_one_token_per_request_and_step():
    micro_batch = of(9, 5, 3)
    assert [micro_batch.context_tokens(step) for step in (0, 1, 2, 127)] == [17, 20, 23, 17 + 3 * 127]


def test_prompts_padded_to_the_longest_are_all_as_long_as_it():
    padded = MicroBatch.padded([3, 7, 5])
    assert padded == MicroBatch(3, 3 * 7, 3 * 7**2, 7, padding_tokens=4 + 2)
    assert of(3, 7, 5).padding_tokens == 0


def test_requests_in_order_are_padded_within_their_micro_batch_whatever_the_budget():
    batch = make_batch(replace(workload_of([9, 7, 7, 3, 2]), in_order=True, sampled=True), 5, 2)
    assert batch == Batch((MicroBatch(2, 18, 162, 9, 2), MicroBatch(2, 14, 98, 7, 4), of(2)), 0, 3, sampled=True)


def test_one_request_is_a_batch():
    assert make_batch(workload_of((8,)), 1, 64).micro_batches == (of(8),)


def test_micro_batches_that_stay_empty_are_dropped():
    # Three micro-batches of one request; only the 2 fits a budget of 5 tokens with 3 generated ones.
    batch = make_batch(workload_of((9, 9, 2)), 3, 1, kv_budget_tokens=5)
    assert batch.micro_batches == (of(2),)
    assert batch.num_deferred == 2


# Properties


@given(LENGTHS, SIZES, CAPACITIES, st.integers(1, 50), st.integers(0, 3000))
def test_the_split_is_that_of_algorithm_2(lengths, size, capacity, gen_len, room):
    workload = workload_of(lengths, gen_len)
    budget = min(lengths[:size]) + gen_len + room
    batch = make_batch(workload, size, capacity, budget)
    expected, waiting = algorithm_2(workload.requests(size), capacity, gen_len, budget)
    assert Counter(batch.micro_batches) == Counter(of(*lengths) for lengths in expected)
    assert batch.num_deferred == waiting


@given(LENGTHS, SIZES, CAPACITIES, st.booleans())
def test_no_token_is_lost_when_the_budget_is_ample(lengths, size, capacity, padded):
    workload = workload_of(lengths, padded=padded)
    requests, batch = workload.requests(size), make_batch(workload, size, capacity, AMPLE)
    assert batch.num_deferred == 0
    assert batch.num_requests == size
    assert len(batch.micro_batches) == -(-size // capacity)
    assert batch.prompt_tokens == sum(requests)
    assert sum(micro_batch.prompt_tokens_squared for micro_batch in batch.micro_batches) == sum(r * r for r in requests)
    assert max(micro_batch.max_prompt_tokens for micro_batch in batch.micro_batches) == max(requests)


@given(st.builds(workload_of, LENGTHS, st.integers(1, 50), st.booleans()), SIZES, CAPACITIES, st.integers(0, 3000))
def test_sizes_and_budget_are_respected(workload, size, capacity, room):
    gen_len = workload.gen_len
    budget = min(workload.requests(size)) + gen_len + room
    batch = make_batch(workload, size, capacity, budget)
    assert batch.num_requests + batch.num_deferred == size
    assert len(batch.micro_batches) <= -(-size // capacity)
    for micro_batch in batch.micro_batches:
        assert 1 <= micro_batch.num_requests <= capacity
        assert micro_batch.context_tokens(gen_len) <= budget


@given(LENGTHS, SIZES, CAPACITIES)
def test_no_micro_batch_is_ahead_of_an_open_one_by_more_than_its_last_request(lengths, size, capacity):
    # Its last request, at most as long as its average one, was added while it had the fewest tokens.
    micro_batches = make_batch(workload_of(lengths), size, capacity, AMPLE).micro_batches
    for open_one in (one for one in micro_batches if one.num_requests < capacity):
        for one in micro_batches:
            assert one.prompt_tokens * (one.num_requests - 1) <= open_one.prompt_tokens * one.num_requests


@given(st.permutations(range(1, 25)), CAPACITIES)
def test_the_order_of_arrival_does_not_matter(lengths, capacity):
    in_order = make_batch(workload_of(sorted(lengths)), 24, capacity)
    assert make_batch(workload_of(lengths), 24, capacity) == in_order


# Against the published runs: MoE-Lightning's artifact, MT-bench without padding, requests finished per batch


@pytest.mark.parametrize(
    ("capacity", "num_micro_batches", "gen_len", "finished"),
    [(164, 19, 32, 3097), (164, 19, 64, 3097), (100, 15, 256, 1485), (164, 16, 128, 2608)],
)
def test_admits_as_many_mtbench_requests_as_the_published_run(capacity, num_micro_batches, gen_len, finished):
    workload = Workload.load("mtbench").with_(gen_len=gen_len)
    batch = make_batch(workload, capacity * num_micro_batches, capacity)
    assert batch.num_requests == finished
    assert len(batch.micro_batches) == num_micro_batches


@pytest.mark.parametrize(
    ("capacity", "num_micro_batches", "gen_len", "finished"),
    # The last row is a second run of the configuration of the last row above: it deferred none.
    [(164, 14, 128, 2296), (324, 14, 32, 4494), (164, 16, 128, 2624)],
)
def test_admits_nearly_as_many_in_the_other_published_runs(capacity, num_micro_batches, gen_len, finished):
    workload = Workload.load("mtbench").with_(gen_len=gen_len)
    batch = make_batch(workload, capacity * num_micro_batches, capacity)
    assert batch.num_requests == pytest.approx(finished, rel=0.007)


def test_balances_mtbench_to_within_two_percent_where_order_of_arrival_misses_five():
    capacity, num_micro_batches = 164, 19
    workload = Workload.load("mtbench")
    tokens = [one.prompt_tokens for one in make_batch(workload, capacity * num_micro_batches, capacity).micro_batches]
    assert max(tokens) / min(tokens) < 1.02
    requests = workload.requests(capacity * num_micro_batches)
    unsorted = [sum(requests[j * capacity : (j + 1) * capacity]) for j in range(num_micro_batches)]
    assert max(unsorted) / min(unsorted) > 1.05


# Mistakes


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "field"),
    [
        (8, 0, "micro-batch-size: 0"),
        (8, -1, "micro-batch-size: -1"),
        (8, 1.5, "micro-batch-size: 1.5"),
        (0, 8, "batch-size: 0"),
        (True, 8, "batch-size: True"),
    ],
)
def test_sizes_below_one_are_refused_by_name(batch_size, micro_batch_size, field):
    with pytest.raises(InputError) as caught:
        make_batch(workload_of((5,)), batch_size, micro_batch_size)
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize("padded", [True, False])
def test_a_budget_that_holds_no_request_is_refused(padded):
    with pytest.raises(InputError, match=r"kv budget of 7 tokens .* the shortest needs 8 ") as caught:
        make_batch(workload_of((5,), padded=padded), 4, 2, kv_budget_tokens=7)
    assert "\n" not in str(caught.value)
