"""Which experts tokens use: popularity by law and by count, the choice of a token, and what many tokens need."""

import json
from collections import OrderedDict
from dataclasses import replace
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from sim_examples import preset

from sim.problem import (
    Histogram,
    LayerHistogram,
    Problem,
    Routing,
    TokenCounts,
    Use,
    drawn_uses,
    expected_padding,
    expected_use,
    lru_hit_rate,
)
from sim.problem.routing.choice import ExpertChoice
from traces.errors import InputError

UNIFORM = Routing()


def layer_of(num_experts, top_k):
    """A layer of the preset with another number of experts."""
    return replace(preset("mixtral-8x7b").layers[0], num_experts=num_experts, top_k=top_k)


def popularity(num_experts, top_k, exponent=0.0):
    return Routing(exponent).popularity(0, layer_of(num_experts, top_k))


@st.composite
def popularities(draw, most=24):
    """A popularity by Zipf's law, and its top k."""
    num_experts = draw(st.integers(2, most))
    top_k = draw(st.integers(1, min(num_experts, 6)))
    return popularity(num_experts, top_k, draw(st.sampled_from([0.0, 0.3, 0.8, 1.1, 2.0, 3.0]))), top_k


@st.composite
def cut_popularities(draw):
    """With cuts between up to four places, some of which may have no expert."""
    every, top_k = draw(popularities())
    inner = draw(st.lists(st.integers(0, len(every)), min_size=1, max_size=3))
    return every, top_k, (0, *sorted(inner), len(every))


