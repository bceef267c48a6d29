"""Experts computed where their weights live: the tokens of plain generate(), wherever they are, and what may break."""

import json
import threading

import pytest
import torch
from covering import covering, few_of
from engine_models import FAMILIES, PROMPTS, generated, make, reference

import engine
from engine.device import EmulatedDevice
from engine.device.ledger import DeviceOutOfMemory
from engine.host import HostExperts
from engine.lanes.executor import TaskError
from engine.memory import LastUsedExperts
from engine.model import Anatomy, can_split
from engine.tasks import RunContext
from sim.problem import Histogram, LayerHistogram, Policy, Routing, TokenCounts
from sim.schedule import by_name
from traces.errors import InputError
from traces.files import read_trace, write_trace
from validation.replay import recorded

NEW = 6
EOS = 24
SPLIT = [family for family in FAMILIES if family not in ("llama4_text", "jetmoe", "doge", "dbrx")]
APART = ("n-cpu-moe", "cpu-experts", "expert-cache", "hybrid")
TELLING = ("mixtral", "gpt_oss", "qwen2_moe", "deepseek_v3")
"""Plain ones; biases, sinks and windows; shared experts behind the routed ones, and a leading dense layer."""

EVERYWHERE = {"experts_on_device": 0.25, "experts_on_host": 0.25, "experts_fetched": 0.25}
PLACES = {
    "n-cpu-moe": [{}, {"experts_on_device": 0.4}, {"host_layers": (1, 2), "prefill_experts": "cpu"}],
    "cpu-experts": [{}, {"experts_on_device": 0.5, "prefill_experts": "gpu"}, {"host_layers": (0, 1), "groups": 2}],
    "expert-cache": [{}, {"experts_on_device": 0.5, "groups": 2}, {"experts_on_device": 0.75, "pin_weights": 1.0}],
    "hybrid": [
        {"experts_on_host": 1.0, "groups": 2},
        {**EVERYWHERE, "groups": 2, "prefill_experts": "cpu"},
        {**EVERYWHERE, "attention": "gpu", "pin_weights": 0.5},
        {**EVERYWHERE, "experts_on_device": 0.3, "deal_experts": True, "attention": "gpu", "kv_on_device": 1.0},
        {"experts_on_host": 0.5, "host_layers": (2, 3), "groups": 1, "pages": 5},
    ],
}
EVERY = [(name, places) for name in APART for places in PLACES[name]]


def policy(name, size=2, places=None):
    return Policy.usual(by_name(name), len(PROMPTS), size, **(places or {}))


def check(family, name, places, size=2, device="emulated"):
    model = make(family)
    result = engine.run(model, PROMPTS, name, policy(name, size, places), max_new_tokens=NEW, device=device)
    assert result.sequences == generated(family, size, NEW)
    return result


@pytest.mark.parametrize(("family", "case"), covering(["mixtral", "deepseek_v3"], EVERY), ids=str)
def test_wherever_experts_are(family, case):
    check(family, *case)


