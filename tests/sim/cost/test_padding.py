"""Devices that compute whole tiles, and experts of a fixed capacity: what is computed beside what is asked for."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import cost_of, few_layers, made_setup, one_task, preset, round_machine

from sim.cost.products import Padding, dropped_share, expert_capacity
from sim.problem import Quantity, Routing, Tiles
from sim.schedule import Op

SETTINGS = settings(deadline=None, derandomize=True, max_examples=25)
TILES = st.builds(Tiles, *[st.sampled_from((1, 8, 96, 128, 256))] * 3, st.sampled_from((None, 1, 128)))
COMPUTED = [
    *(one_task(op, step) for op in (Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.HEAD) for step in (0, 1)),
    *(one_task(op) for op in (Op.ROUTE, Op.DEVICE_EXPERTS)),
]


def with_tiles(machine, *tiles, capacity=None):
    """The machine, whose device has such tiles, and experts of such a capacity."""
    ratio = None if capacity is None else Quantity(capacity, "1")
    device = replace(machine.device, tiles=Tiles(*tiles) if tiles else None, expert_capacity_ratio=ratio)
    return replace(machine, device=device)


COMPUTE_BOUND = round_machine(device_memory__bandwidth=1e16)
"""Nothing waits for its memory."""


def seconds(task, *tiles, capacity=None, machine=COMPUTE_BOUND, **setup):
    """What a task takes beside its launch."""
    one = with_tiles(machine, *tiles, capacity=capacity)
    apart = task.op in (Op.ROUTE, Op.DEVICE_EXPERTS)
    setup = {"schedule": "hybrid" if apart else "cgopipe", "model": few_layers("mixtral-8x7b", 2), **setup}
    if apart:
        setup.setdefault("experts_on_host", 0.5)
    return cost_of(task, machine=one, **setup).duration_ns * 1e-9 - 10e-6


class TestTiles:
    @pytest.mark.parametrize("task", COMPUTED, ids=lambda task: f"{task.op}-{task.step}")
    def test_tiles_of_one_number_are_no_tiles(self, task):
        assert seconds(task, 1, 1, 1, machine=round_machine()) == seconds(task, machine=round_machine())

    @given(
        task=st.sampled_from(COMPUTED),
        tiles=TILES,
        capacity=st.sampled_from((None, 1.0, 50.0)),
        sizes=st.lists(st.integers(1, 400), min_size=2, max_size=3),
    )
    @SETTINGS
    def test_more_tokens_never_take_less_and_padding_never_saves(self, task, tiles, capacity, sizes):
        numbers = (tiles.rows, tiles.inputs, tiles.outputs, tiles.expert_rows)
        took = [seconds(task, *numbers, capacity=capacity, micro_batch_size=size) for size in sorted(sizes)]
        assert all(after >= before - 1e-9 for before, after in itertools.pairwise(took))
        if capacity != 1.0:  # which drops what comes beyond, and so may compute less
            assert took[0] >= seconds(task, micro_batch_size=min(sizes)) - 1e-9

    def test_projections_step_with_the_tokens(self):
        at = {size: seconds(one_task(Op.PRE_ATTN), 8, 1, 1, micro_batch_size=size) for size in (8, 9, 16, 17)}
        assert at[9] == at[16] == pytest.approx(2 * at[8], rel=1e-2)
        assert at[17] == pytest.approx(3 * at[8], rel=1e-2)

    def test_a_width_between_tiles_costs_as_the_next_one_up(self):
        layer = preset("gpt-oss-120b").layers[0]  # 2880 hidden, experts 2880 wide
        assert Padding(Tiles(1, 128, 128), 1).experts(layer, 10, 10) == pytest.approx((23 * 128 / 2880) ** 2)
        assert Padding(Tiles(1, 256, 256), 1).experts(layer, 10, 10) == pytest.approx((12 * 256 / 2880) ** 2)

    def test_a_rank_s_share_of_a_width_is_padded(self):
        layer = preset("qwen3-30b-a3b").layers[0]  # 2048 hidden, experts 768 wide
        assert Padding(Tiles(1, 128, 128), 4).experts(layer, 10, 10) == pytest.approx(256 / 192)
        assert Padding(Tiles(1, 256, 256), 2).experts(layer, 10, 10) == pytest.approx(512 / 384)

    def test_heads_narrower_than_a_tile_are_padded_in_attention(self):
        tiles = Padding(Tiles(8, 128, 128), 1)
        narrow, wide = (preset(name).layers[0] for name in ("gpt-oss-120b", "mixtral-8x7b"))
        assert tiles.prompt_attention(narrow) == pytest.approx(2.0)  # heads of 64
        assert tiles.prompt_attention(wide) == 1.0  # heads of 128
        assert tiles.decode_attention(wide) == pytest.approx(2.0)  # four query heads share one of the cache

    def test_projections_are_padded_matrix_by_matrix(self):
        layer = preset("mixtral-8x7b").layers[0]
        padding = Padding(Tiles(1, 1, 3000), 1)  # of 4096, 1024 and 1024 outputs
        assert padding.pre_attn(layer, 7) == pytest.approx((6000 + 3000 + 3000) / (4096 + 1024 + 1024))
        assert padding.out_proj(layer, 7) == pytest.approx(6000 / 4096)

    def test_what_is_padded_is_no_work_of_the_model(self):
        task, machine = one_task(Op.POST_ATTN), round_machine()
        plain, padded = (cost_of(task, machine=one) for one in (machine, with_tiles(machine, 8, 512, 512)))
        assert (plain.flops, plain.bytes) == (padded.flops, padded.bytes)


class TestCapacity:
    @given(tokens=st.integers(1, 300), experts=st.integers(1, 40), top_k=st.integers(1, 8), ratio=st.floats(1.0, 100.0))
    @SETTINGS
    def test_it_is_never_below_what_is_asked_nor_above_all_tokens(self, tokens, experts, top_k, ratio):
        top_k = min(top_k, experts)
        capacity = expert_capacity(tokens, top_k, experts, ratio)
        assert tokens * top_k <= capacity * experts
        assert capacity <= tokens

    def test_experts_compute_it_whatever_comes(self):
        asked = seconds(one_task(Op.POST_ATTN), micro_batch_size=80)
        even, all_of_them = (
            seconds(one_task(Op.POST_ATTN), capacity=ratio, micro_batch_size=80) for ratio in (1, 1000)
        )
        assert even == pytest.approx(asked)
        routed = 3 * 2 * 80 * 2 * 4096 * 14336 / (100e12 * 0.25)
        assert all_of_them - asked == pytest.approx(3 * routed, rel=1e-3)  # eight experts for two

    def test_all_experts_are_read_where_few_are_asked_for(self):
        machine = round_machine()
        asked, fixed = (
            cost_of(one_task(Op.POST_ATTN), machine=one, micro_batch_size=1, num_micro_batches=1)
            for one in (machine, with_tiles(machine, capacity=1.0))
        )
        assert fixed.bytes - asked.bytes == 6 * 3 * 4096 * 14336 * 2

    def test_experts_apart_compute_it_where_they_are_on_the_device(self):
        task = one_task(Op.DEVICE_EXPERTS)
        took = seconds(task, capacity=1000, micro_batch_size=80, groups=1)
        four_for_all_tokens = 4 * 160 * 2 * 3 * 4096 * 14336
        assert took == pytest.approx(four_for_all_tokens / (100e12 * 0.25), rel=1e-3)

    @pytest.mark.parametrize(("tokens", "capacity"), [(1, 1), (7, 2), (12, 3), (40, 12)])
    def test_what_is_dropped_is_the_mean_of_what_comes_beyond(self, tokens, capacity):
        popularity = np.array([0.5, 0.25, 0.2, 0.05])
        chosen = np.random.default_rng(5).random((20_000, tokens, 4)) < popularity
        beyond = np.maximum(chosen.sum(axis=1) - capacity, 0).sum(axis=1).mean()
        assert dropped_share(popularity, tokens, capacity) == pytest.approx(beyond / tokens, abs=0.01)

    def test_nothing_is_dropped_where_all_tokens_have_room(self):
        assert dropped_share(np.full(8, 0.25), 50, 50) == 0
        assert [setup_with(ratio).dropped_share > 0 for ratio in (None, 1.0, 4.0)] == [False, True, False]

    def test_experts_on_the_host_drop_nothing(self):
        setup = made_setup("cpu-experts", 64, experts_on_device=0.0, machine=with_tiles(round_machine(), capacity=1.0))
        assert setup.dropped_share == 0


def setup_with(ratio):
    """Mixtral whose experts have this capacity."""
    return made_setup(machine=with_tiles(round_machine(), capacity=ratio), model=few_layers("mixtral-8x7b", 2))


def test_popular_experts_drop_more():
    setup = setup_with(1.25)
    skewed = replace(setup, problem=replace(setup.problem, routing=Routing.parse("zipf:1.2")))
    assert skewed.dropped_share > setup.dropped_share
