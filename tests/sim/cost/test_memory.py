"""The memory plan: every byte of a policy by hand, and whether published policies fit the machines they ran on.

Mixtral 8x7B: 32 layers, hidden size 4096, 32 query and 8 KV heads of 128, 8 experts of width 14336, 2 of them a token,
a vocabulary of 32000; everything in two bytes.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import few_layers, made_setup, preset, round_machine

from sim.cost import CacheContent, Setup, Shortage
from sim.cost.memory import MemoryPlan, kv_bytes
from sim.problem import (
    Basis,
    Batch,
    Hardware,
    Memory,
    MicroBatch,
    Model,
    Policy,
    Problem,
    Quantity,
    Workload,
    make_batch,
)
from sim.schedule import by_name, registered
from traces.errors import InputError

SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)

EXPERT = 2 * 3 * 4096 * 14336
EXPERTS = 8 * EXPERT  # of a layer
EMBEDDING_AND_HEAD = 2 * (2 * 32_000 * 4096 + 4096)  # and the final norm
NON_EXPERTS = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 2 * 4096)  # attention, router, two norms
KV = 4096  # of a token and layer
EXCHANGE = 2 * (4096 + 2 * 1024 + 4096)  # of a request: query, new key and value, attention's output
ROUTING = 8 * 8 + 48 * 2  # of a token: scores of 8 experts; of 2 of them weight, number and place


def plan(schedule="cgopipe", size=36, count=14, **changes):
    """The plan of MoE-Lightning's policy for S1: prompts of 418, 128 tokens generated."""
    changes = {"workload": Workload.fixed(418, 128), **changes}
    return made_setup(schedule, size, count, **changes).memory


