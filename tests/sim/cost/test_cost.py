"""What one task costs: every formula against numbers worked out by hand.

The arithmetic is written out from the published dimensions of the models (Mixtral 8x7B: hidden size 4096, 32 query and
8 KV heads of 128, 8 experts of width 14336, 2 of them a token) and from the rates of the machine in `sim_examples`.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from mixtral_sizes import D1_BYTES, D2_BYTES, EXPERT_BYTES, EXPERTS_BYTES, KV_BYTES, QKV_WEIGHTS, ROUTER_WEIGHTS
from sim_examples import (
    cost_of,
    few_layers,
    made_setup,
    one_task,
    preset,
    round_machine,
    with_hand_over,
    with_unpacking,
)

from sim.cost import CPU_CORES, DRAM
from sim.cost.pools import ALL_CORES, hbm, link
from sim.problem import Batch, Emulation, MicroBatch, Placement, Quantity, Workload
from sim.schedule import WHOLE, Op

US = 1e3  # nanoseconds
SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)


def demand(cost, pool):
    """What a task asks of a pool, per second; 0 if nothing."""
    return dict(cost.demands).get(pool, 0)


def carried(cost, pool):
    """What a task takes out of a pool altogether."""
    return demand(cost, pool) * cost.duration_ns * 1e-9


class TestCopies:
    """Latency (30 µs) of each tensor and bytes over the rate of the direction."""

    def test_d1_is_query_key_and_value_of_each_request(self):
        assert D1_BYTES == 12_288
        cost = cost_of(one_task(Op.OFFLOAD_QKV))
        assert cost.bytes == 8 * D1_BYTES
        assert cost.duration_ns == pytest.approx(3 * 30 * US + 8 * D1_BYTES / 8, abs=1)

    def test_d2_is_the_attention_output_of_each_request(self):
        assert D2_BYTES == 8_192
        cost = cost_of(one_task(Op.LOAD_HIDDEN))
        assert cost.bytes == 8 * D2_BYTES
        assert cost.duration_ns == pytest.approx(30 * US + 8 * D2_BYTES / 10, abs=1)

    @pytest.mark.parametrize(("op", "rate"), [(Op.LOAD_HIDDEN, 10), (Op.STORE_HIDDEN, 8)])
    def test_prefill_moves_the_hidden_states_of_whole_prompts(self, op, rate):
        cost = cost_of(one_task(op, step=0, layer=1))
        assert cost.bytes == 800 * D2_BYTES
        assert cost.duration_ns == pytest.approx(30 * US + 800 * D2_BYTES / rate, abs=1)

    def test_the_cache_that_is_loaded_ends_with_the_token_before(self):
        for step, tokens in ((1, 800), (2, 808), (3, 816)):
            cost = cost_of(one_task(Op.LOAD_KV, step=step), schedule="flexgen")
            assert cost.bytes == tokens * KV_BYTES
            assert cost.duration_ns == pytest.approx(2 * 30 * US + tokens * KV_BYTES / 4, abs=1), "pageable: 4 GB/s"

    def test_prefill_stores_the_prompts_cache_and_decode_one_token_a_request(self):
        for step, tokens in ((0, 800), (1, 8), (3, 8)):
            cost = cost_of(one_task(Op.STORE_KV, step=step), schedule="flexgen")
            assert cost.bytes == tokens * KV_BYTES
            assert cost.duration_ns == pytest.approx(2 * 30 * US + tokens * KV_BYTES / 2, abs=1), "pageable: 2 GB/s"

    def test_a_cache_that_is_page_locked_moves_at_the_full_rate(self):
        loaded = cost_of(one_task(Op.LOAD_KV), attention="gpu")
        stored = cost_of(one_task(Op.STORE_KV), attention="gpu")
        assert loaded.duration_ns == pytest.approx(2 * 30 * US + 800 * KV_BYTES / 10, abs=1)
        assert stored.duration_ns == pytest.approx(2 * 30 * US + 8 * KV_BYTES / 8, abs=1)
        assert (loaded.bound, stored.bound) == ("link h2d", "copy latency")

    def test_beside_attention_on_the_cpu_it_lands_page_locked_and_is_copied_into_the_cache(self):
        cost = cost_of(one_task(Op.STORE_KV, step=0))
        assert cost.bytes == 800 * KV_BYTES
        assert cost.duration_ns == pytest.approx(2 * 30 * US + 800 * KV_BYTES / 8 + 800 * KV_BYTES / 5, abs=1)
        assert carried(cost, DRAM) == pytest.approx(3 * 800 * KV_BYTES)

    def test_the_share_of_the_cache_on_the_device_is_not_moved(self):
        for op, step in ((Op.LOAD_KV, 1), (Op.STORE_KV, 0), (Op.STORE_KV, 2)):
            whole = cost_of(one_task(op, step), schedule="flexgen")
            part = cost_of(one_task(op, step), schedule="flexgen", kv_on_device=0.75)
            assert part.bytes * 4 == whole.bytes

    def test_of_eight_requests_with_half_their_cache_but_one_on_the_device_five_move(self):
        for op, step, tokens in ((Op.LOAD_KV, 1, 500), (Op.STORE_KV, 0, 500), (Op.STORE_KV, 2, 5)):
            assert cost_of(one_task(op, step), schedule="flexgen", kv_on_device=0.49).bytes == tokens * KV_BYTES

    def test_weights_move_at_the_rate_of_the_memory_they_come_from(self):
        pinned, pageable = (cost_of(one_task(op)) for op in (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE))
        assert pinned.bytes == pageable.bytes == EXPERTS_BYTES == 2_818_572_288
        assert pinned.duration_ns == pytest.approx(30 * US + EXPERTS_BYTES / 10, abs=1)
        assert pageable.duration_ns == pytest.approx(30 * US + EXPERTS_BYTES / 4, abs=1)
        assert (pinned.bound, pageable.bound) == ("link h2d", "link h2d pageable")

    def test_a_pin_copy_has_its_own_rate_and_the_host_s_latency(self):
        cost = cost_of(one_task(Op.PIN_WEIGHTS))
        assert cost.bytes == EXPERTS_BYTES
        assert cost.duration_ns == pytest.approx(20_000 + EXPERTS_BYTES / 5, abs=1)
        assert cost.bound == "pin copy"

    def test_devices_that_copy_on_all_cores_share_the_rate_of_the_pin_copy(self):
        alone, apart, together = (
            cost_of(one_task(Op.PIN_WEIGHTS), machine=replace(round_machine(ranks), pin_shared=shared)).duration_ns
            for ranks, shared in ((1, True), (2, False), (2, True))
        )
        assert alone - 20_000 == pytest.approx(2 * (apart - 20_000), abs=2)  # each copies half of the bytes
        assert together == pytest.approx(alone, abs=2)

    def test_schedules_that_stream_all_weights_stream_the_rest_of_the_layer_too(self):
        attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
        rest = 2 * (attention + ROUTER_WEIGHTS + 2 * 4096)  # with two norms
        assert cost_of(one_task(Op.LOAD_WEIGHTS_PAGEABLE), schedule="zero").bytes == EXPERTS_BYTES + rest

    def test_resident_experts_are_not_streamed(self):
        for share, streamed in ((0.25, 6), (0.24, 7), (1.0, 0)):
            cost = cost_of(one_task(Op.LOAD_WEIGHTS), experts_on_device=share)
            assert cost.bytes == streamed * EXPERT_BYTES

    @given(
        pages=st.integers(1, 400),
        share=st.sampled_from([0.0, 0.125, 0.5]),
        bits=st.sampled_from([16.0, 8.0, 4.25]),
        op=st.sampled_from([Op.LOAD_WEIGHTS, Op.PIN_WEIGHTS]),
    )
    @SETTINGS
    def test_pages_add_up_to_the_streamed_bytes_and_differ_by_one_at_most(self, pages, share, bits, op):
        setup = made_setup(pages=pages, experts_on_device=share, weight_bits=bits)
        costs = setup.costs()
        sizes = [costs(one_task(op, page=page)).bytes for page in range(pages)]
        assert sum(sizes) == costs(one_task(op, page=WHOLE)).bytes
        assert sum(sizes) == Placement.of(setup.policy, setup.schedule, setup.problem.model).streamed_bytes(0)
        assert max(sizes) - min(sizes) <= 1


class TestShares:
    """Weights of which a share is page-locked where they live; the link takes 10 GB/s, pageable 4, the pin copy 5."""

    def test_a_pin_copy_moves_what_lies_behind_the_locked_bytes(self):
        page = EXPERTS_BYTES // 4
        found = [cost_of(one_task(Op.PIN_WEIGHTS, page=at), pages=4, pin_weights=0.375) for at in range(4)]
        assert [cost.bytes for cost in found] == [0, page // 2, page, page]
        assert [cost.duration_ns for cost in found] == [
            pytest.approx(20_000 + size / 5, abs=1) for size in (0, page // 2, page, page)
        ]
        assert (found[0].bound, found[1].bound) == ("launch latency", "pin copy")

    def test_a_page_takes_the_link_as_long_whether_it_was_staged_or_not(self):
        for at in range(4):
            staged, locked = (
                cost_of(one_task(Op.LOAD_WEIGHTS, page=at), pages=4, pin_weights=pin) for pin in (0.375, 1.0)
            )
            assert staged == locked

    @pytest.mark.parametrize("name", ["cgopipe", "zero"])
    def test_weights_in_place_are_page_locked_for_a_part_of_the_way(self, name):
        whole = cost_of(one_task(Op.LOAD_WEIGHTS), schedule=name, pin_weights=1.0).bytes
        locked = int(0.375 * whole) // 4096 * 4096
        cost = cost_of(one_task(Op.LOAD_WEIGHTS_PAGEABLE), schedule=name, pin_weights=0.375)
        assert cost.bytes == whole
        assert cost.duration_ns == pytest.approx(30 * US + locked / 10 + (whole - locked) / 4, abs=1)
        assert carried(cost, DRAM) == pytest.approx(locked + 3 * (whole - locked))

    def test_two_devices_stage_their_parts_of_a_page(self):
        costs = made_setup(pages=3, pin_weights=0.5, machine=round_machine(2)).costs()
        sizes = [costs(one_task(Op.PIN_WEIGHTS, page=at, rank=rank)).bytes for at in range(3) for rank in (0, 1)]
        assert sum(sizes) == pytest.approx(EXPERTS_BYTES / 2, abs=6)
        assert sizes[:2] == [0, 0]

    @given(pages=st.integers(1, 40), share=st.floats(0, 1), bits=st.sampled_from([16.0, 4.25]))
    @SETTINGS
    def test_pages_stage_together_what_is_not_page_locked(self, pages, share, bits):
        setup = made_setup(pages=pages, pin_weights=share, weight_bits=bits)
        costs, whole = (
            setup.costs(),
            Placement.of(setup.policy, setup.schedule, setup.problem.model).streamed_bytes(0),
        )
        staged = [costs(one_task(Op.PIN_WEIGHTS, page=page)).bytes for page in range(pages)]
        assert sum(staged) == whole - setup.policy.locked_bytes(whole) == costs(one_task(Op.PIN_WEIGHTS)).bytes


def test_a_hand_over_is_whole_nanoseconds_and_none_is_nothing():
    assert made_setup(machine=with_hand_over(round_machine(), 120.0004)).costs().hand_over_ns == 120_000
    assert made_setup().costs().hand_over_ns == 0


class TestTraffic:
    """What a task draws from the pools that lanes share."""

    def test_a_pinned_copy_crosses_each_memory_and_the_link_once(self):
        cost = cost_of(one_task(Op.LOAD_WEIGHTS))
        for pool in (DRAM, hbm(0), link(0)):
            assert carried(cost, pool) == pytest.approx(EXPERTS_BYTES, rel=1e-6)

    def test_a_pageable_copy_takes_three_times_its_bytes_from_the_hosts_memory(self):
        cost = cost_of(one_task(Op.LOAD_WEIGHTS_PAGEABLE))
        assert carried(cost, DRAM) == pytest.approx(3 * EXPERTS_BYTES, rel=1e-6)
        assert carried(cost, link(0)) == pytest.approx(EXPERTS_BYTES, rel=1e-6)
        assert carried(cost, hbm(0)) == pytest.approx(EXPERTS_BYTES, rel=1e-6)

    def test_a_pin_copy_reads_and_writes_the_hosts_memory_and_nothing_else(self):
        cost = cost_of(one_task(Op.PIN_WEIGHTS))
        assert carried(cost, DRAM) == pytest.approx(2 * EXPERTS_BYTES, rel=1e-6)
        assert len(cost.demands) == 1

    def test_cpu_attention_takes_all_cores_and_the_cache_from_dram(self):
        cost = cost_of(one_task(Op.ATTN, on_cpu=True))
        assert demand(cost, CPU_CORES) == ALL_CORES
        assert carried(cost, DRAM) == pytest.approx(808 * KV_BYTES, rel=1e-5)
        assert len(cost.demands) == 2

    def test_a_kernel_draws_on_its_own_devices_memory_only(self):
        for op in (Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.HEAD):
            cost = cost_of(one_task(op))
            assert [pool for pool, _ in cost.demands] == [hbm(0)]
            assert carried(cost, hbm(0)) == pytest.approx(cost.bytes, rel=1e-4)

    def test_capacities_are_those_of_the_machine(self):
        assert list(made_setup().costs().capacities) == [100e9, ALL_CORES, 1e12, 16e9]
        two = made_setup(machine=round_machine(2)).costs().capacities
        assert list(two) == [100e9, ALL_CORES, 1e12, 16e9, 1e12, 16e9]

    def test_each_rank_draws_on_its_own_pools(self):
        costs = made_setup(machine=round_machine(2)).costs()
        first, second = (costs(one_task(Op.LOAD_WEIGHTS, rank=rank)) for rank in (0, 1))
        assert first.duration_ns == second.duration_ns
        assert {pool for pool, _ in first.demands} == {DRAM, hbm(0), link(0)}
        assert {pool for pool, _ in second.demands} == {DRAM, hbm(1), link(1)}
        assert len({DRAM, CPU_CORES, hbm(0), link(0), hbm(1), link(1)}) == 6
        assert {pool for pool, _ in costs(one_task(Op.PRE_ATTN, rank=1)).demands} == {hbm(1)}


class TestKernels:
    """Launch (10 µs) and, of each part, the longer of FLOPs and bytes over the rates its class reaches."""

    def test_pre_attn_in_decode_reads_its_weights(self):
        cost = cost_of(one_task(Op.PRE_ATTN))
        moved = 2 * QKV_WEIGHTS + 8 * (D2_BYTES + D1_BYTES)
        assert cost.flops == 2 * 8 * QKV_WEIGHTS
        assert cost.bytes == moved
        assert cost.duration_ns == pytest.approx(10 * US + moved / 500, abs=1)
        assert cost.bound == "device memory"

    def test_pre_attn_in_prefill_computes(self):
        cost = cost_of(one_task(Op.PRE_ATTN, step=0))
        assert cost.flops == 2 * 800 * QKV_WEIGHTS
        assert cost.duration_ns == pytest.approx(10 * US + 2 * 800 * QKV_WEIGHTS / 50e3, abs=1)
        assert cost.bound == "device compute"

    def test_attention_on_the_device_reads_the_cache_with_the_new_token(self):
        cost = cost_of(one_task(Op.ATTN, step=2), schedule="flexgen")
        assert cost.bytes == 8 * 102 * KV_BYTES
        assert cost.flops == 4 * 8 * 102 * 4096  # QK and PV, 2 FLOPs a multiply-accumulate
        assert cost.duration_ns == pytest.approx(10 * US + 8 * 102 * KV_BYTES / 400, abs=1)
        assert cost.bound == "launch latency"

    def test_a_long_cache_binds_on_the_devices_memory(self):
        long = Workload.fixed(10_000, 4)
        cost = cost_of(one_task(Op.ATTN), schedule="flexgen", workload=long)
        assert cost.duration_ns == pytest.approx(10 * US + 8 * 10_001 * KV_BYTES / 400, abs=1)
        assert cost.bound == "device memory"

    def test_attention_over_short_prompts_moves_and_over_long_ones_computes(self):
        short, long = (cost_of(one_task(Op.ATTN, step=0), workload=Workload.fixed(tokens, 4)) for tokens in (100, 1000))
        assert short.bytes == 800 * (D1_BYTES + D2_BYTES)
        assert short.duration_ns == pytest.approx(10 * US + 800 * (D1_BYTES + D2_BYTES) / 400, abs=1)
        assert short.bound == "device memory"
        assert long.flops == 8 * 4 * 1000**2 // 2 * 4096  # a token attends to half of the prompt on average
        assert long.duration_ns == pytest.approx(10 * US + long.flops / 20e3, abs=1)
        assert long.bound == "device compute"

    def test_attention_in_prefill_grows_with_the_square_of_each_prompt_not_of_their_sum(self):
        uneven = Workload("uneven", (10, 190), 4, padded=False)
        cost = cost_of(one_task(Op.ATTN, step=0), workload=uneven, micro_batch_size=2, num_micro_batches=1)
        assert cost.flops == 4 * (10**2 + 190**2) // 2 * 4096

    def test_post_attn_in_decode_reads_the_experts_that_its_tokens_touch(self):
        cost = cost_of(one_task(Op.POST_ATTN))
        touched = 8 * (1 - (1 - 2 / 8) ** 8)
        assert touched == pytest.approx(7.199, abs=1e-3)
        projection = 2 * 4096 * 4096 + 8 * D2_BYTES
        router = 2 * ROUTER_WEIGHTS + 8 * 2 * D2_BYTES
        routed = touched * EXPERT_BYTES + 8 * 2 * 2 * D2_BYTES
        assert cost.bytes == pytest.approx(projection + router + routed, abs=1)
        assert cost.duration_ns == pytest.approx(10 * US + (projection + router) / 500 + routed / 800, abs=1)
        assert cost.flops == 2 * 8 * (4096 * 4096 + ROUTER_WEIGHTS + 2 * EXPERT_BYTES // 2)
        assert cost.bound == "device memory"

    def test_one_token_touches_its_own_experts_only(self):
        cost = cost_of(one_task(Op.EXPERTS), micro_batch_size=1)
        assert cost.bytes == 2 * ROUTER_WEIGHTS + 2 * D2_BYTES + 2 * EXPERT_BYTES + 2 * 2 * D2_BYTES

    def test_post_attn_in_prefill_computes(self):
        cost = cost_of(one_task(Op.POST_ATTN, step=0), workload=Workload.fixed(1000, 4))
        plain = 2 * 8000 * 4096 * 4096
        routed = 2 * 8000 * 2 * EXPERT_BYTES // 2
        router_bytes = 2 * ROUTER_WEIGHTS + 8000 * 2 * D2_BYTES  # the router alone is bound by memory
        assert cost.duration_ns == pytest.approx(10 * US + plain / 50e3 + routed / 25e3 + router_bytes / 500, abs=1)
        assert cost.bound == "device compute"

    def test_under_tensor_parallelism_post_attn_is_cut_in_two_with_a_launch_each(self):
        for step in (0, 1):
            whole, first, second = (cost_of(one_task(op, step)) for op in (Op.POST_ATTN, Op.OUT_PROJ, Op.EXPERTS))
            assert first.duration_ns + second.duration_ns == pytest.approx(whole.duration_ns + 10 * US, abs=2)
            assert first.flops + second.flops == whole.flops
            assert first.bytes + second.bytes == pytest.approx(whole.bytes, abs=1)

    def test_the_head_reads_its_weights_for_one_token_a_request_even_in_prefill(self):
        for step in (0, 1):
            cost = cost_of(one_task(Op.HEAD, step, layer=-1))
            assert cost.bytes == 2 * 32_000 * 4096
            assert cost.flops == 2 * 8 * 32_000 * 4096
            assert cost.duration_ns == pytest.approx(10 * US + 2 * 32_000 * 4096 / 500, abs=1)

    def test_cpu_attention_pays_for_each_request_and_reads_its_cache(self):
        cost = cost_of(one_task(Op.ATTN, step=3, on_cpu=True))
        moved = 8 * 103 * KV_BYTES
        assert cost.bytes == moved
        assert cost.flops == 4 * 8 * 103 * 4096
        assert cost.duration_ns == pytest.approx(20 * US + 8 * 5 * US + moved / 25, abs=1)
        assert cost.bound == "host memory"

    def test_cpu_attention_reads_no_padding_and_the_device_does(self):
        setup = replace(made_setup(), given_batch=Batch((MicroBatch.padded([60, 100]),), 0, 4))
        assert setup.costs()(one_task(Op.ATTN, step=2, on_cpu=True)).bytes == (62 + 102) * KV_BYTES
        assert setup.costs()(one_task(Op.ATTN, step=2)).bytes == 2 * 102 * KV_BYTES
        assert setup.costs()(one_task(Op.LOAD_KV, step=2)).bytes == 2 * 101 * KV_BYTES

    def test_cpu_attention_reads_no_more_than_its_window_of_a_padded_prompt(self):
        model = few_layers("mixtral-8x7b", 2, window=64)
        setup = replace(made_setup(model=model), given_batch=Batch((MicroBatch.padded([60, 100]),), 0, 4))
        assert setup.costs()(one_task(Op.ATTN, step=2, on_cpu=True)).bytes == 2 * 64 * KV_BYTES

    def test_cpu_attention_names_what_binds_it(self):
        few_bytes = Workload.fixed(1, 4)
        slow_cores = round_machine(host__peak=1e9)
        assert cost_of(one_task(Op.ATTN, on_cpu=True), workload=few_bytes).bound == "request overhead"
        assert cost_of(one_task(Op.ATTN, on_cpu=True), workload=few_bytes, micro_batch_size=1).bound == "launch latency"
        slow = cost_of(one_task(Op.ATTN, on_cpu=True), machine=slow_cores)
        assert slow.bound == "host compute"
        assert slow.duration_ns == pytest.approx(60 * US + 4 * 808 * 4096 / 0.5, abs=1)


class TestUnpacking:
    """Experts stored narrower than the model computes: 100 GB of wider ones a second, where the machine says so."""

    ROUND = with_unpacking(round_machine(), 100)
    EMULATED = replace(ROUND, emulation=Emulation(Quantity(0.5, "1"), Quantity(1.0, "1")))

    def seconds(self, machine=ROUND, size=8, count=2, step=1, **policy):
        """How much longer PostAttn takes, beyond what it takes at the model's own width."""
        given = {"micro_batch_size": size, "num_micro_batches": count, "machine": machine}
        narrow = cost_of(one_task(Op.POST_ATTN, step), weight_bits=4.5, **given, **policy)
        return (narrow.duration_ns - cost_of(one_task(Op.POST_ATTN, step), **given, **policy).duration_ns) / 1e9

    def test_micro_batches_share_all_experts(self):
        for count in (2, 4):
            assert self.seconds(count=count) == pytest.approx(8 / count * EXPERT_BYTES / 100e9, rel=1e-6)

    def test_one_micro_batch_unpacks_those_of_its_tokens(self):
        assert self.seconds(size=1, count=1) == pytest.approx(2 * EXPERT_BYTES / 100e9, rel=1e-6)
        assert self.seconds(size=8, count=1) == pytest.approx(8 * EXPERT_BYTES / 100e9, rel=1e-6)

    def test_prompts_and_an_emulated_device_use_what_is_touched(self):
        used = 8 * (1 - (3 / 4) ** 3)
        assert self.seconds(size=3, count=1, machine=self.EMULATED) == pytest.approx(used * EXPERT_BYTES / 100e9)
        used = 8 * (1 - (3 / 4) ** 100)
        assert self.seconds(size=1, count=1, step=0) == pytest.approx(used * EXPERT_BYTES / 100e9, rel=1e-6)

    def test_a_few_at_a_time_are_so_many_places(self):
        """Of 8 large experts one finds room, so there are seven more parts; all do where micro-batches share them."""
        experts = replace(self.ROUND.device.experts, latency_s=Quantity(1, "ms"))
        machine = replace(self.ROUND, device=replace(self.ROUND.device, experts=experts))
        assert self.seconds(machine, size=8, count=1) == pytest.approx(8 * EXPERT_BYTES / 100e9 + 7e-3, rel=1e-6)
        assert self.seconds(machine, size=8, count=2) == pytest.approx(4 * EXPERT_BYTES / 100e9, rel=1e-6)
        split = self.seconds(machine, size=8, count=2, experts_on_device=0.5)
        assert split == pytest.approx(4 * EXPERT_BYTES / 100e9 - 1e-3, rel=1e-6), "packed ones are computed together"

    def test_bytes_are_read_packed_and_written_wide(self):
        narrow, wide = (cost_of(one_task(Op.POST_ATTN), weight_bits=bits, machine=self.ROUND) for bits in (4.5, 16))
        packed_bytes = EXPERT_BYTES * 4.5 / 16
        assert narrow.bytes - wide.bytes == pytest.approx(4 * (EXPERT_BYTES + packed_bytes), abs=2)
        assert carried(narrow, hbm(0)) == pytest.approx(narrow.bytes, rel=1e-6)

    def test_nothing_where_nobody_knows_how_long_or_nothing_is_packed(self):
        assert self.seconds(round_machine()) < 0, "fewer bytes are read"
        own = cost_of(one_task(Op.POST_ATTN), machine=self.ROUND)
        assert own == cost_of(one_task(Op.POST_ATTN), machine=round_machine())
        assert own == cost_of(one_task(Op.POST_ATTN), machine=self.ROUND, weight_bits=16)

    def test_copies_and_layers_without_experts_take_what_they_did(self):
        model = preset("deepseek-v3")
        narrow = {"model": model, "weight_bits": 4.5}
        for task in (one_task(Op.POST_ATTN), one_task(Op.LOAD_WEIGHTS, layer=5), one_task(Op.PRE_ATTN)):
            assert cost_of(task, machine=self.ROUND, **narrow) == cost_of(task, machine=round_machine(), **narrow)
