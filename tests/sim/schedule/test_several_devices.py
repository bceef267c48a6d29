"""Schedules that give each device a part of the batch: pipelines of stages, and parameters gathered from peers."""

import pytest
from sim_examples import made_setup, one_task, round_machine

from sim.cost import CPU_CORES, DRAM
from sim.schedule import Op
from sim.simulation import predict

US = 1000


def test_each_device_works_on_its_part_of_the_batch_and_counts_for_all():
    alone, two = made_setup("flexgen", 2, 3), made_setup("flexgen", 2, 3, machine=round_machine(2))
    assert [one.num_requests for one in alone.batch.micro_batches] == [2, 2, 2]
    assert [one.num_requests for one in two.batch.micro_batches] == [2, 1]
    assert (two.num_ranks, two.batch.num_requests) == (1, 6)
    assert two.batch.generated_tokens == alone.batch.generated_tokens


def test_tensor_parallelism_keeps_the_batch_whole():
    two = made_setup("cgopipe", 2, 3, machine=round_machine(2))
    assert (two.num_ranks, len(two.batch.micro_batches), two.batch.copies) == (2, 3, 1)


def test_two_stages_with_twice_the_requests_take_as_long_as_one_device():
    """The host has room for both, so nothing is shared that slows down."""
    alone = predict(made_setup("flexgen", 2, 2), compiled=True)
    two = predict(made_setup("flexgen", 2, 4, machine=round_machine(2)), compiled=True)
    assert two.total_s == pytest.approx(alone.total_s, rel=1e-3)
    assert two.throughput_tokens_per_s == pytest.approx(2 * alone.throughput_tokens_per_s, rel=1e-3)


@pytest.mark.parametrize("name", ["flexgen", "flexgen-c", "zero"])
def test_the_fast_path_agrees_with_the_simulator(name):
    setup = made_setup(name, 4, 2, machine=round_machine(2))
    assert predict(setup, compiled=True).total_s == pytest.approx(predict(setup).total_s, rel=1e-9)


def test_the_host_is_divided_among_devices_that_attend_at_once():
    one, two = (made_setup("flexgen-c", 4, 2, machine=round_machine(n)).costs() for n in (1, 2))
    for pool in (DRAM, CPU_CORES):
        assert two.capacities[pool] * 2 == one.capacities[pool]


def test_gathered_weights_come_half_from_the_host_and_half_from_the_peer():
    alone, two = (made_setup("zero", 4, 4, machine=round_machine(n)) for n in (1, 2))
    task = one_task(Op.LOAD_WEIGHTS_PAGEABLE)
    whole, shared = alone.costs()(task), two.costs()(task)
    network = two.problem.hardware.network
    link = two.problem.hardware.link
    fixed = link.latency_s + network.latency_s
    moved = whole.bytes / 2
    expected = fixed + moved / link.h2d_pageable_bytes_per_s + moved / network.bandwidth_bytes_per_s
    assert shared.bytes == whole.bytes
    assert shared.duration_ns * 1e-9 == pytest.approx(expected, rel=1e-6)


def test_flexgens_cpu_attention_moves_its_expanded_copy_too():
    """16-bit cache, 32-bit copies for each query head: 1 + 3 × 2 × group times the cache's bytes."""
    reads, expands = (
        made_setup(name, 4, 2).costs()(one_task(Op.ATTN, on_cpu=True)) for name in ("cgopipe", "flexgen-c")
    )
    attention = made_setup().problem.model.layers[0].attention
    group = attention.num_query_heads / attention.num_kv_heads
    assert expands.bytes == pytest.approx((1 + 6 * group) * reads.bytes, abs=1)
    assert expands.flops == reads.flops