class TestLaws:
    def test_uniform_makes_all_alike(self):
        assert popularity(8, 2).tolist() == [0.25] * 8
        assert UNIFORM.order(0, 4) == (0, 1, 2, 3)

    def test_zipf_is_proportional_to_a_power_of_the_rank(self):
        one, two, three, four = popularity(4, 1, 1.0)
        assert (one / two, one / three, one / four) == pytest.approx((2, 3, 4))

    def test_no_expert_is_used_by_more_than_all_tokens(self):
        """2 / (1 + 1/4 + 1/9 + 1/16) = 1.40 of the tokens cannot use the first: the others share the rest."""
        every = popularity(4, 2, 2.0)
        assert every[0] == 1.0
        assert every[1:] == pytest.approx(np.array([1 / 4, 1 / 9, 1 / 16]) / (1 / 4 + 1 / 9 + 1 / 16))

    @given(popularities(most=300))
    def test_they_fall_and_add_up_to_top_k(self, case):
        every, top_k = case
        assert every.sum() == pytest.approx(top_k, rel=1e-12)
        assert every.max() <= 1
        assert (np.diff(every) <= 0).all()

    def test_what_all_share_cannot_be_changed(self):
        with pytest.raises(ValueError, match="read-only"):
            popularity(8, 2)[0] = 1.0

    @pytest.mark.parametrize(("text", "exponent"), [("uniform", 0.0), ("zipf:1.1", 1.1), ("zipf:0", 0.0)])
    def test_a_text_says_which(self, text, exponent):
        assert Routing.parse(text) == Routing(exponent)
        assert Routing.parse(str(Routing(exponent))) == Routing(exponent)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("zipff:1.1", "unknown; did you mean zipf:1"),
            ("zipf", "unknown; did you mean zipf:1"),
            ("zipf:", "'' is not a number"),
            ("zipf:x", "'x' is not a number"),
            ("zipf:-1", "exponent -1 is not allowed; give 0 to 10"),
            ("zipf:nan", "exponent nan is not allowed"),
            ("none.json", "none.json: cannot be read"),
        ],
    )
    def test_any_other_text_is_refused_with_what_is_allowed(self, text, said):
        with pytest.raises(InputError) as caught:
            Routing.parse(text)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def counted(*used, top_k=2):
    return TokenCounts(sum(used) // top_k, used)


class TestHistogram:
    def test_the_most_popular_come_first_and_of_equals_the_first(self):
        measured = LayerHistogram(2, counted(10, 40, 10, 40), counted(0, 0, 0, 0))
        routing = Routing(histogram=Histogram("m", (None, measured)))
        assert routing.order(1, 4) == (1, 3, 0, 2)
        half_a_use = (10 + 0.5) / (50 + 1)
        assert routing.popularity(1, layer_of(4, 2)) == pytest.approx([1 - half_a_use] * 2 + [half_a_use] * 2)

    def test_many_generated_tokens_outweigh_the_prompts_and_few_do_not(self):
        def first(decode):
            measured = LayerHistogram(1, counted(90, 10, top_k=1), decode)
            return Routing(histogram=Histogram("m", (measured,))).order(0, 2)[0]

        assert first(counted(0, 4, top_k=1)) == 0
        assert first(counted(0, 400, top_k=1)) == 1

    def test_without_a_token_all_are_alike(self):
        nothing = counted(0, 0, 0, 0)
        routing = Routing(histogram=Histogram("m", (LayerHistogram(2, nothing, nothing),)))
        assert routing.popularity(0, layer_of(4, 2)).tolist() == [0.5] * 4

    @given(st.integers(2, 12), st.data())
    def test_they_add_up_to_top_k_whatever_was_counted(self, num_experts, data):
        top_k = data.draw(st.integers(1, num_experts))
        tokens = data.draw(st.lists(st.permutations(range(num_experts)), max_size=8))
        used = np.bincount([e for one in tokens for e in one[:top_k]], minlength=num_experts)
        measured = LayerHistogram(top_k, counted(*used.tolist(), top_k=top_k), counted(*[0] * num_experts, top_k=top_k))
        every = Routing(histogram=Histogram("m", (measured,))).popularity(0, layer_of(num_experts, top_k))
        assert every.sum() == pytest.approx(top_k)
        assert 0 < every.min() <= every.max() <= 1 + 1e-12

    def test_a_file_is_read_as_it_was_written(self, tmp_path):
        measured = LayerHistogram(2, counted(10, 40, 10, 40), counted(1, 2, 3, 0))
        written = Histogram("m", (None, measured))
        written.write(tmp_path / "r.json")
        read = Histogram.read(tmp_path / "r.json")
        assert (read.model, read.layers, read.source) == ("m", written.layers, str(tmp_path / "r.json"))
        assert Routing.parse(str(tmp_path / "r.json")).histogram == read

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"layers": {}}, "layers: not a list"),
            ({"layers": [7]}, "layers[0].top_k: missing; 7 is no object with top_k, prefill, decode"),
            ({"schema": 2}, "schema: 2 is not known; this version reads 1"),
            ({"experts": 2}, "experts: unknown field"),
            ({"top_k": 0}, "layers[0].top_k: 0 is not allowed"),
            ({"top_k": 1}, "layers[0].prefill.used: adds up to 8, but 4 tokens use 1 experts each, together 4"),
            ({"prefill": {"tokens": 4}}, "layers[0].prefill.used: missing"),
            ({"prefill": {"tokens": 4, "used": 8}}, "layers[0].prefill.used: not a list"),
            ({"prefill": {"tokens": 4, "used": [5, 3]}}, "layers[0].prefill.used[0]: 5 is more than all 4 tokens"),
            ({"prefill": {"tokens": 4, "used": [4, 4, 0]}}, "prefill and decode hold 3 and 2 experts"),
            ({"decode": {"tokens": -1, "used": [0, 0]}}, "layers[0].decode.tokens: -1 is not allowed"),
            ({"decode": {"tokens": 1, "used": [0.5, 1.5]}}, "layers[0].decode.used[0]: 0.5 is not allowed"),
        ],
    )
    def test_other_content_is_refused_with_the_path_and_the_field(self, tmp_path, change, said):
        layer = {"top_k": 2, "prefill": {"tokens": 4, "used": [4, 4]}, "decode": {"tokens": 0, "used": [0, 0]}}
        table = {"schema": 1, "model": "m", "layers": [{**layer, **change}] if set(change) <= set(layer) else [layer]}
        path = tmp_path / "r.json"
        path.write_text(json.dumps(table if set(change) <= set(layer) else {**table, **change}))
        with pytest.raises(InputError) as caught:
            Routing.parse(str(path))
        assert str(caught.value).startswith(f"routing histogram {path}: ")
        assert said in str(caught.value)

    @pytest.mark.parametrize(
        ("layers", "said"),
        [
            ([(8, 2)] * 31, "is of other with 31 layers, not 32; for mixtral-8x7b, give one of that model"),
            ([(8, 2)] * 31 + [(8, 1)], "whose layer 31 uses 1 of 8 experts, not 2 of 8;"),
            ([(8, 2)] * 31 + [(4, 2)], "whose layer 31 uses 2 of 4 experts, not 2 of 8;"),
            ([None] + [(8, 2)] * 31, "whose layer 0 uses 0 of 0 experts, not 2 of 8;"),
        ],
    )
    def test_one_of_another_model_is_refused(self, layers, said):
        def empty(form):
            nothing = TokenCounts(0, (0,) * form[0])
            return LayerHistogram(form[1], nothing, nothing)

        layers = tuple(layer and empty(layer) for layer in layers)
        with pytest.raises(InputError) as caught:
            Problem.of("mixtral-8x7b", "gcp-t4", routing=Routing(histogram=Histogram("other", layers, "r.json")))
        assert str(caught.value).startswith("routing histogram r.json: ")
        assert said in str(caught.value)

    def test_one_of_a_model_with_dense_layers_fits_it(self):
        model = preset("deepseek-v2-lite")
        nothing = TokenCounts(0, (0,) * 64)
        layers = (None, *[LayerHistogram(6, nothing, nothing)] * (model.num_layers - 1))
        Routing(histogram=Histogram("the same", layers)).check_fits(model)


