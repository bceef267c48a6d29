"""What experts cost where they are: worked out by hand on the machine of round numbers.

One expert of Mixtral has 3 x 4096 x 14336 weights of 2 bytes; each token uses 2 of 8.
"""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import cost_of, few_layers, made_setup, one_task, preset, round_machine

from sim.cost import ExpertUse
from sim.cost.pools import ALL_CORES, CPU_CORES, DRAM
from sim.problem import Batch, Problem, Routing, Tiles, Workload
from sim.schedule import DEFERRED, ExpertPlace, Op
from sim.simulation import predict

US = 1_000
EXPERT = 2 * 3 * 4096 * 14336
HIDDEN = 2 * 4096
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


def touched(tokens, experts, of=8, top_k=2):
    return experts * (1 - (1 - top_k / of) ** tokens)


def on_host(**fields):
    return {"schedule": "cpu-experts", "micro_batch_size": 64, "experts_on_device": 0.5, **fields}


def with_tiles(tokens):
    machine = round_machine()
    return replace(machine, device=replace(machine.device, tiles=Tiles(1, 1, 1, tokens)))


class TestHost:
    def test_many_tokens_read_each_expert_once_or_compute_for_each_pair(self):
        costs = made_setup(**on_host()).costs()
        durations = [costs(one_task(Op.HOST_EXPERTS, layer=layer)).duration_ns for layer in range(32)]
        pairs = 64 * 2 * 4 / 8
        read_s = (touched(64, 4) * EXPERT + pairs * 2 * HIDDEN) / (0.7 * 100e9)
        compute_s = pairs * 2 * 3 * 4096 * 14336 / (0.7 * 1e12)
        assert compute_s > read_s, "on this machine 64 tokens are bound by arithmetic"
        assert sum(durations) / 32 == pytest.approx(20 * US + compute_s * 1e9, rel=1e-6)
        assert costs(one_task(Op.HOST_EXPERTS)).bound == "host compute"

    def test_one_token_waits_for_the_memory(self):
        cost = cost_of(one_task(Op.HOST_EXPERTS, layer=0), **on_host(micro_batch_size=1, experts_on_device=0.0))
        assert cost.bytes == round(2 * EXPERT + 2 * 2 * HIDDEN)
        assert cost.duration_ns == pytest.approx(20 * US + cost.bytes / (0.7 * 100), abs=1)
        assert cost.bound == "host memory"

    def test_it_holds_all_cores_and_takes_its_bytes_from_dram(self):
        cost = cost_of(one_task(Op.HOST_EXPERTS), **on_host())
        demands = dict(cost.demands)
        assert demands[CPU_CORES] == ALL_CORES
        assert demands[DRAM] * cost.duration_ns * 1e-9 == pytest.approx(cost.bytes, rel=1e-6)

    def test_a_measured_fixed_time_and_slowness_for_few_tokens_an_expert_count(self):
        machine = round_machine()
        table = machine.to_dict()
        one = {"basis": "measured", "source": "a round number"}
        table["host"]["experts"]["latency"] = {"value": 100, "unit": "us", **one}
        table["host"]["experts"]["at_tokens"] = [
            {"tokens": 1, "time_ratio": {"value": 3, "unit": "1", **one}},
            {"tokens": 64, "time_ratio": {"value": 1, "unit": "1", **one}},
        ]
        slower = type(machine).from_dict(table)
        plain, slow = (
            cost_of(one_task(Op.HOST_EXPERTS), **on_host(micro_batch_size=1, experts_on_device=0.0, machine=one))
            for one in (machine, slower)
        )
        assert slow.duration_ns - (120 * US) == pytest.approx(3 * (plain.duration_ns - 20 * US), abs=3)


