"""Plans for schedules that compute experts where they are: mixes of places, memory, bounds, and the best of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from plan_examples import SLACK, SMALL, assert_nothing_is_faster, problems, simple_problem
from sim_examples import few_layers, preset, round_machine

from sim.cost import Setup
from sim.planning import NothingFitsError, PolicyGrid, best_policy
from sim.planning.bounds import least_seconds
from sim.planning.picture import PER_DOUBLING_SPLIT
from sim.planning.policies import TIERS, Mix, candidates_of
from sim.planning.policies.grid import sizes_up_to
from sim.planning.policies.placed import host_layers_in_words, in_words, placed_experts
from sim.planning.policies.split import MOST_SIZES
from sim.planning.search import MOST_SIMULATIONS, TOLERANCE
from sim.problem import Hardware, Histogram, LayerHistogram, Policy, Problem, Routing, TokenCounts, Workload
from sim.schedule import Place, by_name, registered
from sim.simulation import predict

SPLIT = [name for name, one in registered().items() if one.system.splits_experts]
ANY = replace(SMALL, groups=(1, 2, 0), levels=(0, 6, 6), resident_parts=(0.0, 0.4, 1.0), host_parts=(0.0, 0.3, 1.0))
SETTINGS = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much]
)


def any_histogram(model, seed):
    """A hundred tokens of each layer, which choose by a law as steep as the layer's own, among experts in any order."""
    random, tokens = np.random.default_rng(seed), 100

    def of_layer(layer):
        popular = random.permutation(np.arange(1, layer.num_experts + 1) ** -random.uniform(0, 2.0))
        scores = np.log(popular) + random.gumbel(size=(tokens, layer.num_experts))  # k without putting back
        chosen = np.argsort(-scores, axis=1)[:, : layer.top_k]
        used = tuple(np.bincount(chosen.ravel(), minlength=layer.num_experts).tolist())
        return LayerHistogram(layer.top_k, TokenCounts(tokens, used), TokenCounts(tokens, used))

    return Histogram(model.name, tuple(of_layer(one) if one.num_experts else None for one in model.layers))