class TestChoice:
    @given(popularities())
    @settings(max_examples=40, deadline=None)
    @example((popularity(2, 1, 3.0), 1))
    @example((popularity(128, 8, 1.1), 8))
    def test_a_token_uses_each_expert_as_often_as_it_is_popular(self, case):
        every, top_k = case
        one_by_one = [ExpertChoice.of(every, top_k).uses_any(rank, rank + 1) for rank in range(len(every))]
        assert one_by_one == pytest.approx(every, abs=1e-8)

    def test_it_is_the_plain_draw_where_all_are_alike(self):
        choice = ExpertChoice.of(popularity(10, 3), 3)
        for first, stop in combinations(range(11), 2):
            assert choice.uses_any(first, stop) == pytest.approx(1 - comb(10 - (stop - first), 3) / comb(10, 3))

    def test_sets_are_as_probable_as_the_products_of_their_odds(self):
        """By counting all sets of 2 of 4."""
        choice = ExpertChoice.of(popularity(4, 2, 0.8), 2)
        odds = choice.chances / (1 - choice.chances)
        weight = {pair: odds[pair[0]] * odds[pair[1]] for pair in combinations(range(4), 2)}
        with_2_or_3 = sum(w for pair, w in weight.items() if {2, 3} & set(pair))
        assert choice.uses_any(2, 4) == pytest.approx(with_2_or_3 / sum(weight.values()))

    @pytest.mark.parametrize("exponent", [0.0, 1.1, 2.5])
    def test_drawn_tokens_use_what_is_popular(self, exponent):
        every = popularity(16, 4, exponent)
        drawn = ExpertChoice.of(every, 4).draw(20_000, np.random.default_rng(3))
        assert (np.diff(drawn, axis=1) > 0).all()
        assert np.bincount(drawn.ravel(), minlength=16) / 20_000 == pytest.approx(every, abs=0.012)


class TestExpectedUse:
    @given(st.integers(1, 256), st.data())
    @settings(deadline=None)
    def test_uniform_equals_the_layers_own_formula(self, num_experts, data):
        top_k = data.draw(st.integers(1, min(num_experts, 8)))
        tokens = data.draw(st.floats(0, 5000))
        stop = data.draw(st.integers(0, num_experts))
        layer = layer_of(num_experts, top_k)
        use = expected_use(UNIFORM.popularity(0, layer), top_k, tokens, 0, stop)
        assert use.touched == pytest.approx(layer.experts_touched(tokens) * stop / num_experts, rel=1e-12, abs=1e-12)
        assert use.pairs == pytest.approx(tokens * top_k * stop / num_experts, rel=1e-12)

    @given(cut_popularities(), st.floats(0, 100))
    @settings(deadline=None)
    def test_slices_add_up(self, case, tokens):
        every, top_k, cuts = case
        parts = [expected_use(every, top_k, tokens, *part) for part in pairwise(cuts)]
        whole = expected_use(every, top_k, tokens, 0, len(every))
        assert sum(one.touched for one in parts) == pytest.approx(whole.touched)
        assert sum(one.pairs for one in parts) == pytest.approx(whole.pairs) == pytest.approx(tokens * top_k)
        assert whole.tokens == pytest.approx(tokens)
        assert all(one.tokens <= one.pairs * (1 + 1e-9) for one in parts)

    @pytest.mark.parametrize("exponent", [0.0, 0.8, 2.0])
    def test_it_is_the_mean_of_what_tokens_use(self, exponent):
        every, tokens, (first, stop) = popularity(12, 3, exponent), 5, (4, 9)
        drawn = ExpertChoice.of(every, 3).draw(tokens * 20_000, np.random.default_rng(7)).reshape(-1, tokens, 3)
        there = (drawn >= first) & (drawn < stop)
        touched = sum(((drawn == rank).any(axis=(1, 2))).mean() for rank in range(first, stop))
        wanted = (touched, there.sum(axis=(1, 2)).mean(), there.any(axis=2).sum(axis=1).mean())
        assert expected_use(every, 3, tokens, first, stop) == pytest.approx(wanted, rel=0.02)

    def test_nothing_uses_nothing(self):
        every = popularity(8, 2)
        assert expected_use(every, 2, 0, 0, 8) == expected_use(every, 2, 7, 3, 3) == Use(0, 0, 0)