class TestDeferral:
    """One of the two experts of each token counts a layer late."""

    def test_one_token_reads_one_expert_at_once_and_one_late(self):
        setup = made_setup(**on_host(micro_batch_size=1, experts_on_device=0.0, defer_experts=1))
        for page in (-1, DEFERRED):
            cost = setup.costs()(one_task(Op.HOST_EXPERTS, layer=0, page=page))
            assert cost.bytes == round(EXPERT + 2 * HIDDEN)
            assert setup.costs()(one_task(Op.LOAD_OUTPUT, layer=0, page=page)).bytes == HIDDEN

    def test_the_last_layer_and_prefill_defer_nothing(self):
        setup = made_setup(**on_host(micro_batch_size=1, experts_on_device=0.0, defer_experts=1, prefill_experts="cpu"))
        costs, plain = setup.costs(), made_setup(**on_host(micro_batch_size=1, experts_on_device=0.0)).costs()
        last = one_task(Op.HOST_EXPERTS, layer=31)
        assert costs(last) == plain(last)
        assert not setup.shape.defers(0, 0)
        assert setup.shape.defers(1, 30)

    def test_parts_have_all_pairs_between_them_and_read_some_experts_twice(self):
        setup = made_setup(**on_host(defer_experts=1, experts_on_device=0.25))
        use = ExpertUse(setup.placement, Routing(), setup.schedule.system)
        pairs, read = {}, {}
        for part in (None, 1):
            of_layers = [use.of_group(layer, 16, ExpertPlace.HOST, part) for layer in range(32)]
            pairs[part], read[part] = (sum(some) / 32 for some in list(zip(*of_layers, strict=True))[:2][::-1])
        assert 2 * pairs[1] == pytest.approx(pairs[None])
        assert read[1] < read[None] < 2 * read[1]
        assert read[1] == pytest.approx(6 * (1 - (1 - 1 / 8) ** 16))

    def test_three_experts_of_four_late(self):
        fields = {"model": few_layers("qwen3-30b-a3b", 2), "experts_on_device": 0.0, "micro_batch_size": 1}
        costs = made_setup("cpu-experts", defer_experts=6, **fields).costs()
        soon, late = (costs(one_task(Op.HOST_EXPERTS, page=page)).bytes for page in (-1, DEFERRED))
        assert late == pytest.approx(3 * soon, rel=1e-3)

    def test_one_request_decodes_faster_where_the_host_works_most(self):
        fields = on_host(micro_batch_size=1, experts_on_device=0.0, prefill_experts="cpu")
        plain, late = (predict(made_setup(**fields, defer_experts=count)) for count in (0, 1))
        assert plain.decode.bottleneck == "CPU"
        assert late.decode_s < plain.decode_s
        assert late.prefill_s == plain.prefill_s

    def test_two_layers_tokens_and_a_second_output_take_memory(self):
        plain, late = (made_setup(**on_host(micro_batch_size=4, defer_experts=count)).memory for count in (0, 1))
        routed = HIDDEN + 2 * (8 + 4)
        assert late.host["expert exchange"] - plain.host["expert exchange"] == 4 * (routed + HIDDEN)
        assert late.device["expert exchange"] - plain.device["expert exchange"] == 4 * HIDDEN


class TestExchange:
    def test_all_tokens_go_to_the_host_with_their_experts_and_weights(self):
        cost = cost_of(one_task(Op.OFFLOAD_TOKENS), **on_host())
        assert cost.bytes == 64 * (HIDDEN + 2 * (8 + 4))
        assert cost.duration_ns == pytest.approx(3 * 30 * US + cost.bytes / 8, abs=1)

    def test_only_the_choice_goes_where_the_host_computes_none(self):
        cost = cost_of(one_task(Op.OFFLOAD_TOKENS), schedule="expert-cache", experts_on_device=0.5, micro_batch_size=64)
        assert cost.bytes == 64 * 2 * (8 + 4)

    def test_one_output_a_token_comes_back(self):
        cost = cost_of(one_task(Op.LOAD_OUTPUT), **on_host())
        assert cost.bytes == 64 * HIDDEN
        assert cost.duration_ns == pytest.approx(30 * US + 64 * HIDDEN / 10, abs=1)

    @pytest.mark.parametrize(("locked", "rate"), [(0.0, 4), (1.0, 10)])
    def test_what_is_fetched_is_what_is_asked_for(self, locked, rate):
        fields = {"schedule": "hybrid", "experts_on_host": 0.25, "experts_fetched": 0.25, "experts_on_device": 0.5}
        cost = cost_of(one_task(Op.FETCH_EXPERTS), **fields, groups=1, pin_weights=locked, micro_batch_size=64)
        assert cost.bytes == pytest.approx(touched(128, 2) * EXPERT, rel=1e-9)
        assert cost.duration_ns == pytest.approx(2 * 30 * US + cost.bytes / rate, rel=1e-6)