class TestMix:
    @pytest.mark.parametrize("name", SPLIT)
    def test_a_policy_places_as_many_experts_as_its_mix_says(self, name):
        problem = simple_problem(device_memory__capacity=30e9)
        found = candidates_of(problem, by_name(name), ANY)
        for row in range(0, len(found), max(1, len(found) // 40)):
            mix, splits = found.mixes.every[found.mix[row]], found.setup(row).placement.splits
            if by_name(name).system.whole_layers:
                assert sum(split.resident > 0 for split in splits) == mix.resident
                continue
            assert sum(split.resident for split in splits) == mix.resident
            assert max(split.resident for split in splits) - min(split.resident for split in splits) <= 1
            if name == "hybrid":
                assert sum(split.on_host for split in splits) == mix.on_host
                assert abs(sum(split.fetched for split in splits) - mix.fetched) <= 1

    def test_what_no_share_names_is_where_the_system_has_the_others(self):
        assert Mix(2, 6, 0).fields(by_name("cpu-experts").system, 8).keys() == {
            "experts_on_device",
            "experts_fetched",
            "deal_experts",
        }
        assert Mix(3, 0, 0).fields(by_name("n-cpu-moe").system, 8) == {"host_layers": (0, 5)}

    def test_shares_are_of_what_is_left(self):
        grid = replace(ANY, levels=(0, 2, 2), host_parts=(0.5,), fetched_parts=(0.5,))
        found = candidates_of(simple_problem(device_memory__capacity=64e9), by_name("hybrid"), grid)
        assert set(found.mixes.every) == {Mix(0, 24, 12), Mix(24, 12, 6), Mix(48, 0, 0)}


class TestMemory:
    @given(problem=problems(), name=st.sampled_from(SPLIT), at=st.floats(0, 1), bits=st.sampled_from([None, 4.5]))
    @SETTINGS
    def test_each_row_needs_what_the_memory_plan_says(self, problem, name, at, bits):
        found = candidates_of(problem, by_name(name), replace(ANY, weight_bits=bits))
        assume(len(found))
        for row in {int(at * (len(found) - 1)), 0, len(found) - 1}:
            setup = found.setup(row)
            assert setup.shortages == []
            assert dict(zip(TIERS, found.bytes[row].tolist(), strict=True)) == setup.memory.peak_bytes()

    @pytest.mark.parametrize("name", SPLIT)
    def test_the_most_experts_that_fit_are_among_them(self, name):
        problem = simple_problem(device_memory__capacity=12e9)
        grid = replace(ANY, levels=(0, 48, 48), micro_batch_sizes=(1,), num_micro_batches=(1,), kv_shares=(1.0,))
        found = candidates_of(problem, by_name(name), grid)
        row = int(found.mixes.resident_bytes[found.mix].argmax())
        mix, schedule = found.mixes.every[found.mix[row]], by_name(name)
        total = 6 if schedule.system.whole_layers else 48
        assert 0 < mix.resident < total
        more = replace(mix, resident=mix.resident + 1, on_host=max(0, mix.on_host - 1))
        policy = replace(found.policy(row), **more.fields(schedule.system, total))
        assert any(one.tier == "device" for one in Setup(problem, schedule, policy).shortages)

    @pytest.mark.parametrize("name", SPLIT)
    def test_names_the_nearest_where_nothing_fits(self, name):
        problem, schedule = simple_problem(device_memory__capacity=0.5e9, num_layers=3), by_name(name)
        found = candidates_of(problem, schedule, ANY)
        assert len(found) == 0
        assert found.nearest.shortages
        with pytest.raises(NothingFitsError, match="bytes short"):
            best_policy(problem, schedule, grid=ANY)


class TestBound:
    @given(
        problem=problems(),
        name=st.sampled_from(SPLIT),
        at=st.floats(0, 1),
        routing=st.sampled_from([Routing(), Routing(), Routing(1.1)]),
    )
    @SETTINGS
    def test_nothing_is_simulated_to_be_faster(self, problem, name, at, routing):
        found = candidates_of(replace(problem, routing=routing), by_name(name), ANY)
        assume(len(found))
        assert_nothing_is_faster(found, at)

    @given(
        problem=problems(),
        name=st.sampled_from([*SPLIT, "cgopipe"]),
        at=st.floats(0, 1),
        seed=st.integers(0, 2**32 - 1),
    )
    @settings(SETTINGS, max_examples=25)
    def test_no_layers_own_popular_experts_make_it_faster(self, problem, name, at, seed):
        """The residents of a layer are its most popular ones: the host is asked for less than if all were alike."""
        routing = Routing(histogram=any_histogram(problem.model, seed))
        found = candidates_of(replace(problem, routing=routing), by_name(name), ANY if name in SPLIT else SMALL)
        assume(len(found))
        assert_nothing_is_faster(found, at)

    @pytest.mark.parametrize("name", SPLIT)
    def test_one_group_takes_no_longer_than_its_chain(self, name):
        """With one request and experts in one place beside the residents there is nothing to wait for."""
        problem = Problem(few_layers("mixtral-8x7b", 6), round_machine(), Workload.fixed(20, 12))
        grid = replace(ANY, micro_batch_sizes=(1,), num_micro_batches=(1,), kv_shares=(1.0,), attention=Place.GPU)
        grid = replace(grid, host_parts=(1.0,), fetched_parts=(0.0,))
        found = candidates_of(problem, by_name(name), grid)
        total_s, _ = least_seconds(found)
        for row in range(len(found)):
            said = predict(found.setup(row), compiled=True).total_s
            assert 0.97 * said <= total_s[row] <= said * (1 + SLACK)


class TestRegret:
    @given(
        problem=problems(most_gen_len=6, most_layers=3),
        shares=st.permutations([0.0, 0.0, 0.25, 0.25, 0.5]),
        groups=st.sampled_from([None, 1, 2]),
        prefill=st.sampled_from(Place),
    )
    @settings(SETTINGS, max_examples=15)
    def test_no_policy_of_other_shares_is_better(self, problem, shares, groups, prefill):
        """Whatever places one names, the plan at the same sizes has none that are worse."""
        schedule = by_name("hybrid")
        device, host, fetched = shares[:3]
        assume(device + host + fetched <= 1)
        mine = {"experts_on_device": device, "experts_on_host": host, "experts_fetched": fetched}
        policy = Policy(12, 4, Place.GPU, kv_on_device=1.0, deal_experts=True, groups=groups, **mine)
        theirs = Setup(problem, schedule, replace(policy, prefill_experts=prefill))
        assume(not theirs.shortages)
        every = tuple(at / 16 for at in range(17))
        grid = PolicyGrid((4,), (3,), kv_shares=(0.0, 1.0), groups=(1, 2, 0), host_parts=every)
        grid = replace(grid, levels=(0, 16, 16), resident_parts=every)
        best = best_policy(problem, schedule, grid=grid, refine=False).best
        assert best.throughput_tokens_per_s >= predict(theirs, compiled=True).throughput_tokens_per_s * (1 - TOLERANCE)

    def test_at_one_request_it_is_no_worse_than_any_rival(self):
        problem = simple_problem(device_memory__capacity=14e9, host_memory__capacity=64e9)
        rates = {
            name: best_policy(problem, by_name(name), num_requests=1).best.throughput_tokens_per_s
            for name in (*SPLIT, "cgopipe")
        }
        assert rates["hybrid"] >= max(rates.values()) * (1 - TOLERANCE)
        assert rates["hybrid"] > 1.5 * rates["cgopipe"]


SETTLED = [
    ("mixtral-8x7b", "gcp-t4", Workload.load("mtbench").with_(gen_len=128, padded=True)),
    ("gpt-oss-120b", "rtx4090", Workload.fixed(512, 128)),
    ("qwen3-30b-a3b", "rtx4090", Workload.fixed(512, 128)),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_requests", [None, 1, 16, 256])
@pytest.mark.parametrize(("model", "machine", "workload"), SETTLED)
def test_no_limit_on_simulations_is_met(model, machine, workload, num_requests):
    """Every policy that the bound does not exclude was simulated, so that the plan has no regret on its grid."""
    problem = Problem(preset(model), Hardware.load(machine), workload)
    found = best_policy(problem, by_name("hybrid"), num_requests=num_requests)
    assert found.unsettled == 0
    assert found.simulated < MOST_SIMULATIONS / 4


def test_a_chat_leaves_no_candidate_out():
    problem = simple_problem(device_memory__capacity=14e9, host_memory__capacity=64e9)
    found = best_policy(problem, by_name("hybrid"), num_requests=1)
    assert found.unsettled == 0
    assert found.simulated >= 1


class TestAllStream:
    def test_only_where_nothing_fits_otherwise(self):
        """40 layers: 3.4 GB of all that is no expert, and two slots of 2.8 GB, or none with all experts on the host."""
        problem = simple_problem(num_layers=40, device_memory__capacity=7.5e9, host_memory__capacity=300e9)
        grid = replace(ANY, micro_batch_sizes=(1,), num_micro_batches=(1,), host_parts=(0.0, 1.0))
        streams = {
            name: best_policy(problem, by_name(name), grid=grid, refine=False).best.policy.stream_non_experts
            for name in ("cgopipe", "hybrid")
        }
        assert streams == {"cgopipe": True, "hybrid": False}
        roomy = replace(problem, hardware=problem.hardware.with_value("device_memory.capacity", 11e9))
        found = best_policy(roomy, by_name("cgopipe"), grid=grid, refine=False)
        assert not found.best.policy.stream_non_experts

    @pytest.mark.parametrize("name", ["cgopipe", "fastdecode", "flexgen", "flexgen-c", "hybrid"])
    def test_the_bound_holds_there_too(self, name):
        grid = replace(ANY, stream_non_experts=True, kv_shares=(0.0, 1.0))
        found = candidates_of(simple_problem(gen_len=5), by_name(name), grid)
        assert len(found)
        total_s, _ = least_seconds(found)
        for row in range(0, len(found), max(1, len(found) // 30)):
            setup = found.setup(row)
            assert setup.shape.streams_non_experts
            assert total_s[row] <= predict(setup, compiled=True).total_s * (1 + SLACK)
            assert dict(zip(TIERS, found.bytes[row].tolist(), strict=True)) == setup.memory.peak_bytes()


class TestWords:
    def test_of_layers_that_are_alike(self):
        policy = Policy(1, 1, Place.GPU, 0.25, 1.0, experts_on_host=0.5, experts_fetched=0.25)
        placement = Setup(simple_problem(), by_name("hybrid"), policy).placement
        assert list(in_words(placed_experts(placement))) == [
            "2 of 8 a layer on the device, 2 fetched when asked for, 4 on the host"
        ]

    def test_of_experts_dealt_out(self):
        policy = Policy(1, 1, Place.GPU, 9 / 48, 1.0, deal_experts=True)
        placement = Setup(simple_problem(), by_name("cpu-experts"), policy).placement
        assert list(in_words(placed_experts(placement))) == ["1–2 of 8 a layer on the device, 6–7 on the host"]

    def test_of_whole_layers(self):
        policy = Policy(1, 1, Place.GPU, kv_on_device=1.0, host_layers=(0, 4))
        placement = Setup(simple_problem(), by_name("n-cpu-moe"), policy).placement
        assert list(in_words(placed_experts(placement))) == [
            "8 of 8 a layer on the host in 4 layers",
            "8 of 8 a layer on the device in 2 layers",
        ]

    @pytest.mark.parametrize(
        ("layers", "expected"),
        [
            (None, ""),
            ((0, 4), "the first 4 of 6 layers whole on the host"),
            ((4, 6), "the last 2 of 6 layers whole on the host"),
            ((2, 4), "layers 2–3 of 6 whole on the host"),
            ((0, 6), "all 6 layers whole on the host"),
        ],
    )
    def test_of_layers_on_the_host(self, layers, expected):
        policy = Policy(1, 1, Place.GPU, 1.0, 1.0, layers_on_host=layers)
        placement = Setup(simple_problem(), by_name("n-cpu-moe"), policy).placement
        assert host_layers_in_words(placement) == expected
        on_device = ["8 of 8 a layer on the device"] if layers != (0, 6) else []
        assert list(in_words(placed_experts(placement))) == on_device, "of the other layers alone"


def test_the_picture_of_a_plan_asks_for_no_size_that_is_left_out():
    """A size that is thinned out would show as one at which nothing fits."""
    sizes, counts = (sizes_up_to(most, PER_DOUBLING_SPLIT) for most in (512, 192))
    kept = PolicyGrid(sizes, counts).thinned(MOST_SIZES)
    assert (kept.micro_batch_sizes, kept.num_micro_batches) == (sizes, counts)