@pytest.mark.parametrize(("family", "name"), covering(SPLIT, APART))
def test_every_family(family, name):
    check(family, name, PLACES[name][1], size=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize(("name", "places"), EVERY, ids=str)
@pytest.mark.parametrize("family", SPLIT)
def test_every_family_wherever_experts_are(family, name, places, size):
    if places.get("groups", 1) > -(-len(PROMPTS) // size):
        places = {**places, "groups": 1}
    check(family, name, places, size)


def routing_of(family, *layers):
    """Experts in this order of popularity, layer by layer."""
    counts = [
        None if one is None else TokenCounts(18, tuple(12 - 2 * one.index(e) for e in range(4))) for one in layers
    ]
    told = (None if one is None else LayerHistogram(2, TokenCounts(0, (0,) * 4), one) for one in counts)
    return Routing(histogram=Histogram(family, tuple(told)))


@pytest.mark.parametrize(
    ("name", "places"), few_of([("cgopipe", {"experts_on_device": 0.5}), *EVERY], every=3), ids=str
)
def test_experts_placed_by_popularity(name, places):
    """The popular ones stay on the device, the others wait elsewhere: no token is another."""
    model, routing = make("mixtral"), routing_of("mixtral", [2, 0, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3])
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    given = policy(name, 2, places)
    result = engine.run(model, PROMPTS, name, given, max_new_tokens=NEW, routing=routing)
    assert result.sequences == reference(model, PROMPTS, 2, NEW)
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())


def test_what_is_popular_stays_on_the_device():
    model, routing = make("mixtral"), routing_of("mixtral", [2, 0, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3])
    with EmulatedDevice(None, None, 1 << 30) as device:
        given = policy("cpu-experts", 2, {"experts_on_device": 0.5})
        run = RunContext.of(model, by_name("cpu-experts"), given, device, None, routing)
    assert [layer.pieces[0].experts for layer in run.streamed] == [(1, 3), (0, 1), (2, 3)]


def test_popularity_of_other_experts_is_refused():
    routing = routing_of("mixtral", [2, 0, 3, 1], [3, 2, 1, 0])
    with pytest.raises(InputError, match="counts 4 experts in each of 2 layers, and MixtralForCausalLM has 4 in 3"):
        engine.run(make("mixtral"), PROMPTS, "hybrid", policy("hybrid"), max_new_tokens=2, routing=routing)


@pytest.mark.parametrize("name", ["cgopipe", "fastdecode", "flexgen", "flexgen-c", *APART])
@pytest.mark.parametrize("family", ["mixtral", "afmoe"])
def test_all_of_a_layer_may_stream(family, name):
    """In afmoe shared experts and a norm come behind the routed ones, and a dense layer leads."""
    result = check(family, name, {"stream_non_experts": True})
    assert any(span.op.startswith("LoadWeights") for span in result.trace.spans if span.step > 0)


@pytest.mark.parametrize(
    ("name", "places"), [("hybrid", PLACES["hybrid"][1]), ("expert-cache", PLACES["expert-cache"][1])]
)
def test_a_group_of_which_some_have_ended(name, places):
    model = make("mixtral", eos=EOS)
    expected = reference(model, PROMPTS, 2, 16)
    assert len({len(row) for row in expected}) > 2
    assert engine.run(model, PROMPTS, name, policy(name, 2, places), max_new_tokens=16).sequences == expected


@pytest.mark.parametrize("name", APART)
def test_the_model_is_whole_again_and_its_next_batch_too(name):
    model = make.__wrapped__("mixtral")
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    given = Policy.usual(by_name(name), 4, 2, **PLACES[name][1])
    for _ in range(2):
        result = engine.run(model, PROMPTS, name, given, max_new_tokens=NEW)
        assert result.sequences == reference(model, PROMPTS, 2, NEW)
        assert result.stats.num_batches == 2
        assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def moved(result, op):
    return [span.bytes for span in result.trace.spans if span.op == op and span.step > 0]


def test_spans_say_what_moved_and_what_was_read():
    result = check("mixtral", "hybrid", {**EVERYWHERE, "groups": 2, "attention": "gpu"})
    hidden, row = 32 * 4, 2 * (8 + 4)
    expert = 3 * 32 * 48 * 4
    sizes = {4, 3}  # requests of the two groups
    assert set(moved(result, "OffloadTokens")) == {size * (hidden + row) for size in sizes}
    assert set(moved(result, "LoadOutput")) == {size * hidden for size in sizes}
    assert set(moved(result, "HostExperts")) <= {0, expert}
    rows = 4 * 8
    assert set(moved(result, "FetchExperts")) <= {rows, rows + expert}
    assert set(moved(result, "LoadWeights")) <= {expert // 4, expert // 2}, "one expert streams, in four pages"
    assert not any(moved(result, "DeviceExperts"))


def test_a_trace_can_be_taken_back_to_its_run(tmp_path):
    model, given = make("mixtral"), policy("hybrid", 2, {**EVERYWHERE, "host_layers": (2, 3)})
    trace = engine.run(model, PROMPTS, "hybrid", given, max_new_tokens=NEW).trace
    write_trace(trace, tmp_path / "run.json")
    run = recorded(read_trace(tmp_path / "run.json"))
    assert run.shape == recorded(trace).shape
    assert {task.key for step in run.steps() for task in step} == {span.key for span in trace.spans}
    json.dumps(trace.metadata)


def test_popular_experts_of_a_cache_are_fetched_once(monkeypatch):
    """Whatever is used again while it is in a slot does not come again."""
    fetched = {}
    for share in (0.25, 0.75):
        result = check("mixtral", "expert-cache", {"experts_on_device": share}, size=1)
        fetched[share] = sum(moved(result, "FetchExperts"))
    assert fetched[0.75] < fetched[0.25] / 2


# what is refused and what breaks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["dbrx", "jetmoe"])
def test_experts_that_cannot_be_computed_apart_are_refused(family):
    anatomy = Anatomy.of(make(family))
    assert not can_split(next(one for one in anatomy.experts if one), anatomy.num_experts)
    with pytest.raises(
        InputError, match=r"schedule cpu-experts: the experts of \w+ForCausalLM cannot be computed apart"
    ):
        engine.run(make(family), PROMPTS, "cpu-experts", policy("cpu-experts"), max_new_tokens=2)


@pytest.mark.parametrize("name", ["cpu-experts", "hybrid"])
def test_a_host_expert_that_raises_ends_the_run_with_its_words(name, monkeypatch):
    def broken(*_):
        raise ValueError("no such cache line")

    model, before = make("mixtral"), threading.active_count()
    monkeypatch.setattr(HostExperts, "__call__", broken)
    with EmulatedDevice(None, None, 1 << 30) as device:
        with pytest.raises(TaskError, match=r"task HostExperts .* on lane CPU failed: ValueError: no such cache line"):
            engine.run(model, PROMPTS, name, policy(name, 2, PLACES[name][0]), max_new_tokens=NEW, device=device)
        assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
    assert threading.active_count() == before
    monkeypatch.undo()
    check("mixtral", name, PLACES[name][0])


IN_TURN = {**EVERYWHERE, "groups": 1, "attention": "gpu", "kv_on_device": 1.0, "prefill_experts": "cpu"}
"""Nothing leaves the device on a lane of its own, so that the peak is the same in every run."""


@pytest.mark.parametrize(
    ("name", "places"), [("hybrid", IN_TURN), *((name, PLACES[name][1]) for name in APART if name != "hybrid")], ids=str
)
def test_one_byte_less_than_it_needs_is_refused_by_name(name, places):
    model, given = make("mixtral"), policy(name, 2, places)
    with EmulatedDevice(None, None, 1 << 30) as large:
        engine.run(model, PROMPTS, name, given, max_new_tokens=NEW, device=large)
        peak = large.usage.peak_bytes
    with EmulatedDevice(None, None, peak - 1) as small:
        with pytest.raises(DeviceOutOfMemory, match=f"the plan: schedule {name}"):
            engine.run(model, PROMPTS, name, given, max_new_tokens=NEW, device=small)
        assert small.usage.current_bytes == 0


# the cache ------------------------------------------------------------------------------------------------------------


def cache_of(*numbers):
    slots = {"weight": torch.tensor([[float(number)] for number in numbers])}
    return LastUsedExperts(slots, numbers), slots["weight"]


def test_the_expert_used_longest_ago_makes_room():
    cache, slots = cache_of(0, 1, 2)
    turn = cache.plan([1, 5])
    assert (turn.held, turn.missing, turn.moves) == ({0: 0, 1: 1, 2: 2}, [5], [(0, 0)])
    later = cache.plan([0, 5])
    assert (later.held, later.missing, later.moves) == ({1: 1, 2: 2, 5: 0}, [0], [(0, 2)])
    cache.take_in(turn, {"weight": torch.tensor([[5.0]])})
    cache.take_in(later, {"weight": torch.tensor([[0.0], [9.0]])})
    assert slots.flatten().tolist() == [5, 1, 0]
    cache.restore({"weight": torch.tensor([[0.0], [1.0], [2.0]])})
    assert slots.flatten().tolist() == [0, 1, 2]
    assert cache.plan([2]).moves == []


def test_more_than_a_cache_holds():
    cache, slots = cache_of(0, 1)
    turn = cache.plan([2, 3, 4])
    assert turn.missing == [2, 3, 4]
    cache.take_in(turn, {"weight": torch.tensor([[2.0], [3.0], [4.0]])})
    assert sorted(slots.flatten().tolist()) == [3, 4]
    assert set(cache.plan([]).held) == {3, 4}