class TestDevice:
    def test_experts_of_a_group_are_read_once_for_all_its_micro_batches(self):
        fields = {"schedule": "hybrid", "micro_batch_size": 4, "num_micro_batches": 4, "experts_on_device": 1.0}
        whole, half, each = (cost_of(one_task(Op.DEVICE_EXPERTS), **fields, groups=groups) for groups in (1, 2, 4))
        for cost, tokens in ((whole, 16), (half, 8), (each, 4)):
            assert cost.bytes == pytest.approx(touched(tokens, 8) * EXPERT + tokens * 2 * 2 * HIDDEN, abs=1)

    def test_a_task_of_one_group_does_not_take_what_another_costs(self):
        """Five micro-batches in two groups, of two and three: the costs differ, and are kept apart."""
        setup = made_setup("hybrid", 4, 5, experts_on_device=0.5, experts_on_host=0.5, groups=2)
        costs = setup.costs()
        assert [len(setup.shape.group(group)) for group in (0, 1)] == [2, 3]
        for op in (Op.DEVICE_EXPERTS, Op.HOST_EXPERTS, Op.OFFLOAD_TOKENS, Op.LOAD_OUTPUT):
            assert costs(one_task(op, micro_batch=0)).bytes < costs(one_task(op, micro_batch=2)).bytes

    @pytest.mark.parametrize(("schedule", "op"), [("cgopipe", Op.POST_ATTN), ("hybrid", Op.DEVICE_EXPERTS)])
    def test_tiles_take_as_long_for_a_few_tokens_as_for_all_that_they_hold(self, schedule, op):
        """Of 4096 rows, so that arithmetic counts: each of eight experts has few of 64 tokens, and computes a tile."""
        fields = {"schedule": schedule, "experts_on_device": 1.0, "num_micro_batches": 1}
        plain, single, tiled = (
            [cost_of(one_task(op), **fields, micro_batch_size=size, machine=one) for size in (64, 128)]
            for one in (round_machine(), with_tiles(1), with_tiles(4096))
        )
        assert plain == single
        assert [one.flops for one in tiled] == [one.flops for one in plain], "what is padded is no work of the model"
        computed_s = 8 * 4096 * 2.0 * 3 * 4096 * 14336 / (0.25 * 100e12)
        for one in tiled:
            assert one.duration_ns * 1e-9 == pytest.approx(computed_s, rel=0.01)
            assert one.bound == "device compute"

    def test_tiles_of_a_device_are_none_of_the_host(self):
        plain, tiled = (cost_of(one_task(Op.HOST_EXPERTS), **on_host(machine=m)) for m in (None, with_tiles(64)))
        assert plain == tiled

    def test_routing_is_post_attention_without_its_experts(self):
        fields = {"schedule": "hybrid", "experts_on_device": 1.0, "micro_batch_size": 8, "num_micro_batches": 1}
        parts = [cost_of(one_task(op), **fields) for op in (Op.ROUTE, Op.DEVICE_EXPERTS)]
        whole = cost_of(one_task(Op.POST_ATTN), **{**fields, "schedule": "cgopipe"})
        assert sum(one.flops for one in parts) == whole.flops
        assert sum(one.bytes for one in parts) == pytest.approx(whole.bytes, rel=1e-3)

    @pytest.mark.parametrize(
        ("op", "name", "like"), [(Op.ROUTE, "route", "gemm"), (Op.DEVICE_EXPERTS, "experts_apart", "experts")]
    )
    def test_a_class_of_its_own_counts_where_experts_are_apart_and_nowhere_else(self, op, name, like):
        table = round_machine().to_dict()
        one = {"basis": "measured", "source": "a round number"}
        table["device"][name] = {**table["device"][like], "latency": {"value": 100, "unit": "us", **one}}
        fields = {"schedule": "hybrid", "experts_on_device": 1.0, "micro_batch_size": 8, "num_micro_batches": 1}
        machines = round_machine(), type(round_machine()).from_dict(table)
        for task, extra in ((one_task(op), 100 * US), (one_task(Op.PRE_ATTN), 0), (one_task(Op.HEAD), 0)):
            plain, other = (cost_of(task, **fields, machine=machine).duration_ns for machine in machines)
            assert other - plain == extra
        fields["schedule"] = "cgopipe"
        plain, other = (cost_of(one_task(Op.POST_ATTN), **fields, machine=machine).duration_ns for machine in machines)
        assert other == plain


