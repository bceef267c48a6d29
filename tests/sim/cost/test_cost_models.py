"""What tasks cost with other layers than Mixtral's, narrower numbers and several devices, worked out by hand."""

import pytest
from hypothesis import given, settings, strategies as st
from mixtral_sizes import D1_BYTES, D2_BYTES, EXPERT_BYTES, EXPERTS_BYTES, KV_BYTES, QKV_WEIGHTS, ROUTER_WEIGHTS
from sim_examples import cost_of, few_layers, made_setup, one_task, preset, round_machine

from sim.cost import DRAM
from sim.cost.pools import hbm, link
from sim.problem import Workload
from sim.schedule import Op

US = 1e3  # nanoseconds
SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)

COPIES = {Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE, Op.OFFLOAD_QKV, Op.LOAD_HIDDEN, Op.LOAD_KV, Op.STORE_KV}


def carried(cost, pool):
    """What a task takes out of a pool altogether."""
    return dict(cost.demands).get(pool, 0) * cost.duration_ns * 1e-9


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


class TestExpandedCache:
    def test_a_copy_for_every_query_head_in_32_bits_is_fetched_written_and_read(self):
        """Mixtral: 32 query heads on 8 KV heads, so a byte of 16-bit cache becomes 8 bytes, each moved three times."""
        here, expanded = (cost_of(one_task(Op.ATTN, on_cpu=True), schedule=name) for name in ("cgopipe", "flexgen-c"))
        assert expanded.bytes == (1 + 3 * 8) * here.bytes
        assert expanded.flops == here.flops
        assert expanded.duration_ns == pytest.approx(20 * US + 8 * 5 * US + 25 * 808 * KV_BYTES / 25, abs=1)

    def test_a_narrower_cache_grows_more(self):
        cost = cost_of(one_task(Op.ATTN, on_cpu=True), schedule="flexgen-c", kv_bits=8)
        assert cost.bytes == (1 + 3 * 16) * 808 * KV_BYTES // 2


class TestTensorParallelism:
    """Heads, expert columns and the vocabulary are split; hidden states and requests are not."""

    @pytest.mark.parametrize("ranks", [2, 4])
    @pytest.mark.parametrize(
        ("op", "step", "setup"),
        [
            (Op.LOAD_WEIGHTS, 1, {}),
            (Op.PIN_WEIGHTS, 1, {}),
            (Op.LOAD_WEIGHTS_PAGEABLE, 1, {}),
            (Op.OFFLOAD_QKV, 1, {}),
            (Op.LOAD_HIDDEN, 1, {}),
            (Op.LOAD_KV, 1, {"attention": "gpu"}),
            (Op.STORE_KV, 0, {"attention": "gpu"}),
            (Op.STORE_KV, 1, {"attention": "gpu"}),
            (Op.ATTN, 0, {}),
            (Op.ATTN, 1, {"attention": "gpu"}),
            (Op.HEAD, 1, {}),
        ],
    )
    def test_what_is_split(self, op, step, setup, ranks):
        alone, shared = (cost_of(one_task(op, step), machine=round_machine(n), **setup) for n in (1, ranks))
        assert shared.bytes * ranks == alone.bytes
        assert shared.flops * ranks == alone.flops
        tensors = {Op.OFFLOAD_QKV: 3, Op.LOAD_KV: 2, Op.STORE_KV: 2}.get(op, 1)
        fixed = 20 * US if op is Op.PIN_WEIGHTS else tensors * 30 * US if op in COPIES else 10 * US
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


class TestPartsOfTheBatch:
    """Devices that each run a part of the requests: whole tensors, and an equal part of what the host gives."""

    @pytest.mark.parametrize("ranks", [2, 4])
    def test_a_device_does_the_whole_work_of_its_own_requests(self, ranks):
        alone = made_setup("flexgen", 8, 2)
        part = made_setup("flexgen", 8, 2 * ranks, machine=round_machine(ranks))
        assert part.batch.micro_batches == alone.batch.micro_batches
        assert part.batch.num_requests == ranks * alone.batch.num_requests
        one, other = alone.costs(), part.costs()
        for op in (Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.LOAD_KV, Op.STORE_KV, Op.LOAD_WEIGHTS, Op.PIN_WEIGHTS):
            assert other(one_task(op)) == one(one_task(op))

    @pytest.mark.parametrize(("name", "parts"), [("flexgen", 4), ("zero", 4), ("cgopipe", 1)])
    def test_it_has_an_equal_part_of_the_host_and_its_device_to_itself(self, name, parts):
        dram, cores, *devices = made_setup(name, 8, 4, machine=round_machine(4)).costs().capacities
        assert (dram, cores) == (100e9 // parts, 1000 // parts)
        assert devices == [10**12, 16 * 10**9] * 4

    def test_gathered_weights_come_half_from_the_host_and_half_from_the_peer(self):
        cost = cost_of(one_task(Op.LOAD_WEIGHTS_PAGEABLE), schedule="zero", machine=round_machine(2))
        whole = cost_of(one_task(Op.LOAD_WEIGHTS_PAGEABLE), schedule="zero").bytes
        assert cost.bytes == whole
        assert cost.duration_ns == pytest.approx(30 * US + whole / 2 / 4 + 40 * US + whole / 2 / 2, abs=2)
        assert cost.bound == "network"
        for pool, times in ((DRAM, 3), (hbm(0), 1), (link(0), 1)):
            assert carried(cost, pool) == pytest.approx(times * whole / 2, rel=1e-6)

    def test_a_fast_network_leaves_the_link_to_bind(self):
        machine = round_machine(2, network__bandwidth=100e9)
        assert cost_of(one_task(Op.LOAD_WEIGHTS), schedule="zero", machine=machine).bound == "link h2d"

    def test_stages_of_a_pipeline_gather_nothing(self):
        alone, part = (cost_of(one_task(Op.LOAD_WEIGHTS), schedule="flexgen", machine=round_machine(n)) for n in (1, 2))
        assert part == alone