class TestByHand:
    def test_cgopipe(self):
        prompt = 36 * 418  # tokens of a micro-batch
        assert plan() == MemoryPlan(
            device={
                "embedding and head": EMBEDDING_AND_HEAD,
                "non-expert weights": 32 * NON_EXPERTS,
                "weight slots": 2 * EXPERTS,
                "kv buffers": 2 * prompt * KV,
                "attention exchange": 504 * EXCHANGE,
                "activations": prompt * (2 * (2 * 4096 + 2 * (4096 + 3 * 14336)) + ROUTING),
                "hidden states": 2 * 4096 * (3 * prompt + 504),
            },
            host={
                "streamed weights": 32 * EXPERTS,
                "kv cache": 32 * 504 * (418 + 127) * KV,
                "hidden states": 2 * 4096 * 504 * 418,
                "attention exchange": 504 * EXCHANGE,
                "kv buffers": 2 * prompt * KV,
                "staging": EXPERTS,
            },
            pinned={
                "hidden states": 2 * 4096 * 504 * 418,
                "attention exchange": 504 * EXCHANGE,
                "kv buffers": 2 * prompt * KV,
                "staging": EXPERTS,
            },
        )
        assert plan().peak_bytes() == {"device": 12_440_198_400, "host": 130_875_162_624, "pinned": 4_677_992_448}

    def test_fastdecode_stages_two_layers(self):
        assert plan("fastdecode").host["staging"] == plan("fastdecode").pinned["staging"] == 2 * EXPERTS
        assert plan("fastdecode").device == plan().device

    def test_flexgen_buffers_the_cache_of_a_micro_batch_and_stages_nothing(self):
        flexgen, cgopipe = plan("flexgen"), plan()
        assert flexgen.device["kv buffers"] == 2 * 36 * (418 + 545) * KV, "new entries, and the cache at its longest"
        assert {**flexgen.device, "kv buffers": 0, "attention exchange": 504 * EXCHANGE} == {
            **cgopipe.device,
            "kv buffers": 0,
        }
        exchanged = ("staging", "attention exchange", "kv buffers")  # with attention on the CPU
        assert flexgen.host == {part: size for part, size in cgopipe.host.items() if part not in exchanged}
        assert flexgen.pinned == {}

    def test_zero_streams_all_layers_and_keeps_the_cache(self):
        prompt = 32 * 418
        assert plan("zero", 32) == MemoryPlan(
            device={
                "embedding and head": EMBEDDING_AND_HEAD,
                "weight slots": 2 * (EXPERTS + NON_EXPERTS),
                "kv cache": 32 * 32 * 545 * KV,
                "activations": prompt * (2 * (2 * 4096 + 2 * (4096 + 3 * 14336)) + ROUTING),
                "hidden states": 2 * 4096 * prompt,
            },
            host={"streamed weights": 32 * (EXPERTS + NON_EXPERTS)},
            pinned={},
        )

    def test_two_devices_share_weights_and_cache_but_not_hidden_states(self):
        alone, shared = plan(), plan(machine=round_machine(2))
        for part in ("embedding and head", "weight slots", "kv buffers", "attention exchange"):
            assert 2 * shared.device[part] == alone.device[part]
        router_and_norms = 32 * 2 * (8 + 2) * 4096
        assert 2 * shared.device["non-expert weights"] == alone.device["non-expert weights"] + router_and_norms
        assert shared.device["hidden states"] == alone.device["hidden states"]
        assert shared.device["activations"] == 36 * 418 * (2 * (2 * 4096 + 2 * (4096 + 3 * 14336 // 2)) + ROUTING)
        for ours, theirs in ((shared.host, alone.host), (shared.pinned, alone.pinned)):
            assert ours == {part: size * (2 if part == "hidden states" else 1) for part, size in theirs.items()}

    def test_devices_with_one_head_of_the_cache_have_it_each(self):
        alone, many = plan(), plan(machine=round_machine(16))  # 8 heads
        assert many.host["kv cache"] == 2 * alone.host["kv cache"]
        assert 16 * many.device["kv buffers"] == 2 * alone.device["kv buffers"]

    def test_devices_that_share_a_latent_have_it_each(self):
        model, workload = preset("deepseek-v2-lite"), Workload.fixed(100, 4)
        alone, shared = (plan(model=model, workload=workload, machine=round_machine(n)) for n in (1, 2))
        assert shared.host["kv cache"] == 2 * alone.host["kv cache"]
        assert shared.device["kv buffers"] == alone.device["kv buffers"]

    def test_logits_count_where_a_vocabulary_is_larger_than_the_rest(self):
        model = replace(preset("mixtral-8x7b"), vocab_size=2_000_000)
        assert (
            plan(size=100, model=model, workload=Workload.fixed(1, 4)).device["activations"]
            == (2 + 4) * 100 * 2_000_000
        )

    def test_a_dense_and_an_mla_layer(self):
        # DeepSeek-V2-Lite: one dense layer of width 10944, then 26 of 64 experts (width 1408, 6 a token) and 2 shared.
        made = made_setup(model=preset("deepseek-v2-lite"), workload=Workload.fixed(100, 4)).memory
        experts = 64 * 2 * 3 * 2048 * 1408
        assert made.host["streamed weights"] == 26 * experts
        assert made.device["weight slots"] == 2 * experts
        assert made.host["kv cache"] == 27 * 16 * 103 * 2 * (512 + 64)
        outputs, shared_output = (
            6 * 4 * 2048,
            2048,
        )  # wider than input, gate, up and product, and than the dense network
        routing = 8 * 64 + 48 * 6
        assert made.device["activations"] == 800 * (2 * (2 * 2048 + outputs + shared_output) + routing)

    def test_experts_in_two_places_gather_their_tokens_and_share_a_result(self):
        half = plan(experts_on_device=0.5).device["activations"]
        assert half == 36 * 418 * (2 * (2 * 4096 + 2 * (4096 + 3 * 14336 + 4096) + 4096) + ROUTING)
        assert plan(experts_on_device=1.0).device["activations"] == plan().device["activations"]

    def test_sinks_need_the_scores(self):
        # gpt-oss-20b: hidden size 2880, 64 heads, 4 of 32 experts of width 2880 with biases and clamped gates.
        short, long = (
            made_setup(model=preset("gpt-oss-20b"), workload=Workload.fixed(tokens, 4)) for tokens in (20, 2000)
        )
        masks = (2 * 2 * 2 + 1) * 8 * 20**2  # of two kinds of layers in two micro-batches, and one in the making
        assert short.memory.device["activations"] == masks + 8 * 20 * (2 * (2 * 2880 + 4 * 10 * 2880) + 8 * 32 + 48 * 4)
        held = 8 * 2000 * (2 * 2880 + 4 * 64 * 64 + 2 * 8 * 64) + (3 * 64 + 4.5) * 8 * 2000**2
        assert long.memory.device["activations"] == 2 * held + 8 * 2000 * (8 * 32 + 48 * 4)

    def test_two_devices_share_heads_and_each_chooses_among_all_words(self):
        made = made_setup(model=preset("gpt-oss-20b"), workload=Workload.fixed(2000, 4), machine=round_machine(2))
        held = 8 * 2000 * (2 * 2880 + (4 * 64 * 64 + 2 * 8 * 64) // 2) + (3 * 64 // 2 + 4.5) * 8 * 2000**2
        assert made.memory.device["activations"] == 2 * held + 8 * 2000 * (8 * 32 + 48 * 4)
        model = replace(preset("mixtral-8x7b"), vocab_size=2_000_000)
        shared = plan(size=100, model=model, workload=Workload.fixed(1, 4), machine=round_machine(2))
        assert shared.device["activations"] == (2 + 4) * 100 * 2_000_000

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_latent_attention_holds_keys_and_values_of_every_head_twice_in_prefill(self, ranks):
        # DeepSeek-V2-Lite: 16 heads of 192 with values of 128, a cache of 576; with one expert a token it needs most.
        deepseek = preset("deepseek-v2-lite")
        model = replace(deepseek, layers=tuple(replace(one, top_k=1, shared=None) for one in deepseek.layers[1:3]))
        made = made_setup(model=model, workload=Workload.fixed(100, 4), machine=round_machine(ranks)).memory
        held = (4 * 16 * 192 + 576 + 2 * 16 * (192 + 128)) // ranks
        assert made.device["activations"] == 800 * (2 * (2 * 2048 + held) + 8 * 64 + 48)

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_a_dense_network_holds_gate_up_and_their_product(self, ranks):
        dense, sparse = preset("deepseek-v2-lite").layers[:2]
        model = replace(preset("deepseek-v2-lite"), layers=(dense, replace(sparse, top_k=1, shared=None)))
        made = made_setup(model=model, workload=Workload.fixed(100, 4), machine=round_machine(ranks)).memory
        assert made.device["activations"] == 800 * 2 * (2 * 2048 + 3 * 10_944 // ranks)


class TestUnevenMicroBatches:
    @pytest.mark.parametrize("model", ["mixtral-8x7b", "gpt-oss-20b"])
    def test_buffers_are_those_of_the_largest(self, model):
        short, long = MicroBatch(8, 8_000, 8_000_000, 1000), MicroBatch(8, 16_000, 32_000_000, 2000)
        setup = made_setup(model=preset(model), attention="gpu")
        plans = [replace(setup, given_batch=Batch(two, 0, 4)).memory for two in ((short, long), (long, short))]
        even = replace(setup, given_batch=Batch((long, long), 0, 4)).memory
        for made in plans:
            masks = 2 * 2 * 8 * (2000**2 - 1000**2) if model == "gpt-oss-20b" else 0  # each has those of its own
            assert made.device["activations"] == even.device["activations"] - masks
            for part in ("kv buffers", "hidden states"):
                assert made.device[part] == even.device[part]

    def test_logits_are_those_of_the_most_requests(self):
        model = replace(preset("mixtral-8x7b"), vocab_size=2_000_000)
        few, many = MicroBatch(8, 8, 8, 1), MicroBatch(100, 100, 100, 1)
        made = replace(made_setup(model=model), given_batch=Batch((few, many), 0, 4)).memory
        assert made.device["activations"] == (2 + 4) * 100 * 2_000_000

    def test_drawn_tokens_need_a_copy_or_more_of_some_requests_scores(self):
        model, scores = replace(preset("mixtral-8x7b"), vocab_size=2_000_000), (2 + 4) * 2_000_000
        for requests, at_once in ((3, 3), (100, 8)):
            batch = Batch((MicroBatch(requests, requests, requests, 1),), 0, 4, sampled=True)
            made = replace(made_setup(model=model), given_batch=batch).memory
            assert made.device["activations"] == requests * scores + at_once * 48 * 2_000_000

    def test_padding_and_windows_need_masks(self):
        def more(model, *batches):
            setup = made_setup(model=preset(model))
            plans = [replace(setup, given_batch=Batch(one, 0, 4)).memory.device["activations"] for one in batches]
            return plans[1] - plans[0]

        whole, padded = MicroBatch(8, 800, 80_000, 100), MicroBatch(8, 800, 80_000, 100, 7)
        assert more("mixtral-8x7b", (whole, whole), (whole, padded)) == (1 + 1) * 8 * 100**2
        assert more("mixtral-8x7b", (whole, whole), (padded, padded)) == (2 + 1) * 8 * 100**2
        assert more("gpt-oss-20b", (whole, whole), (padded, padded)) == 0, "it has them in any case"
        layers = (
            layer := preset("mixtral-8x7b").layers[0],
            replace(layer, attention=replace(layer.attention, window=50)),
        )
        windows = replace(preset("mixtral-8x7b"), layers=layers)
        cut = replace(made_setup(model=windows), given_batch=Batch((whole, whole), 0, 4)).memory
        beyond = replace(layer, attention=replace(layer.attention, window=500))
        uncut = replace(windows, layers=(layer, beyond))
        wide = replace(made_setup(model=uncut), given_batch=Batch((whole, whole), 0, 4)).memory
        assert cut.device["activations"] - wide.device["activations"] == (2 + 1) * 8 * 100**2


class TestPartsOfTheBatch:
    """Devices that each run a part of the requests, as stages of a pipeline or with ZeRO."""

    @pytest.mark.parametrize(("name", "alone", "shared"), [("flexgen", (8, 3), (8, 6)), ("zero", (8, 1), (16, 1))])
    def test_each_has_buffers_of_its_own_and_a_part_of_what_stays(self, name, alone, shared):
        one, two = plan(name, *alone), plan(name, *shared, machine=round_machine(2))
        for part in {"weight slots", "kv buffers", "kv cache", "activations", "hidden states"} & one.device.keys():
            assert two.device[part] == one.device[part]
        for part in {"embedding and head", "non-expert weights"} & one.device.keys():
            assert 2 * two.device[part] == one.device[part]

    def test_the_host_holds_the_weights_once_and_the_cache_of_all(self):
        one, two = plan("flexgen", 8, 3), plan("flexgen", 8, 6, machine=round_machine(2))
        assert two.host["streamed weights"] == one.host["streamed weights"]
        for part in ("kv cache", "hidden states"):
            assert two.host[part] == 2 * one.host[part]


class TestParts:
    @pytest.mark.parametrize(("share", "whole"), [(0.0, 0), (0.0559, 0), (0.125, 1), (0.3, 2), (1.0, 8)])
    def test_resident_experts_are_whole_and_leave_the_host(self, share, whole):
        made = plan(experts_on_device=share)
        assert made.device.get("resident experts", 0) == 32 * whole * EXPERT
        assert made.host.get("streamed weights", 0) == 32 * (8 - whole) * EXPERT
        assert made.device.get("weight slots", 0) == 2 * (8 - whole) * EXPERT
        assert made.pinned.get("staging", 0) == (8 - whole) * EXPERT

    def test_pinned_weights_replace_the_staging_and_stay_in_the_hosts_memory(self):
        made = plan(pin_weights=True)
        others = {part: size for part, size in plan().pinned.items() if part != "staging"}
        assert made.pinned == {"streamed weights": 32 * EXPERTS, **others}
        assert made.host == {part: size for part, size in plan().host.items() if part != "staging"}

    @pytest.mark.parametrize("name", ["cgopipe", "fastdecode", "flexgen", "zero"])
    def test_a_share_of_each_layer_is_page_locked_in_place_and_the_rest_is_staged(self, name):
        streamed = EXPERTS + NON_EXPERTS if name == "zero" else EXPERTS
        locked = int(0.6 * streamed) // 4096 * 4096
        made, turns = plan(name, pin_weights=0.6), {"cgopipe": 1, "fastdecode": 2}.get(name, 0)
        assert made.pinned["streamed weights"] == 32 * locked
        assert made.host["streamed weights"] == 32 * streamed, "they are there once, page-locked or not"
        assert made.pinned.get("staging", 0) == made.host.get("staging", 0) == turns * (streamed - locked)

    def test_staging_holds_what_the_largest_layer_has_to_stage(self):
        # layer 0 of DeepSeek-V2-Lite is dense and streams nothing of its own
        experts = 64 * 2 * 3 * 2048 * 1408
        made = made_setup(model=preset("deepseek-v2-lite"), workload=Workload.fixed(100, 4), pin_weights=0.5).memory
        assert made.pinned["streamed weights"] == 26 * (experts // 2)
        assert made.pinned["staging"] == experts - experts // 2

    @given(name=st.sampled_from(sorted(registered())), low=st.floats(0, 1), high=st.floats(0, 1))
    @SETTINGS
    def test_more_page_locked_weights_take_more_page_locked_memory_and_no_more_of_the_hosts(self, name, low, high):
        less, more = (plan(name, pin_weights=share).peak_bytes() for share in sorted((low, high)))
        assert more["pinned"] >= less["pinned"]
        assert more["host"] <= less["host"]
        assert more["device"] == less["device"]

    @pytest.mark.parametrize("name", sorted(registered()))
    @pytest.mark.parametrize("pin", [False, 0.3, True])
    def test_pinned_memory_is_part_of_the_hosts(self, name, pin):
        made = plan(name, pin_weights=pin)
        assert all(size <= made.host[part] for part, size in made.pinned.items())

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
    def test_a_share_of_the_cache_moves_to_the_device(self, share):
        whole = 32 * 504 * 545 * KV
        made = plan("flexgen", kv_on_device=share)
        assert made.device["kv cache"] == share * whole
        assert made.host["kv cache"] == (1 - share) * whole
        assert made.device["kv buffers"] == 2 * 36 * (418 + 545 * (1 - share)) * KV

    def test_whole_requests_of_each_micro_batch_stay_on_the_device(self):
        """14 micro-batches of 36 requests, of which 0.3 are 10.8."""
        made = plan("flexgen", kv_on_device=0.3)
        assert made.device["kv cache"] == 32 * 14 * 10 * 545 * KV
        assert made.host["kv cache"] == 32 * 14 * 26 * 545 * KV
        assert made.device["kv buffers"] == 2 * (36 * 418 + 26 * 545) * KV

    @pytest.mark.parametrize(("share", "pieces"), [(0.0, 0), (0.5, 1), (0.01, 0)])
    def test_latent_attention_needs_a_cache_in_two_places_in_one_piece(self, share, pieces):
        changes = {"model": preset("deepseek-v2-lite"), "workload": Workload.fixed(100, 4)}
        made = made_setup("flexgen", 8, 3, **changes, kv_on_device=share).memory
        on_host = 8 - int(8 * share)
        token_bytes = 2 * (512 + 64)
        assert made.device["kv buffers"] == token_bytes * (2 * 8 * 100 + (2 * on_host + pieces * 8) * 103)

    def test_a_cache_that_is_all_on_the_device_needs_no_buffers(self):
        made = plan("flexgen", kv_on_device=1.0)
        assert made.device["kv cache"] == 32 * 504 * 545 * KV
        assert "kv buffers" not in made.device
        assert "kv cache" not in made.host

    def test_a_host_cache_is_pinned_where_the_schedule_loads_it_over_the_link_and_pins_it(self):
        assert plan(attention="gpu").pinned["kv cache"] == 32 * 504 * 545 * KV
        assert "kv buffers" not in plan(attention="gpu").pinned, "what prefill stores needs nowhere else to land"
        assert "kv cache" not in plan().pinned, "attention is where it lies"
        assert "kv cache" not in plan("flexgen").pinned

    def test_what_goes_to_the_host_and_back_is_pinned_where_the_system_does_that(self):
        passing = ("hidden states", "attention exchange", "kv buffers")
        assert all(plan().pinned[part] == plan().host[part] for part in passing)
        assert all(plan("flexgen-c").host[part] == plan().host[part] for part in passing)
        assert plan("flexgen-c").pinned == {}

    def test_narrower_numbers_take_fewer_bytes(self):
        made, half = plan(), plan(weight_bits=8, kv_bits=8)
        for tier, part in (("device", "weight slots"), ("device", "kv buffers"), ("host", "kv cache")):
            assert half.tiers()[tier][part] * 2 == made.tiers()[tier][part]
        assert half.host["streamed weights"] * 2 == made.host["streamed weights"]
        assert half.device["activations"] == made.device["activations"]

    @pytest.mark.parametrize(("count", "in_room"), [(14, 8), (2, 8), (1, 1)])
    def test_narrow_experts_are_unpacked_beside_them(self, count, in_room):
        """All of a layer where micro-batches share them, else a few: one so large. And one that is being unpacked."""
        made, own = plan(count=count, weight_bits=4.5), plan(count=count)
        assert made.device["unpacked experts"] == in_room * EXPERT + EXPERT * 4.5 / 16
        assert "unpacked experts" not in own.device
        assert "unpacked experts" not in plan(count=count, weight_bits=16).device
        assert made.device["weight slots"] == own.device["weight slots"] * 4.5 / 16

    def test_packed_experts_in_two_places_are_computed_in_one(self):
        half = {"weight_bits": 4.5, "experts_on_device": 0.5}
        assert plan(**half).device["activations"] == plan(weight_bits=4.5).device["activations"]
        assert plan(experts_on_device=0.5).device["activations"] > plan().device["activations"]

    def test_a_sliding_window_keeps_no_more_than_itself(self):
        model, workload = few_layers("mixtral-8x7b", 4, window=64), Workload.fixed(100, 4)
        batch = make_batch(workload, 16, 8)
        assert [CacheContent.of(layer, batch.micro_batches[0], 3).tokens for layer in model.layers[:2]] == [
            8 * 64,
            8 * 103,
        ]
        made = made_setup(model=model, workload=workload)
        assert made.memory.host["kv cache"] == 16 * (2 * 64 + 2 * 103) * KV
        for step, tokens in ((0, 100), (1, 101), (3, 103)):
            assert kv_bytes(model, made.policy, made.batch, step) == 16 * (2 * 64 + 2 * tokens) * KV

    def test_a_window_longer_than_the_context_changes_nothing(self):
        model = few_layers("mixtral-8x7b", 4, window=4096)
        assert made_setup(model=model).memory == made_setup(model=few_layers("mixtral-8x7b", 4)).memory

    @given(
        name=st.sampled_from(sorted(registered())),
        size=st.integers(1, 64),
        count=st.integers(1, 8),
        grow=st.sampled_from(["size", "count", "prompt", "generated"]),
        by=st.integers(1, 20),
    )
    @SETTINGS
    def test_more_of_anything_never_takes_less(self, name, size, count, grow, by):
        more = {"size": size, "count": count, "prompt": 50, "generated": 8}
        less = dict(more)
        more[grow] += by
        small, large = (
            plan(name, one["size"], one["count"], workload=Workload.fixed(one["prompt"], one["generated"])).peak_bytes()
            for one in (less, more)
        )
        assert all(large[tier] >= small[tier] for tier in small)


class TestShortage:
    def test_it_names_the_memory_and_the_exact_bytes(self):
        needed = 12_440_198_400
        setup = made_setup(
            micro_batch_size=36,
            num_micro_batches=14,
            workload=Workload.fixed(418, 128),
            machine=round_machine(device_memory__capacity=needed - 1_234_567),
        )
        assert setup.shortages == [Shortage("device", needed, needed - 1_234_567)]
        with pytest.raises(InputError) as caught:
            setup.require_fit()
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith("cgopipe with policy 36×14 does not fit round: ")
        assert "device memory is 1,234,567 bytes short" in message
        assert "needs 12.44 GB of 12.44 GB" in message

    @pytest.mark.parametrize(
        ("needed", "capacity", "told"),
        [
            (150_000_000, 100_000_000, "needs 0.15 GB of 0.10 GB"),
            (2_345_678, 99_999_999, "needs 2.35 MB of 100.00 MB"),
            (2_345_678, 1_200_000, "needs 2.35 MB of 1.20 MB"),
            (5_000_000_000, 64_000, "needs 5000000.00 kB of 64.00 kB"),
            (4_096, 0, "needs 4.10 kB of 0.00 kB"),
            (70, 64, "needs 70.00 bytes of 64.00 bytes"),
        ],
    )
    def test_small_memories_are_told_in_small_units(self, needed, capacity, told):
        assert told in str(Shortage("device", needed, capacity))

    def test_a_disk_is_said_to_be_no_help_where_the_host_is_too_small(self):
        given = ((2e12, "B"), (7e9, "B/s"))
        disk = Memory(*(Quantity(value, unit, Basis.ASSUMED, "a test") for value, unit in given))
        machine = replace(round_machine(host_memory__capacity=1e9, device_memory__capacity=1e9), disk=disk)
        told = {one.tier: str(one) for one in made_setup(machine=machine).shortages}
        assert told["host"].endswith("; the disk is not used: no schedule reads weights from one")
        assert "disk" not in told["device"]

    @pytest.mark.parametrize(
        ("tier", "path"),
        [("device", "device_memory__capacity"), ("host", "host_memory__capacity"), ("pinned", "pinned")],
    )
    def test_a_memory_may_be_filled_to_the_last_byte(self, tier, path):
        size = made_setup().memory.peak_bytes()[tier]
        assert not made_setup(machine=round_machine(**{path: size})).shortages
        (shortage,) = made_setup(machine=round_machine(**{path: size - 1})).shortages
        assert (shortage.tier, shortage.short_bytes) == (tier, 1)

    def test_all_are_named_the_largest_first(self):
        machine = round_machine(device_memory__capacity=1e9, host_memory__capacity=1e9, pinned=1e9)
        shortages = made_setup(machine=machine).shortages
        assert [one.tier for one in shortages] == ["host", "device", "pinned"]
        assert [one.short_bytes for one in shortages] == sorted((one.short_bytes for one in shortages), reverse=True)

    def test_a_setup_that_fits_is_not_refused(self):
        made_setup().require_fit()


S1, S2, S6 = ("gcp-t4", "mixtral-8x7b"), ("gcp-l4", "mixtral-8x7b"), ("gcp-2xt4", "mixtral-8x22b")
CGOPIPE = [  # setting, workload, padded, tokens generated, micro-batch size, micro-batches
    (S1, "mtbench", False, 32, 164, 19),
    (S1, "mtbench", False, 64, 164, 19),
    (S1, "mtbench", False, 128, 164, 14),
    (S1, "mtbench", False, 256, 100, 15),
    (S2, "mtbench", False, 32, 324, 14),
    (S2, "mtbench", False, 128, 164, 16),
    *((S1, "mtbench", True, n, 36, 14) for n in (32, 64, 128, 256)),
    (S2, "mtbench", True, 32, 68, 16),
    (S2, "mtbench", True, 128, 68, 13),
    *((S6, "mtbench", True, n, 36, 7) for n in (32, 64, 128, 256)),
    (S1, "helm-synthetic", True, 50, 36, 26),
    (S2, "helm-synthetic", True, 50, 100, 15),
]
FLEXGEN = [
    (S1, "mtbench", True, 32, 32, 40),
    (S1, "mtbench", True, 64, 16, 78),
    (S1, "mtbench", True, 128, 8, 139),
    (S1, "mtbench", True, 256, 8, 113),
    (S2, "mtbench", True, 32, 64, 21),
    (S2, "mtbench", True, 128, 64, 18),
    (S6, "mtbench", True, 32, 16, 46),
    (S6, "mtbench", True, 64, 4, 182),
    (S6, "mtbench", True, 128, 8, 80),
    (S6, "mtbench", True, 256, 2, 261),
    (S1, "helm-synthetic", True, 50, 32, 61),
    (S2, "helm-synthetic", True, 50, 64, 33),
]
ABLATION = [(S1, "mtbench", True, 128, 36, 14), (S1, "mtbench", True, 128, 36, 31)]
ZERO = [
    *((S6, "mtbench", True, n, 32, 1) for n in (32, 64, 128, 256)),
    (S1, "helm-synthetic", True, 50, 102, 1),
    (S2, "helm-synthetic", True, 50, 156, 1),
]
RUNS = {"cgopipe": CGOPIPE, "flexgen": FLEXGEN + ABLATION, "flexgen-c": FLEXGEN, "zero": ZERO}
PUBLISHED = [(name, *run) for name, runs in RUNS.items() for run in runs]
"""The policies of MoE-Lightning (ASPLOS 2025, tables 4 and 5, and its artifact)."""


@pytest.mark.parametrize(("name", "setting", "workload", "padded", "gen_len", "size", "count"), PUBLISHED)
def test_a_published_policy_fits_the_machine_it_ran_on(name, setting, workload, padded, gen_len, size, count):
    machine, model = setting
    asked = Workload.load(workload).with_(gen_len=gen_len, padded=padded)
    schedule = by_name(name)
    policy = Policy.usual(schedule, size * count, size)
    setup = Setup(Problem(preset(model), Hardware.load(machine), asked), schedule, policy)
    if schedule.name in ("flexgen", "flexgen-c") and (size, count) == (16, 46):
        assert [one.tier for one in setup.shortages] == ["device"], "two layers of weights are planned, FlexGen has one"
        assert setup.shortages[0].short_bytes < 0.06 * setup.shortages[0].usable_bytes
    else:
        assert setup.shortages == []
    assert setup.batch.num_requests == pytest.approx(size * count, rel=0.01), "all but a few requests run"


def test_published_policies_of_a_larger_machine_do_not_fit_a_smaller_one():
    problem = Problem(preset("mixtral-8x22b"), Hardware.load("gcp-t4"), Workload.load("mtbench"))
    tiers = {one.tier for one in Setup(problem, by_name("cgopipe"), Policy(252, 36)).shortages}
    assert tiers == {"device", "host"}


def test_a_model_of_other_widths_is_planned_with_them():
    model = Model.load("gpt-oss-20b")  # experts in 4.25 bits
    layer = model.layers[0]
    made = made_setup(model=model).memory
    assert made.host["streamed weights"] == 24 * 32 * layer.expert_bytes(model.widths.experts)
    assert made.host["streamed weights"] == pytest.approx(24 * 32 * layer.expert_params * 4.25 / 8, rel=0.01)
