"""Experts of 4 or 8 bits computed where they live: the tokens of a model that has the weights which the bits keep."""

import contextlib
import copy

import pytest
import torch
from engine_models import PROMPTS, reference
from packed_models import PACKED_FAMILIES, packable, same_weights, unpacked

import engine
from engine.calibration import described
from engine.device import EmulatedDevice
from engine.host import HostExperts
from engine.model import packed_experts
from sim.problem import Histogram, LayerHistogram, Placement, Policy, Routing, TokenCounts
from sim.schedule import ExpertPlace, MemoryPart, by_name
from traces.errors import InputError

NEW = 6
MANY = 8
"""More experts than are unpacked at a time for one micro-batch."""
EVERYWHERE = {"experts_on_device": 0.25, "experts_on_host": 0.25, "experts_fetched": 0.25}
PLACES = {
    "n-cpu-moe": [{"experts_on_device": 0.5}, {"host_layers": (1, 2), "prefill_experts": "cpu"}],
    "cpu-experts": [{}, {"experts_on_device": 0.5, "prefill_experts": "gpu"}],
    "expert-cache": [{"experts_on_device": 0.5, "groups": 2}, {"experts_on_device": 0.75, "pin_weights": 1.0}],
    "hybrid": [
        {**EVERYWHERE, "groups": 2, "prefill_experts": "cpu"},
        {**EVERYWHERE, "attention": "gpu", "pin_weights": 0.5},
        {"experts_on_host": 1.0, "groups": 1},
    ],
}
EVERY = [(name, places) for name in PLACES for places in PLACES[name]]
FIRST = [(name, places[0]) for name, places in PLACES.items()]


def policy(name, size=2, bits=4.5, places=None, requests=None):
    return Policy.usual(by_name(name), requests or len(PROMPTS), size, weight_bits=bits, **(places or {}))


def check(family, name, places, *, size=2, bits=4.5, num_experts=4, prompts=PROMPTS, routing=None):
    model, left = packable(family, num_experts), unpacked(family, bits, num_experts)
    given, more = policy(name, size, bits, places, len(prompts)), {"routing": routing} if routing else {}
    result = engine.run(model, prompts, name, given, max_new_tokens=NEW, device="emulated", **more)
    assert result.sequences == reference(left, prompts, size, NEW)
    assert same_weights(model, left)
    assert not any("forward" in vars(module) for module in model.modules())
    return result


@pytest.mark.parametrize(("name", "places"), EVERY, ids=str)
def test_wherever_experts_are(name, places):
    check("mixtral", name, places)


