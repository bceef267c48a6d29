"""Where each expert is: nothing lost, nothing twice, and shares as fine as whole experts allow."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import preset

from sim.problem import Placement, Policy, Split, splits_of
from sim.schedule import ExpertPlace, Place, by_name, registered
from traces.errors import InputError

SETTINGS = settings(max_examples=75, deadline=None, derandomize=True)
SYSTEMS = {name: schedule.system for name, schedule in registered().items()}
COUNTS = st.lists(st.sampled_from([0, 1, 7, 8, 128]), min_size=1, max_size=40).map(tuple)


@st.composite
def policies(draw, system):
    """Any shares that a system has places for."""
    cuts = sorted(draw(st.lists(st.integers(0, 1000), min_size=3, max_size=3)))
    shares = [cuts[0] / 1000, (cuts[1] - cuts[0]) / 1000, (cuts[2] - cuts[1]) / 1000]
    host, fetch = system.experts & ExpertPlace.HOST, system.experts & ExpertPlace.FETCHED
    given_ = {"experts_on_device": shares[0]}
    if not system.whole_layers:
        given_ |= {"deal_experts": draw(st.booleans())}
        given_ |= {"experts_on_host": shares[1]} if host else {}
        given_ |= {"experts_fetched": shares[2]} if fetch else {}
    return Policy(8, 8, **given_)


@pytest.mark.parametrize("name", SYSTEMS)
@given(data=st.data(), counts=COUNTS)
@SETTINGS
def test_every_expert_is_in_one_place_that_the_system_has(name, data, counts):
    system = SYSTEMS[name]
    splits = splits_of(data.draw(policies(system)), system, counts)
    for split, count in zip(splits, counts, strict=True):
        held = (split.resident, split.streamed, split.fetched, split.on_host)
        assert sum(held) == count
        assert min(held) >= 0
        assert not split.places & ~system.experts
        assert bool(split.places) == (count > 0)


@given(counts=COUNTS, resident=st.integers(0, 1000), others=st.integers(0, 1000))
@SETTINGS
def test_dealt_finely_layers_differ_by_one_and_all_together_have_the_share(counts, resident, others):
    counts = (max(counts),) * len(counts)
    system, total = SYSTEMS["hybrid"], sum(counts)
    share, on_host = resident / 1000, min(others, 1000 - resident) / 1000
    splits = splits_of(
        Policy(8, 8, experts_on_device=share, experts_on_host=on_host, deal_experts=True), system, counts
    )
    held = [split.resident for split in splits]
    assert max(held) - min(held) <= 1
    assert sum(held) == int(total * share + 1e-9)
    assert abs(sum(split.on_host for split in splits) - total * on_host) <= 1


@pytest.mark.parametrize("total", [8, 128, 384])
@given(data=st.data())
@SETTINGS
def test_shares_of_whole_experts_are_those_experts_and_leave_nothing_over(total, data):
    layers = data.draw(st.integers(1, 60))
    resident = data.draw(st.integers(0, total * layers))
    share = resident / (total * layers)
    policy = Policy(8, 8, experts_on_device=share, experts_on_host=1 - share, deal_experts=True)
    splits = splits_of(policy, SYSTEMS["hybrid"], (total,) * layers)
    assert sum(split.resident for split in splits) == resident
    assert not any(split.streamed > 1 for split in splits)


def test_whole_layers_from_the_first_on_are_on_the_host_as_llama_cpp_counts_them():
    system = SYSTEMS["n-cpu-moe"]
    some = splits_of(Policy(1, 1, host_layers=(0, 2)), system, (0, 8, 8, 8))
    assert some == (Split(), Split(on_host=8), Split(resident=8), Split(resident=8))
    assert splits_of(Policy(1, 1, experts_on_device=0.5), system, (8,) * 4) == (Split(on_host=8),) * 2 + (Split(8),) * 2


def test_any_range_of_layers_can_be_on_the_host_beside_shares():
    policy = Policy(1, 1, experts_on_device=0.5, host_layers=(1, 2))
    splits = splits_of(policy, SYSTEMS["hybrid"], (8,) * 3)
    assert splits == (Split(4, 4), Split(on_host=8), Split(4, 4))


def test_ranks_follow_each_other_from_the_device_to_the_host():
    split = Split(2, 3, 1, 4)
    edges = list(accumulate((2, 3, 1, 4), initial=0))
    found = [split.ranks(place) for place in ExpertPlace]
    assert found == list(pairwise(edges))
    assert split.ranks(ExpertPlace.DEVICE | ExpertPlace.STREAMED) == (0, 5)


def test_policies_that_differ_in_other_things_share_a_placement():
    schedule, model = by_name("hybrid"), preset("qwen3-30b-a3b")
    one = Placement.of(Policy(8, 8, experts_on_host=0.25), schedule, model)
    assert Placement.of(Policy(64, 4, experts_on_host=0.25, kv_on_device=0.5), schedule, model) is one
    for other in (
        Policy(8, 8, experts_on_host=0.5),
        Policy(8, 8, experts_on_host=0.25, weight_bits=8.0),
        Policy(8, 8, experts_on_host=0.25, prefill_experts=Place.CPU),
    ):
        assert Placement.of(other, schedule, model) != one


def test_bytes_of_places_add_up_place_by_place():
    schedule, model = by_name("hybrid"), preset("mixtral-8x7b")
    shares = {"experts_on_device": 0.125, "experts_fetched": 0.25, "experts_on_host": 0.5}
    placement = Placement.of(Policy(8, 8, **shares), schedule, model)
    expert = model.num_layers * model.layers[0].expert_bytes(model.widths.experts)
    sizes = [placement.experts_bytes(place) for place in ExpertPlace]
    assert sizes == [1 * expert, 1 * expert, 2 * expert, 4 * expert]
    assert placement.experts_bytes(ExpertPlace.DEVICE | ExpertPlace.FETCHED) == 3 * expert
    assert placement.experts_bytes(ExpertPlace(0)) == 0


@pytest.mark.parametrize("on", ["cpu", "gpu"])
def test_what_prefill_and_decode_move_of_a_layer(on):
    model = preset("mixtral-8x7b")
    one = 2 * 3 * 4096 * 14336
    fields = {"experts_on_device": 0.25, "experts_on_host": 0.25, "experts_fetched": 0.25, "prefill_experts": on}
    placement = Placement.of(Policy(8, 8, **fields), by_name("hybrid"), model)
    assert placement.splits == (Split(2, 2, 2, 2),) * 32
    assert placement.streamed_bytes(0) == 2 * one
    assert placement.streamed_bytes(0, in_prefill=True) == (2 if on == "cpu" else 6) * one
    assert placement.moved_bytes(0) == (4 if on == "cpu" else 6) * one
    assert placement.experts_bytes(ExpertPlace.HOST | ExpertPlace.FETCHED) == 32 * 4 * one


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("cgopipe", {"experts_on_host": 0.5}, "experts_on_host: 0.5 is not what cgopipe does"),
        ("cpu-experts", {"experts_fetched": 0.5}, "experts_fetched: 0.5 is not what cpu-experts does"),
        ("n-cpu-moe", {"experts_on_host": 0.5}, "experts_on_host: 0.5 is not what n-cpu-moe does"),
        ("flexgen", {"host_layers": [0, 3]}, "host_layers: (0, 3) is not what flexgen does"),
        ("zero", {"groups": 2}, "groups: 2 is not what zero does"),
        ("expert-cache", {"prefill_experts": "cpu"}, "prefill_experts: cpu is not what expert-cache does"),
        ("hybrid", {"defer_experts": 1}, "defer_experts: 1 is not what hybrid does"),
        ("cpu-experts", {"defer_experts": 2}, "defer_experts: 2 is not allowed; a token has 2 experts, give less"),
        ("hybrid", {"host_layers": [0, 33]}, "host_layers: [0, 33] goes beyond the model's 32 layers"),
    ],
)
def test_a_place_that_a_schedule_does_not_have_is_refused(name, fields, said):
    with pytest.raises(InputError) as error:
        Policy.usual(by_name(name), 8, 8, **fields).shape(by_name(name), preset("mixtral-8x7b"))
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"experts_on_device": 0.6, "experts_on_host": 0.5}, "0.6 + 0.5 + 0 is more than all"),
        ({"host_layers": [3, 1]}, "host_layers: [3, 1] is not allowed"),
        ({"host_layers": [0, True]}, "host_layers: [0, True] is not allowed"),
        ({"host_layers": 3}, "host_layers: 3 is not allowed"),
        ({"groups": 0}, "groups"),
        ({"defer_experts": -1}, "defer_experts: -1 is not allowed; give a whole number of at least 0"),
        ({"defer_experts": True}, "defer_experts: True is not allowed"),
        ({"deal_experts": 1}, "deal_experts: 1 is not allowed; give true or false"),
    ],
)
def test_what_is_no_placement_is_refused_by_name(fields, said):
    with pytest.raises(InputError) as error:
        Policy(8, 8, **fields)
    assert said in str(error.value)
