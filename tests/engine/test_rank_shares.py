"""Tensor parallelism: each rank computes its share of every layer, and all together have the tokens of one device."""

import pytest
import torch
from engine_models import FAMILIES, PROMPTS, generated, make, make_prompts, reference
from rank_pool import RankPool, generated_by, peaks_of
from wide_models import ALIGNED_BYTES, as_run, wide

import engine
from engine.device import Rank, RankSums
from engine.model import share_of_rank
from sim.cost.memory import plan_memory
from sim.problem import Model, Policy
from sim.schedule import NET, LaneKind, Op, by_name, of_one_rank, over_ranks, registered
from traces.errors import InputError

UNDIVIDED = {
    "jetmoe": "attention",  # its experts are in there, too
    "doge": "experts",  # rows of an embedding
    "dbrx": "experts",  # one matrix over all of them
}
DIVIDES_OTHERWISE = {"flexgen", "flexgen-c", "zero", "n-cpu-moe"}
POLICY = {"micro_batch_size": 2, "num_micro_batches": 4}
SPLIT = {"experts_on_host": 0.5, "experts_on_device": 0.25, "experts_fetched": 0.25}
FOUR = {"moe_intermediate_size": 32, "intermediate_size": 64}
"""Columns of experts that four ranks divide."""

USUAL = [
    ("gpt_oss", "cgopipe", {"experts_on_device": 0.5}),
    ("olmoe", "cgopipe", {"attention": "gpu", "kv_on_device": 0.5}),
    ("qwen2_moe", "hybrid", SPLIT),
]
EVERY_FAMILY = [(family, name, {}) for family in FAMILIES if family not in UNDIVIDED for name in ("cgopipe", "hybrid")]
EVERY_PLACE = [
    ("mixtral", "cgopipe", {"attention": "gpu"}),
    ("mixtral", "cgopipe", {"attention_on_device": 0.5}),
    ("mixtral", "cgopipe", {"pin_weights": 1.0}),
    ("mixtral", "cgopipe", {"stream_non_experts": True}),
    ("mixtral", "cgopipe", {"num_micro_batches": 1}),
    ("gpt_oss", "hybrid", {"experts_on_host": 1.0}),
    ("glm4_moe", "hybrid", {"experts_on_host": 0.5, "attention": "gpu", "prefill_experts": "cpu"}),
    ("qwen3_moe", "cpu-experts", {}),
    ("qwen3_moe", "expert-cache", {}),
    ("mixtral", "fastdecode", {}),
    ("mixtral", "accelerate", {"micro_batch_size": 8, "num_micro_batches": 1}),
]
NOT_SPLIT = {"jetmoe", "llama4_text", "doge", "dbrx"}
"""Their experts are not computed apart on one device either."""


@pytest.fixture(scope="module")
def two():
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def four():
    pool = RankPool(4)
    yield pool
    pool.close()


def assert_tokens_of_one_device(pool, family, name, places, **options):
    policy = POLICY | places
    found = pool(generated_by, family, name, policy, options)
    expected = generated(family, policy["micro_batch_size"], 4)
    if "made" in options:
        expected = reference(make(family, **options["made"]), PROMPTS, policy["micro_batch_size"], 4)
    assert [one["tokens"] for one in found] == [expected] * len(found)
    return found


class TestTokens:
    @pytest.mark.parametrize(("family", "name", "places"), USUAL)
    def test_two_ranks_have_the_tokens_of_one_device_and_the_model_is_whole_again(self, two, family, name, places):
        found = assert_tokens_of_one_device(two, family, name, places)
        assert all(one["whole"] for one in found)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize(("family", "name", "places"), EVERY_FAMILY + EVERY_PLACE)
    def test_every_family_and_place(self, two, family, name, places):
        if name == "hybrid" and family in NOT_SPLIT:
            pytest.skip("not on one device either")
        assert_tokens_of_one_device(two, family, name, places)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("name", ["cgopipe", "hybrid"])
    @pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "qwen2_moe"])
    def test_four_ranks_of_which_two_have_the_same_head_of_the_cache(self, four, family, name):
        assert_tokens_of_one_device(four, family, name, {}, made=FOUR)

    @pytest.mark.exhaustive
    def test_drawn_tokens_are_the_same_on_all_ranks(self, two):
        options = {"do_sample": True, "temperature": 1.5, "seed": 7}
        found = two(generated_by, "mixtral", "cgopipe", POLICY, options)
        assert found[0]["tokens"] == found[1]["tokens"]
        alone = engine.run(make("mixtral"), PROMPTS, "cgopipe", POLICY, max_new_tokens=4, device="emulated", **options)
        assert found[0]["tokens"] == alone.sequences

    @pytest.mark.exhaustive
    def test_a_seed_that_nobody_gave_is_that_of_the_first(self, two):
        found = two(generated_by, "mixtral", "cgopipe", POLICY, {"do_sample": True})
        assert found[0]["tokens"] == found[1]["tokens"]

    @pytest.mark.exhaustive
    def test_experts_that_count_late(self, two):
        policy = POLICY | {"defer_experts": 1}  # by which tokens change, and alike on any number of devices
        found = two(generated_by, "qwen3_moe", "cpu-experts", policy, {})
        alone = engine.run(make("qwen3_moe"), PROMPTS, "cpu-experts", policy, max_new_tokens=4, device="emulated")
        assert [one["tokens"] for one in found] == [alone.sequences] * 2

    @pytest.mark.exhaustive
    def test_packed_experts(self, two):
        made = {"intermediate_size": 128}
        policy = POLICY | {"weight_bits": 8.5}
        found = two(generated_by, "mixtral", "cgopipe", policy, {"made": made})
        model = make.__wrapped__("mixtral", **made)
        alone = engine.run(model, PROMPTS, "cgopipe", policy, max_new_tokens=4, device="emulated")
        assert [one["tokens"] for one in found] == [alone.sequences] * 2