class TestDraws:
    """Layers of one kind differ in what few tokens use, since the slower place of each counts; their mean does not."""

    def costs(self, tokens, routing="uniform", **fields):
        problem = Problem(preset("qwen3-30b-a3b"), round_machine(), Workload.fixed(100, 4), Routing.parse(routing))
        setup = made_setup("hybrid", tokens, 1, **fields)
        setup = type(setup)(problem, setup.schedule, setup.policy)
        return [setup.costs()(one_task(Op.HOST_EXPERTS, layer=layer)).bytes for layer in range(48)]

    @given(tokens=st.integers(1, 12), share=st.sampled_from([0.25, 0.5, 0.75]))
    @SETTINGS
    def test_their_mean_is_what_is_expected(self, tokens, share):
        found = self.costs(tokens, experts_on_host=share, experts_on_device=1 - share)
        one, pair = 2 * 3 * 2048 * 768, 2 * 2 * 2048
        expected = touched(tokens, 128 * share, 128, 8) * one + tokens * 8 * share * pair
        assert sum(found) / len(found) == pytest.approx(expected, rel=1e-6)

    def test_one_token_uses_now_more_now_fewer_of_the_hosts(self):
        found = self.costs(1, experts_on_host=0.5, experts_on_device=0.5)
        assert max(found) > 1.3 * min(found)
        assert len(set(found)) > 3

    def test_many_tokens_use_the_same(self):
        found = self.costs(4096, experts_on_host=0.5, experts_on_device=0.5)
        assert max(found) == pytest.approx(min(found), rel=1e-2)

    def test_unpopular_experts_on_the_host_are_used_less(self):
        fields = {"experts_on_host": 0.5, "experts_on_device": 0.5}
        assert sum(self.costs(4, "zipf:1", **fields)) < 0.6 * sum(self.costs(4, **fields))

    def test_a_cache_of_those_used_last_knows_popular_ones(self):
        fields = {"schedule": "expert-cache", "experts_on_device": 0.5, "micro_batch_size": 1}
        setup = made_setup(**fields)
        skewed = Problem(setup.problem.model, setup.problem.hardware, setup.problem.workload, Routing.parse("zipf:2"))
        some, fewer = (
            type(setup)(problem, setup.schedule, setup.policy).costs()(one_task(Op.FETCH_EXPERTS)).bytes
            for problem in (setup.problem, skewed)
        )
        assert some == pytest.approx(EXPERT, rel=0.01), "half of the two experts of a token"
        assert fewer < 0.8 * some


@pytest.mark.parametrize("name", ["n-cpu-moe", "cpu-experts", "expert-cache", "hybrid"])
def test_with_all_experts_on_the_device_nothing_goes_to_the_host(name):
    places = made_setup(name, experts_on_device=1.0).shape.experts
    assert set(places) == {ExpertPlace.DEVICE}


@pytest.mark.parametrize(("bits", "place"), list(product([None, 8.5, 4.5], ["cpu", "gpu"])))
def test_memory_holds_each_expert_once_wherever_it_is(bits, place):
    """What the places take together is all experts; prefill on the device needs slots for what comes then."""
    model = few_layers("mixtral-8x7b", 4)
    fields = {"experts_on_device": 0.25, "experts_on_host": 0.5, "weight_bits": bits, "prefill_experts": place}
    memory = made_setup("hybrid", model=model, **fields).memory
    one = model.layers[0].expert_bytes(bits or 16)
    assert memory.device["resident experts"] == 4 * 2 * one
    assert memory.host["experts on the host"] == 4 * 4 * one
    assert memory.host["streamed weights"] == 4 * 2 * one
    assert memory.device["weight slots"] == 2 * (2 if place == "cpu" else 6) * one


def test_a_batch_of_one_is_faster_with_experts_on_the_host_than_with_any_streamed():
    """The case that whole-layer schedules cannot answer: one request, experts that do not fit."""
    workload = Workload.fixed(100, 16)
    alone = {"workload": workload, "micro_batch_size": 1, "num_micro_batches": 1}
    streamed = predict(made_setup("cgopipe", **alone), compiled=True)
    for name in ("n-cpu-moe", "cpu-experts"):
        assert predict(made_setup(name, **alone), compiled=True).token_s < streamed.token_s / 3


def test_tokens_of_a_group_are_those_of_its_micro_batches():
    setup = made_setup("hybrid", 4, 4, experts_on_host=1.0, groups=2)
    assert isinstance(setup.batch, Batch)
    costs = setup.costs()
    assert costs(one_task(Op.LOAD_OUTPUT, micro_batch=0)).bytes == 8 * HIDDEN
    assert costs(one_task(Op.LOAD_OUTPUT, step=0, micro_batch=2)).bytes == 800 * HIDDEN