class TestPadding:
    """Rows of tiles over the pairs of tokens and experts in them."""

    @pytest.mark.parametrize(("tokens", "tile"), [(7, 4), (36, 64), (200, 32), (700, 64)])
    def test_it_is_the_mean_of_what_fills_tiles(self, tokens, tile):
        every = popularity(8, 2, 0.6)
        ways = [comb(tokens, number) for number in range(tokens + 1)]
        rows = sum(
            -(-number // tile) * tile * ways[number] * share**number * (1 - share) ** (tokens - number)
            for share in every.tolist()
            for number in range(tokens + 1)
        )
        assert expected_padding(every, tokens, 0, 8, tile) == pytest.approx(rows / (2 * tokens), rel=0.02)

    def test_few_tokens_fill_a_tile_each_and_many_nearly_all(self):
        every = popularity(8, 2)
        assert expected_padding(every, 1, 0, 8, 64) == pytest.approx(64)
        assert expected_padding(every, 100_000, 0, 8, 64) == pytest.approx(1.0, abs=2e-3)

    @given(popularities(), st.integers(1, 3000), st.sampled_from([2, 16, 64]))
    @settings(deadline=None, max_examples=60)
    def test_more_tokens_never_need_fewer_rows_nor_fewer_than_there_are(self, case, tokens, tile):
        every, _ = case
        fewer, more = (expected_padding(every, number, 0, len(every), tile) for number in (tokens, tokens + tile))
        assert min(fewer, more) >= 1.0
        assert more * (tokens + tile) >= fewer * tokens * (1 - 1e-3)

    def test_rows_of_one_are_never_padded_and_nothing_is_not(self):
        every = popularity(8, 2, 1.0)
        assert expected_padding(every, 5, 0, 8, 1) == expected_padding(every, 0, 0, 8, 64) == 1.0
        assert expected_padding(every, 5, 3, 3, 64) == 1.0


def slower(uses, number, costs):
    """The mean over draws of the dearest place, by the number of a Use."""
    return np.mean([max(cost * use[number] for cost, use in zip(costs, places, strict=True)) for places in uses])


class TestDrawnUses:
    @given(cut_popularities(), st.floats(0, 60), st.integers(1, 70))
    @settings(max_examples=60, deadline=None)
    def test_their_mean_is_what_is_expected_and_none_is_impossible(self, case, tokens, num_draws):
        every, top_k, cuts = case
        draws = drawn_uses(every, top_k, tokens, cuts, num_draws)
        assert len(draws) == num_draws
        for at, (first, stop) in enumerate(pairwise(cuts)):
            uses = np.array([places[at] for places in draws])
            expected = np.array(expected_use(every, top_k, tokens, first, stop))
            assert uses.mean(axis=0) == pytest.approx(expected, rel=1e-9, abs=1e-9)
            most = (stop - first, tokens * min(top_k, stop - first), tokens)
            assert (uses >= 0).all()
            assert (uses <= np.array(most) * (1 + 1e-9) + 1e-9).all()

    def test_they_are_the_same_each_time(self):
        every = popularity(16, 4, 1.0)
        assert drawn_uses(every, 4, 3, (0, 5, 16), 24) == drawn_uses(every.copy(), 4, 3, [0, 5, 16], 24)

    def test_what_one_token_uses_has_the_hypergeometric_distribution(self):
        """4 of 32 experts, 8 of which are on the host: P(x there) = C(8, x) C(24, 4 - x) / C(32, 4)."""
        draws = drawn_uses(popularity(32, 4), 4, 1, (0, 24, 32), 400)
        there = np.array([places[1].pairs for places in draws]).round()
        exact = [comb(8, x) * comb(24, 4 - x) / comb(32, 4) for x in range(5)]
        assert np.bincount(there.astype(int), minlength=5) / 400 == pytest.approx(exact, abs=0.01)

    @pytest.mark.parametrize("exponent", [0.0, 1.1])
    @pytest.mark.parametrize("tokens", [1, 4, 16])
    @pytest.mark.parametrize("cuts", [(0, 40, 128), (0, 96, 128), (0, 20, 90, 128)])
    def test_a_few_draws_have_the_maximum_of_all(self, exponent, tokens, cuts):
        """Against brute force, where all places take equally long on average: the mean of the slowest one."""
        top_k, places = 8, list(pairwise(cuts))
        every = popularity(128, top_k, exponent)
        drawn = ExpertChoice.of(every, top_k).draw(4000 * tokens, np.random.default_rng(5)).reshape(4000, -1)
        used = np.zeros((4000, 128), int)
        np.add.at(used, (np.arange(4000)[:, None], drawn), 1)
        touched = np.array([(used[:, first:stop] > 0).sum(axis=1) for first, stop in places])
        costs = 1 / touched.mean(axis=1)
        exact = (costs[:, None] * touched).max(axis=0).mean()
        assert exact > 1.03
        found = slower(drawn_uses(every, top_k, tokens, cuts, 48), 0, costs)
        assert found == pytest.approx(exact, rel=0.02 if len(places) == 2 else 0.04)

    def test_neighbours_differ(self):
        """A prefix of the layers has about the mean of all."""
        there = [places[1].touched for places in drawn_uses(popularity(32, 4), 4, 2, (0, 16, 32), 40)]
        assert np.mean(there[:8]) == pytest.approx(np.mean(there), rel=0.1)
        assert there != sorted(there)

    def test_many_tokens_are_all_alike(self):
        every = popularity(8, 2)
        draws = drawn_uses(every, 2, 2049, (0, 4, 8), 3)
        assert draws == [(expected_use(every, 2, 2049, 0, 4), expected_use(every, 2, 2049, 4, 8))] * 3
        assert drawn_uses(every, 2, 2048, (0, 4, 8), 3)[0] != draws[0]

    def test_where_no_expert_is_on_the_host_the_others_still_vary(self):
        draws = drawn_uses(popularity(32, 4), 4, 1, (0, 16, 32, 32), 32)
        assert {places[2] for places in draws} == {Use(0, 0, 0)}
        assert np.std([places[0].pairs for places in draws]) > 0.5


def simulated_hit_rate(every, top_k, tokens, slots, steps=3000):
    """Of an LRU cache that is told of each step's experts in any order."""
    random, cache, held, touched = np.random.default_rng(2), OrderedDict(), 0, 0
    for step in ExpertChoice.of(every, top_k).draw(steps * tokens, random).reshape(steps, -1):
        experts = random.permutation(np.unique(step)).tolist()
        held += sum(expert in cache for expert in experts)
        touched += len(experts)
        for expert in experts:
            cache[expert] = None
            cache.move_to_end(expert)
        while len(cache) > slots:
            cache.popitem(last=False)
    return held / touched


class TestHitRate:
    @given(st.integers(2, 128), st.data())
    @settings(deadline=None)
    def test_uniform_is_the_share_of_experts_that_have_a_slot(self, num_experts, data):
        top_k = data.draw(st.integers(1, min(8, num_experts)))
        slots, tokens = data.draw(st.integers(0, num_experts)), data.draw(st.floats(0.5, 50))
        found = lru_hit_rate(popularity(num_experts, top_k), tokens, slots)
        assert found == pytest.approx(slots / num_experts, abs=1e-9)

    @pytest.mark.parametrize("exponent", [0.8, 1.2])
    @pytest.mark.parametrize("tokens", [1, 4])
    @pytest.mark.parametrize("slots", [4, 16, 29])
    def test_it_is_that_of_a_simulated_cache(self, exponent, tokens, slots):
        every = popularity(32, 4, exponent)
        found = lru_hit_rate(every, tokens, slots)
        assert found == pytest.approx(simulated_hit_rate(every, 4, tokens, slots), abs=0.015)

    @given(popularities(), st.floats(0.5, 30))
    @settings(deadline=None)
    def test_it_grows_with_the_slots_from_none_to_all(self, case, tokens):
        every, _ = case
        rates = [lru_hit_rate(every, tokens, slots) for slots in range(len(every) + 2)]
        assert rates == sorted(rates)
        assert (rates[0], rates[-2], rates[-1]) == (0, 1, 1)