class TestTrace:
    def test_a_rank_did_its_own_tasks_and_every_sum(self, two):
        found = assert_tokens_of_one_device(two, "mixtral", "cgopipe", {})
        for rank, trace in enumerate(one["trace"] for one in found):
            assert {span.rank for span in trace.spans if span.lane != LaneKind.NET} == {rank}
            assert (trace.metadata["rank"], trace.metadata["num_ranks"]) == (rank, 2)
            assert {counter.rank for counter in trace.counters if "device" in counter.values} == {rank}
        sums = [[span.key for span in one["trace"].spans if span.op == Op.ALL_REDUCE] for one in found]
        layers, micro_batches, steps = 3, 4, 4
        assert sums[0] == sums[1]
        assert len(sums[0]) == 2 * layers * micro_batches * steps

    def test_sums_are_in_one_order_everywhere_and_behind_what_is_summed(self):
        schedule = by_name("hybrid")
        shape = Policy.usual(schedule, 8, 2).pipeline(schedule, (4, 4, 4), 4)
        steps = [list(of_one_rank(schedule.steps(shape, 0, 3), rank, 3)) for rank in range(3)]
        orders = [[task.key for step in one for task in step if task.lane == NET] for one in steps]
        assert orders[0] == orders[1] == orders[2]
        every = {task.id: task for step in over_ranks(schedule.steps(shape, 0, 3), 3) for task in step}
        for rank, own in enumerate(steps):
            mine = {task.id for step in own for task in step}
            for task in (task for step in own for task in step):
                assert set(task.deps) == {dep for dep in every[task.id].deps if dep in mine}
                assert task.lane in (NET, task.lane._replace(rank=rank))


class TestShares:
    """Without other processes: what a rank keeps."""

    @pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNDIVIDED])
    def test_ranks_together_have_each_parameter_once_or_all_of_it(self, family):
        model = make(family)
        whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        kept = []
        for index in range(2):
            with share_of_rank(model, _alone(index, 2), keep=True):
                kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        assert all(tensor.equal(whole[name]) for name, tensor in model.state_dict().items())
        halves = 0
        for name, tensor in whole.items():
            own = [one[name] for one in kept]
            if all(one.shape == tensor.shape for one in own):
                assert own[0].equal(tensor)
                assert own[1].equal(tensor) or not own[1].any(), f"{name} is added twice"
            else:
                halves += 1
                assert sum(one.numel() for one in own) == tensor.numel()
                assert torch.cat([one.flatten() for one in own]).sort()[0].equal(tensor.flatten().sort()[0])
        assert halves >= 2 * model.config.get_text_config().num_hidden_layers

    def test_fewer_heads_of_the_cache_than_ranks_are_repeated(self):
        model = make("mixtral", **FOUR)
        keys = model.model.layers[0].self_attn.k_proj.weight.clone()
        for index, head in enumerate((0, 0, 1, 1)):
            with share_of_rank(model, _alone(index, 4), keep=True):
                attention = model.model.layers[0].self_attn
                assert attention.k_proj.weight.equal(keys[8 * head : 8 * head + 8])
                assert attention.num_key_value_groups == 1
        assert model.model.layers[0].self_attn.num_key_value_groups == 2

    def test_gates_stay_with_their_own_columns(self):
        """Of gate and up one behind the other (mixtral), of pairs side by side (gpt-oss), and of what goes down."""
        for family, side_by_side in (("mixtral", False), ("gpt_oss", True)):
            model = make(family)
            experts = model.model.layers[0].mlp.experts
            up, down = experts.gate_up_proj.clone(), experts.down_proj.clone()
            columns = down.shape[1] if side_by_side else down.shape[2]
            half, own = columns // 2, torch.arange(columns // 2, columns)
            with share_of_rank(model, _alone(1, 2), keep=True):
                if side_by_side:
                    assert experts.gate_up_proj.equal(up[..., 2 * half :])
                    assert experts.down_proj.equal(down[:, own])
                else:
                    assert experts.gate_up_proj.equal(up[:, torch.cat([own, columns + own])])
                    assert experts.down_proj.equal(down[..., own])

    def test_what_a_rank_does_not_keep_is_let_go(self):
        model = make.__wrapped__("mixtral")
        with share_of_rank(model, _alone(1, 2), keep=False):
            inside = sum(tensor.numel() for tensor in model.parameters())
        assert sum(tensor.numel() for tensor in model.parameters()) == inside
        assert inside < 0.6 * sum(tensor.numel() for tensor in make("mixtral").parameters())


