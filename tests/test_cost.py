"""What one task costs: every formula against numbers worked out by hand.

The arithmetic is written out from the published dimensions of the models (Mixtral 8x7B: hidden size 4096, 32 query and
8 KV heads of 128, 8 experts of width 14336, 2 of them a token) and from the rates of the machine in `sim_examples`.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_examples import few_layers, made_setup, one_task, preset, round_machine

import sim.cost
from sim.cost import ALL_CORES, CPU_CORES, DRAM, hbm, link
from sim.schedule.task import WHOLE, Op, Task
from sim.workload import Workload

US = 1e3  # nanoseconds
SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)

KV_BYTES = 2 * 2 * 8 * 128  # key and value, two bytes, 8 heads of 128: 4,096
D1_BYTES = 2 * (32 * 128 + 2 * 8 * 128)  # query, key and value: 12,288
D2_BYTES = 2 * 4096  # a hidden state: 8,192
QKV_WEIGHTS = 4096 * (4096 + 2 * 1024)
EXPERT_BYTES = 2 * 3 * 4096 * 14336
EXPERTS_BYTES = 8 * EXPERT_BYTES  # of one layer: 2.819 GB
ROUTER_WEIGHTS = 8 * 4096

COPIES = {Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE, Op.OFFLOAD_QKV, Op.LOAD_HIDDEN, Op.LOAD_KV, Op.STORE_KV}


def cost_of(task, **setup):
    return made_setup(**setup).costs()(task)


def demand(cost, pool):
    """What a task asks of a pool, per second; 0 if nothing."""
    return dict(cost.demands).get(pool, 0)


def carried(cost, pool):
    """What a task takes out of a pool altogether."""
    return demand(cost, pool) * cost.duration_ns * 1e-9


class TestCopies:
    """Latency (30 µs) and bytes over the rate of the direction."""

    def test_d1_is_query_key_and_value_of_each_request(self):
        assert D1_BYTES == 12_288
        cost = cost_of(one_task(Op.OFFLOAD_QKV))
        assert cost.bytes == 8 * D1_BYTES
        assert cost.duration_ns == pytest.approx(30 * US + 8 * D1_BYTES / 8, abs=1)

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
            assert cost.duration_ns == pytest.approx(30 * US + tokens * KV_BYTES / 4, abs=1), "pageable: 4 GB/s"

    def test_prefill_stores_the_prompts_cache_and_decode_one_token_a_request(self):
        for step, tokens in ((0, 800), (1, 8), (3, 8)):
            cost = cost_of(one_task(Op.STORE_KV, step=step), schedule="flexgen")
            assert cost.bytes == tokens * KV_BYTES
            assert cost.duration_ns == pytest.approx(30 * US + tokens * KV_BYTES / 2, abs=1), "pageable: 2 GB/s"

    def test_a_cache_that_is_page_locked_moves_at_the_full_rate(self):
        loaded = cost_of(one_task(Op.LOAD_KV), attention="gpu")
        stored = cost_of(one_task(Op.STORE_KV), attention="gpu")
        assert loaded.duration_ns == pytest.approx(30 * US + 800 * KV_BYTES / 10, abs=1)
        assert stored.duration_ns == pytest.approx(30 * US + 8 * KV_BYTES / 8, abs=1)
        assert (loaded.bound, stored.bound) == ("link h2d", "copy latency")

    def test_the_share_of_the_cache_on_the_device_is_not_moved(self):
        for op, step in ((Op.LOAD_KV, 1), (Op.STORE_KV, 0), (Op.STORE_KV, 2)):
            whole = cost_of(one_task(op, step), schedule="flexgen")
            part = cost_of(one_task(op, step), schedule="flexgen", kv_on_device=0.75)
            assert part.bytes * 4 == whole.bytes

    def test_weights_move_at_the_rate_of_the_memory_they_come_from(self):
        pinned, pageable = (cost_of(one_task(op)) for op in (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE))
        assert pinned.bytes == pageable.bytes == EXPERTS_BYTES == 2_818_572_288
        assert pinned.duration_ns == pytest.approx(30 * US + EXPERTS_BYTES / 10, abs=1)
        assert pageable.duration_ns == pytest.approx(30 * US + EXPERTS_BYTES / 4, abs=1)
        assert (pinned.bound, pageable.bound) == ("link h2d", "link h2d pageable")

    def test_a_pin_copy_has_its_own_rate_and_no_launch(self):
        cost = cost_of(one_task(Op.PIN_WEIGHTS))
        assert cost.bytes == EXPERTS_BYTES
        assert cost.duration_ns == pytest.approx(EXPERTS_BYTES / 5, abs=1)
        assert cost.bound == "pin copy"

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
        layer = setup.problem.model.layers[0]
        assert sum(sizes) == costs(one_task(op, page=WHOLE)).bytes
        assert sum(sizes) == setup.policy.streamed_bytes(setup.schedule, setup.problem.model, layer)
        assert max(sizes) - min(sizes) <= 1


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

    def test_cpu_attention_names_what_binds_it(self):
        few_bytes = Workload.fixed(1, 4)
        slow_cores = round_machine(host__peak=1e9)
        assert cost_of(one_task(Op.ATTN, on_cpu=True), workload=few_bytes).bound == "request overhead"
        assert cost_of(one_task(Op.ATTN, on_cpu=True), workload=few_bytes, micro_batch_size=1).bound == "launch latency"
        slow = cost_of(one_task(Op.ATTN, on_cpu=True), machine=slow_cores)
        assert slow.bound == "host compute"
        assert slow.duration_ns == pytest.approx(60 * US + 4 * 808 * 4096 / 0.5, abs=1)


class TestOtherModels:
    def test_a_sliding_window_caps_what_is_kept_loaded_and_attended(self):
        model = few_layers("mixtral-8x7b", 2, window=64)
        flexgen = {"schedule": "flexgen", "model": model}
        for layer, tokens in ((0, 64), (1, 101)):
            cost = cost_of(one_task(Op.ATTN, layer=layer), **flexgen)
            assert cost.bytes == 8 * tokens * KV_BYTES
            assert cost.flops == 4 * 8 * tokens * 4096
        for layer, tokens in ((0, 64), (1, 100)):
            assert cost_of(one_task(Op.LOAD_KV, layer=layer), **flexgen).bytes == 8 * tokens * KV_BYTES
            assert cost_of(one_task(Op.STORE_KV, 0, layer), **flexgen).bytes == 8 * tokens * KV_BYTES
            assert cost_of(one_task(Op.STORE_KV, 1, layer), **flexgen).bytes == 8 * KV_BYTES

    def test_in_prefill_no_token_attends_to_more_than_its_window(self):
        model, long = few_layers("mixtral-8x7b", 2, window=64), Workload.fixed(1000, 4)
        sliding, full = (cost_of(one_task(Op.ATTN, 0, layer), model=model, workload=long) for layer in (0, 1))
        assert sliding.flops == 8 * 4 * 1000 * 64 * 4096
        assert full.flops == 8 * 4 * 1000**2 // 2 * 4096

    def test_mla_moves_and_attends_in_its_latent_space(self):
        # DeepSeek-V2-Lite: 16 heads, latent of 512 and a rotary key of 64, heads of 128 + 64 and values of 128.
        deepseek = {"model": preset("deepseek-v2-lite")}
        latent = 512 + 64
        assert cost_of(one_task(Op.OFFLOAD_QKV, layer=1), **deepseek).bytes == 8 * 2 * (16 * latent + latent)
        assert cost_of(one_task(Op.LOAD_HIDDEN, layer=1), **deepseek).bytes == 8 * 2 * 16 * 512
        assert cost_of(one_task(Op.STORE_HIDDEN, 0, layer=1), **deepseek).bytes == 800 * 2 * 2048
        decode = cost_of(one_task(Op.ATTN, layer=1, on_cpu=True), **deepseek)
        assert decode.bytes == 808 * 2 * latent
        assert decode.flops == 2 * 808 * 16 * (latent + 512)
        prefill = cost_of(one_task(Op.ATTN, 0, layer=1), **deepseek)
        assert prefill.flops == 2 * (8 * 100**2 // 2) * 16 * (128 + 64 + 128)
        assert cost_of(one_task(Op.LOAD_KV, layer=1), schedule="flexgen", **deepseek).bytes == 800 * 2 * latent

    def test_a_leading_dense_layer_streams_nothing_and_reads_all_its_weights(self):
        deepseek = {"model": preset("deepseek-v2-lite")}
        assert cost_of(one_task(Op.LOAD_WEIGHTS), **deepseek).bytes == 0
        cost = cost_of(one_task(Op.EXPERTS), **deepseek)
        assert cost.bytes == 2 * 3 * 2048 * 10_944 + 8 * 2 * 2 * 2048
        assert cost.flops == 2 * 8 * 3 * 2048 * 10_944

    def test_shared_experts_work_for_every_token(self):
        # 64 experts of width 1408, 6 a token; 2 shared ones; a router.
        cost = cost_of(one_task(Op.EXPERTS, layer=1), model=preset("deepseek-v2-lite"))
        expert, router = 3 * 2048 * 1408, 64 * 2048
        touched = 64 * (1 - (1 - 6 / 64) ** 8)
        assert cost.flops == 2 * 8 * ((6 + 2) * expert + router)
        plain = 2 * (2 * expert + router) + 8 * 2 * 2 * 2048
        routed = touched * 2 * expert + 8 * 6 * 2 * 2 * 2048
        assert cost.bytes == pytest.approx(plain + routed, abs=1)
        assert cost.duration_ns == pytest.approx(10 * US + plain / 500 + routed / 800, abs=1)

    @pytest.mark.parametrize(("bits", "parts"), [(8, 2), (4, 4)])
    def test_quantised_weights_move_and_are_read_in_fewer_bytes(self, bits, parts):
        for op in (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE, Op.PIN_WEIGHTS):
            assert cost_of(one_task(op), weight_bits=bits).bytes * parts == EXPERTS_BYTES
        whole, part = cost_of(one_task(Op.EXPERTS)), cost_of(one_task(Op.EXPERTS), weight_bits=bits)
        saved = 8 * (1 - 0.75**8) * EXPERT_BYTES * (1 - 1 / parts)
        assert whole.bytes - part.bytes == pytest.approx(saved, abs=1)
        assert part.flops == whole.flops
        assert cost_of(one_task(Op.LOAD_KV), attention="gpu", weight_bits=bits).bytes == 800 * KV_BYTES

    def test_a_quantised_cache_moves_and_is_read_in_fewer_bytes(self):
        for op, on_cpu in ((Op.LOAD_KV, False), (Op.STORE_KV, False), (Op.ATTN, False), (Op.ATTN, True)):
            whole, half = (cost_of(one_task(op, on_cpu=on_cpu), kv_bits=bits) for bits in (16, 8))
            assert half.bytes * 2 == whole.bytes
        assert cost_of(one_task(Op.OFFLOAD_QKV), kv_bits=8).bytes == 8 * D1_BYTES


class TestTensorParallelism:
    """Heads, expert columns and the vocabulary are split; hidden states and requests are not."""

    @pytest.mark.parametrize("ranks", [2, 4])
    @pytest.mark.parametrize(
        ("op", "step", "setup"),
        [
            (Op.LOAD_WEIGHTS, 1, {}),
            (Op.PIN_WEIGHTS, 1, {}),
            (Op.LOAD_WEIGHTS_PAGEABLE, 1, {"schedule": "zero"}),
            (Op.OFFLOAD_QKV, 1, {}),
            (Op.LOAD_HIDDEN, 1, {}),
            (Op.LOAD_KV, 1, {"schedule": "flexgen"}),
            (Op.STORE_KV, 0, {"schedule": "flexgen"}),
            (Op.STORE_KV, 1, {"schedule": "flexgen"}),
            (Op.ATTN, 0, {}),
            (Op.ATTN, 1, {"schedule": "flexgen"}),
            (Op.HEAD, 1, {}),
        ],
    )
    def test_what_is_split(self, op, step, setup, ranks):
        alone, shared = (cost_of(one_task(op, step), machine=round_machine(n), **setup) for n in (1, ranks))
        assert shared.bytes * ranks == alone.bytes
        assert shared.flops * ranks == alone.flops
        fixed = 0 if op is Op.PIN_WEIGHTS else 30 * US if op in COPIES else 10 * US
        assert (shared.duration_ns - fixed) * ranks == pytest.approx(alone.duration_ns - fixed, abs=ranks)

    @pytest.mark.parametrize("op", [Op.LOAD_HIDDEN, Op.STORE_HIDDEN])
    def test_hidden_states_in_prefill_are_whole_on_each_rank(self, op):
        alone, shared = (cost_of(one_task(op, 0, 1), machine=round_machine(n)) for n in (1, 2))
        assert shared == alone

    def test_kernels_split_weights_and_flops_but_read_whole_hidden_states(self):
        machine = round_machine(2)
        pre = cost_of(one_task(Op.PRE_ATTN), machine=machine)
        assert pre.bytes == QKV_WEIGHTS + 8 * (D2_BYTES + D1_BYTES // 2)
        assert pre.flops == 8 * QKV_WEIGHTS
        experts = cost_of(one_task(Op.EXPERTS), machine=machine)
        touched = 8 * (1 - 0.75**8)
        plain = ROUTER_WEIGHTS + 8 * 2 * D2_BYTES
        routed = touched * EXPERT_BYTES / 2 + 8 * 2 * 2 * D2_BYTES
        assert experts.bytes == pytest.approx(plain + routed, abs=1)
        assert experts.duration_ns == pytest.approx(10 * US + plain / 500 + routed / 800, abs=1)

    def test_cpu_attention_works_on_its_ranks_heads(self):
        cost = cost_of(one_task(Op.ATTN, on_cpu=True, rank=1), machine=round_machine(2))
        moved = 808 * KV_BYTES // 2
        assert cost.bytes == moved
        assert cost.duration_ns == pytest.approx(20 * US + 8 * 5 * US / 2 + moved / 25, abs=1)

    @pytest.mark.parametrize(("ranks", "times"), [(2, 1.0), (4, 1.5)])
    def test_an_all_reduce_sends_hidden_states_around_a_ring(self, ranks, times):
        for step, tokens in ((0, 800), (1, 8)):
            cost = cost_of(one_task(Op.ALL_REDUCE, step, page=0), machine=round_machine(ranks))
            moved = times * tokens * D2_BYTES  # 2 (r − 1) / r
            assert cost.bytes == moved
            assert cost.duration_ns == pytest.approx(40 * US + moved / 2, abs=1)
            assert cost.bound == ("network" if moved / 2 > 40 * US else "network latency")

    @given(pages=st.integers(1, 60))
    @SETTINGS
    def test_the_ranks_pages_add_up_to_one_ranks_share(self, pages):
        costs = made_setup(pages=pages, machine=round_machine(2)).costs()
        sizes = [costs(one_task(Op.LOAD_WEIGHTS, page=page)).bytes for page in range(pages)]
        assert sum(sizes) == pytest.approx(EXPERTS_BYTES / 2, abs=pages / 2)


TASKS = [
    one_task(Op.PRE_ATTN, 0),
    one_task(Op.PRE_ATTN),
    one_task(Op.ATTN, 0),
    one_task(Op.ATTN),
    one_task(Op.ATTN, on_cpu=True),
    one_task(Op.POST_ATTN, 0),
    one_task(Op.POST_ATTN),
    one_task(Op.HEAD),
    one_task(Op.OFFLOAD_QKV),
    one_task(Op.LOAD_HIDDEN, 0, 1),
    one_task(Op.LOAD_HIDDEN),
    one_task(Op.STORE_HIDDEN, 0),
    one_task(Op.LOAD_KV),
    one_task(Op.STORE_KV, 0),
    one_task(Op.STORE_KV),
    one_task(Op.LOAD_WEIGHTS),
    one_task(Op.LOAD_WEIGHTS_PAGEABLE),
    one_task(Op.PIN_WEIGHTS),
]
FREE_OF_TOKENS = {Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE, Op.PIN_WEIGHTS}


class TestMonotonicity:
    @given(task=st.sampled_from(TASKS), sizes=st.lists(st.integers(1, 600), min_size=2, max_size=4))
    @SETTINGS
    def test_more_requests_are_never_cheaper(self, task, sizes):
        costs = [cost_of(task, micro_batch_size=size).duration_ns for size in sorted(sizes)]
        assert costs == sorted(costs)
        if task.op in FREE_OF_TOKENS:
            assert len(set(costs)) == 1

    @given(task=st.sampled_from(TASKS), lengths=st.lists(st.integers(1, 5000), min_size=2, max_size=4))
    @SETTINGS
    def test_longer_prompts_are_never_cheaper(self, task, lengths):
        costs = [cost_of(task, workload=Workload.fixed(length, 4)).duration_ns for length in sorted(lengths)]
        assert costs == sorted(costs)

    @given(
        task=st.sampled_from(TASKS),
        path=st.sampled_from([path for path, _ in round_machine().quantities()]),
        factor=st.floats(1.0, 100.0),
    )
    @settings(SETTINGS, max_examples=300)
    def test_a_faster_machine_is_never_slower(self, task, path, factor):
        machine = round_machine()
        slower_is_more = path.endswith(("latency", "overhead"))
        share = path.endswith((".compute", ".memory"))
        value = machine.value(path)
        better = value / factor if slower_is_more else min(1.0, value * factor) if share else value * factor
        before, after = (cost_of(task, machine=one) for one in (machine, machine.with_value(path, better)))
        assert after.duration_ns <= before.duration_ns
        assert (after.bytes, after.flops) == (before.bytes, before.flops)

    def test_every_rate_of_the_machine_matters_to_some_task(self):
        machine = round_machine()
        kept = {"capacity", "pinned", "duplex"}  # limits of memories and pools, not of tasks
        unused = {"device.request_overhead", "link.peak"}  # one kernel serves all requests; HRM's roof
        unused |= {path for path, _ in machine.quantities() if kept & set(path.split("."))}
        unused |= {path for path, _ in machine.quantities() if path.startswith(("host.gemm", "host.experts"))}
        setups = [{}, {"schedule": "flexgen"}, {"attention": "gpu"}, {"workload": Workload.fixed(3000, 4)}]
        before = [[cost_of(task, **setup) for task in TASKS] for setup in setups]
        for path, value in machine.quantities():
            changed = machine.with_value(path, value / 100 if value else 1e-3)
            after = [[cost_of(task, machine=changed, **setup) for task in TASKS] for setup in setups]
            assert (after == before) == (path in unused), path


class TestCaching:
    @pytest.mark.parametrize("limit", [1, 3, 50_000])
    def test_costs_do_not_depend_on_what_was_asked_before(self, monkeypatch, limit):
        monkeypatch.setattr(sim.cost, "CACHE_LIMIT", limit)
        model = few_layers("mixtral-8x7b", 4, window=64)
        uneven = Workload("uneven", (10, 90, 200), 6, padded=False)
        setup = made_setup(model=model, workload=uneven, pages=5, micro_batch_size=3, num_micro_batches=3)
        costs = setup.costs()
        tasks = [task for step in setup.schedule.steps(setup.shape, 0, 6) for task in step]
        again = [costs(task) for task in tasks]
        assert again == [costs(task) for task in tasks]
        assert again == [setup.costs()(task) for task in tasks], "a fresh model, with nothing remembered"

    def test_two_calls_give_the_same_cost_whatever_the_id(self):
        costs = made_setup().costs()
        task = one_task(Op.POST_ATTN)
        assert costs(task) is costs(Task(*task)._replace(id=99, deps=(1, 2)))

    def test_what_tells_costs_apart_is_not_forgotten(self):
        """Layer, step, micro-batch and page change the cost where they should."""
        model = few_layers("mixtral-8x7b", 2, window=64)
        uneven = Workload("uneven", (80, 90, 200), 4)  # 200 by itself, 90 and 80 together
        setup = made_setup("flexgen", 2, 2, model=model, workload=uneven)
        costs = replace(setup, policy=replace(setup.policy, batch_size=3)).costs()
        plain = costs(one_task(Op.LOAD_KV, step=1, layer=1, micro_batch=0))
        others = [
            costs(one_task(Op.LOAD_KV, step=2, layer=1, micro_batch=0)),
            costs(one_task(Op.LOAD_KV, step=1, layer=0, micro_batch=0)),
            costs(one_task(Op.LOAD_KV, step=1, layer=1, micro_batch=1)),
        ]
        assert plain not in others

    def test_costs_rise_evenly_with_the_step(self):
        costs = made_setup(workload=Workload.fixed(100, 50)).costs()
        times = [costs(one_task(Op.ATTN, step, on_cpu=True)).duration_ns for step in range(1, 50)]
        for before, after in pairwise(times):
            assert after - before == pytest.approx(8 * KV_BYTES / 25, abs=1)


def test_a_micro_batch_that_is_smaller_costs_less():
    setup = made_setup(micro_batch_size=8, num_micro_batches=2, workload=Workload("padded", (100,), 4, padded=True))
    smaller = replace(setup, policy=replace(setup.policy, batch_size=11))
    costs = smaller.costs()
    assert costs(one_task(Op.OFFLOAD_QKV, micro_batch=0)).bytes == 8 * D1_BYTES
    assert costs(one_task(Op.OFFLOAD_QKV, micro_batch=1)).bytes == 3 * D1_BYTES