@pytest.mark.parametrize(("name", "places"), FIRST, ids=str)
@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_biases_gates_and_shared_experts(family, name, places):
    check(family, name, places, size=3, bits=8.5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("bits", [4.5, 8.5])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize(("name", "places"), EVERY, ids=str)
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_every_family_wherever_experts_are(family, name, places, size, bits):
    if places.get("groups", 1) > -(-len(PROMPTS) // size):
        places = {**places, "groups": 1}
    check(family, name, places, size=size, bits=bits)


@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("name", ["hybrid", "expert-cache"])
def test_the_host_is_not_told_who_uses_which(name, size, monkeypatch):
    """In decode on a device with a memory of its own: by pairs where they are few, by experts where they are many."""
    monkeypatch.setattr(packed_experts, "rows_are_known", lambda hidden, in_prefill: False)
    places = {**PLACES[name][0], "groups": 1}
    check("mixtral", name, places, size=size, num_experts=MANY, prompts=PROMPTS[:size])


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("name", ["hybrid", "expert-cache"])
def test_a_few_at_a_time_and_each_in_its_place(name, size, monkeypatch):
    if size == 2:
        monkeypatch.setattr(packed_experts, "rows_are_known", lambda hidden, in_prefill: False)
    check("mixtral", name, {**PLACES[name][0], "groups": 1}, size=size, num_experts=MANY)


@pytest.mark.parametrize(("name", "places"), [*FIRST, ("cgopipe", {"experts_on_device": 0.5})], ids=str)
def test_experts_placed_by_popularity(name, places):
    popular = [
        TokenCounts(18, tuple(12 - 2 * order.index(e) for e in range(4))) for order in ([2, 0, 3, 1], [3, 2, 1, 0])
    ]
    layers = tuple(LayerHistogram(2, TokenCounts(0, (0,) * 4), one) for one in popular)
    check("mixtral", name, places, routing=Routing(histogram=Histogram("mixtral", layers)))


def test_the_host_computes_on_packed_bytes(monkeypatch):
    """Not on copies of its experts at full width."""
    made, original = [], HostExperts.of
    monkeypatch.setattr(HostExperts, "of", lambda *args: made.append(original(*args)) or made[-1])
    model = packable("mixtral")
    shares, layer = {"experts_on_device": 0.5}, described(model).layers[0]
    given = policy("cpu-experts", places=shares)
    result = engine.run(model, PROMPTS, "cpu-experts", given, max_new_tokens=NEW, device="emulated")
    assert len(made) == 2
    for experts in made:
        assert experts.few_tokens is not None
        assert experts.up.weights.nbytes + experts.down.weights.nbytes == 2 * layer.expert_bytes(4.5)
    spans = {span.bytes for span in result.trace.spans if span.op == "HostExperts"}
    assert spans <= {count * layer.expert_bytes(4.5) for count in range(3)}


@pytest.mark.parametrize(("name", "places"), EVERY, ids=str)
def test_packed_bytes_are_what_the_host_keeps(name, places):
    """Those of the plan, but for where each parameter begins."""
    model, given = packable("mixtral"), policy(name, places=places)
    metadata = engine.run(model, PROMPTS, name, given, max_new_tokens=2, device="emulated").trace.metadata
    placement = Placement.of(given, by_name(name), described(model))
    told = {part: sum(held.values()) for part, held in metadata["host_memory"].items()}
    elsewhere = ExpertPlace.STREAMED | ExpertPlace.FETCHED
    elsewhere |= ExpertPlace.DEVICE if by_name(name).system.caches_experts else ExpertPlace(0)
    rounding = 64 * 8 * 2
    assert 0 <= told[MemoryPart.HOST_EXPERTS] - placement.experts_bytes(ExpertPlace.HOST) < rounding
    assert 0 <= told[MemoryPart.STREAMED_WEIGHTS] - placement.experts_bytes(elsewhere) < rounding


def test_no_room_to_unpack_where_the_device_computes_no_expert():
    """All of them are the host's, prompts too."""
    model, given = packable("mixtral"), policy("cpu-experts")
    with EmulatedDevice(None, None, 1 << 30) as device:
        allocated, allocate = [], device.allocate
        device.allocate = lambda name, *more: allocated.append(name) or allocate(name, *more)
        engine.run(model, PROMPTS, "cpu-experts", given, max_new_tokens=2, device=device)
    assert allocated
    assert MemoryPart.UNPACKED_EXPERTS not in allocated


@pytest.mark.parametrize("memory_bytes", range(20_000, 120_000, 20_000))
@pytest.mark.parametrize("name", ["hybrid", "expert-cache"])
def test_a_run_that_does_not_fit_leaves_the_model_whole(name, memory_bytes):
    """Wherever it ends: with experts packed or not, each layer is what it was or what is left of it."""
    model = packable("mixtral")
    kept, left = copy.deepcopy(model).state_dict(), unpacked("mixtral", 4.5).state_dict()
    with EmulatedDevice(None, None, memory_bytes) as device:
        with contextlib.suppress(InputError):
            engine.run(model, PROMPTS, name, policy(name, places=PLACES[name][0]), max_new_tokens=2, device=device)
        assert device.memory.usage.current_bytes == 0
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[path]) or torch.equal(tensor, left[path]), path


@pytest.mark.parametrize("name", PLACES)
def test_the_next_batch_and_the_next_run_too(name):
    model, left = packable("mixtral"), unpacked("mixtral", 4.5)
    given = policy(name, places=PLACES[name][0], requests=4)
    for _ in range(2):
        result = engine.run(model, PROMPTS, name, given, max_new_tokens=NEW, device="emulated")
        assert result.sequences == reference(left, PROMPTS, 2, NEW)
        assert result.stats.num_batches == 2
        assert same_weights(model, left)