class TestRefused:
    @pytest.mark.parametrize(
        ("family", "made", "count", "told"),
        [
            ("mixtral", {}, 3, "3 devices do not divide the model's 4 heads and 2 of the cache"),
            ("mixtral", {"num_attention_heads": 12, "num_key_value_heads": 4}, 6, "12 heads and 4 of the cache"),
            ("qwen3_moe", {}, 4, "4 devices leave 6 of 24 columns of each expert, 24 bytes"),
            ("mixtral", {"intermediate_size": 50}, 4, "4 devices do not divide 50 columns of experts"),
        ],
    )
    def test_numbers_that_do_not_divide(self, family, made, count, told):
        model = make(family, **made)
        with pytest.raises(InputError, match=told), share_of_rank(model, _alone(0, count), keep=True):
            pass

    @pytest.mark.parametrize("family", sorted(UNDIVIDED))
    def test_families_by_name(self, family):
        told = f"does not know how to divide the {UNDIVIDED[family]} of {type(make(family)).__name__}"
        with pytest.raises(InputError, match=told), share_of_rank(make(family), _alone(0, 2), keep=True):
            pass

    @pytest.mark.parametrize("name", sorted(DIVIDES_OTHERWISE))
    def test_schedules_whose_devices_share_something_else(self, name):
        with pytest.raises(InputError, match=f"schedule {name}: its 2 devices divide (requests|layers)"):
            engine.run(make("mixtral"), PROMPTS, name, rank=Rank(0, 2))

    def test_no_others(self):
        others = (by_name(name).system for name in registered() if name not in DIVIDES_OTHERWISE)
        assert not any(one.splits_batch or one.divides_layers for one in others)

    def test_layers_on_the_host(self):
        policy = POLICY | {"layers_on_host": [0, 1]}
        with pytest.raises(InputError, match=r"layers_on_host: \[0, 1\]: 2 devices share each layer"):
            engine.run(make("mixtral"), PROMPTS, "hybrid", policy, rank=Rank(0, 2), device="emulated")

    def test_without_others(self):
        with pytest.raises(InputError, match="rank 0 of 2: this process has joined no other"):
            engine.run(make("mixtral"), PROMPTS, rank=Rank(0, 2), device="emulated")


def _alone(index, count):
    return RankSums(Rank(index, count), None, None, None)


class TestMemory:
    @pytest.mark.parametrize(
        ("family", "name", "places"),
        [
            ("deepseek_v3", "cgopipe", {"attention": "gpu", "experts_on_device": 0.5}),
            ("qwen2_moe", "hybrid", {"experts_on_host": 0.5, "experts_on_device": 0.25}),
            *(
                pytest.param(family, name, places, marks=pytest.mark.exhaustive)
                for family in ("mixtral", "gpt_oss", "qwen3_moe", "deepseek_v3")
                for name in ("cgopipe", "hybrid")
                for places in ({}, {"experts_on_device": 0.5}, {"attention": "gpu"})
            ),
        ],
    )
    def test_a_rank_keeps_to_the_plan_for_so_many_devices(self, two, tmp_path, family, name, places):
        lengths, size, new = [12] * 6, 3, 6
        schedule = by_name(name)
        wide(family).config.save_pretrained(tmp_path)
        planned = Model.load(tmp_path)
        policy, batch = Policy.usual(schedule, len(lengths), size, **places), as_run(lengths, size, new)
        shape = policy.shape(schedule, planned, len(batch.micro_batches))
        plan = plan_memory(schedule, shape, policy, planned, batch, 2).peak_bytes()
        peaks = two(peaks_of, family, name, places, lengths, size, new)
        for peak in peaks:
            assert peak["device"] <= plan["device"] + ALIGNED_BYTES
            assert plan["device"] <= 1.15 * peak["device"] + ALIGNED_BYTES
        assert sum(peak["host"] for peak in peaks) <= plan["host"] + 2 * ALIGNED_BYTES
        assert sum(peak["pinned"] for peak in peaks) <= plan["pinned"] + 2 * ALIGNED_BYTES


@pytest.mark.exhaustive
def test_prompts_that_differ_are_refused(two):
    with pytest.raises(AssertionError, match="the requests of rank 1 and of rank 0 differ: call each with the same"):
        two(_asks_for_its_own)


def _asks_for_its_own(rank):
    return engine.run(make("mixtral"), make_prompts(3 + rank.index), rank=rank, device="emulated", max_new_tokens=2)
