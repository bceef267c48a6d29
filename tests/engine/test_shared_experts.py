"""Shared experts computed beside the host's: of which families, where they run then, and that tokens stay the same."""

import contextlib

import pytest
import torch
from engine_models import PROMPTS, make, reference
from torch import nn

import engine
from engine.model import Anatomy, shared_apart
from engine.model.coroutine import current
from engine.model.experts.shared import ExpertBlock
from sim.problem import Policy
from sim.schedule import by_name

NEW = 4
APART = ("qwen2_moe", "glm4_moe", "ernie4_5_moe", "hunyuan_v1_moe", "afmoe", "solar_open", "deepseek_v3")
"""Asked for before the routed ones (qwen2_moe gates what comes out, afmoe views it), or behind them."""

ON_HOST = {"prefill_experts": "cpu", "groups": 2}
PLACES = [
    ("cpu-experts", {"experts_on_device": 0.5, "prefill_experts": "gpu"}),
    ("hybrid", {"experts_on_host": 0.5, "groups": 2, "stream_non_experts": True}),
]


@contextlib.contextmanager
def calls_of(modules):
    """What goes into the first projection of each network: how many rows, and whether a layer's own code asks."""
    calls = []

    def note(_, args):
        calls.append((args[0].flatten(0, -2).shape[0], current() is not None))

    with contextlib.ExitStack() as hooks:
        for module in modules:
            first = next(child for child in module.modules() if isinstance(child, nn.Linear))
            hooks.callback(first.register_forward_pre_hook(note).remove)
        yield calls


def run(model, name, places):
    policy = Policy.usual(by_name(name), len(PROMPTS), 2, **places)
    result = engine.run(model, PROMPTS, name, policy, max_new_tokens=NEW, device="emulated")
    assert result.sequences == reference(model, PROMPTS, 2, NEW)
    return result


def shared_of(family):
    model = make(family)
    anatomy = Anatomy.of(model)
    return model, anatomy, shared_apart(model, anatomy)


@pytest.mark.parametrize("family", APART)
def test_they_are_computed_once_a_group_in_device_experts(family):
    model, anatomy, shared = shared_of(family)
    assert set(shared) == {layer for layer, some in enumerate(anatomy.shared) if some}
    expected = reference(model, PROMPTS, 2, NEW)
    policy = Policy.usual(by_name("cpu-experts"), len(PROMPTS), 2, **ON_HOST)
    with calls_of(shared.values()) as calls:
        result = engine.run(model, PROMPTS, "cpu-experts", policy, max_new_tokens=NEW, device="emulated")
    assert result.sequences == expected
    assert not any(within for _, within in calls)
    decode = [rows for rows, _ in calls][2 * len(shared) :]
    assert decode == [4, 3] * len(shared) * (NEW - 1), "four requests in the first group, three in the second"


@pytest.mark.parametrize(("name", "places"), PLACES, ids=str)
@pytest.mark.parametrize("family", ["qwen2_moe", "afmoe", "deepseek_v3"])
def test_beside_experts_in_other_places(family, name, places):
    model, _, shared = shared_of(family)
    result = run(model, name, places)
    spans = {(span.layer, span.step) for span in result.trace.spans if span.op == "DeviceExperts"}
    assert {(layer, step) for layer in shared for step in range(1, NEW)} <= spans


def test_those_beside_the_block_of_the_routed_ones_run_with_their_layer():
    model, anatomy, shared = shared_of("granitemoeshared")
    assert all(anatomy.shared)
    assert not shared
    policy = Policy.usual(by_name("cpu-experts"), len(PROMPTS), 2)
    with calls_of(layer.shared_mlp for layer in anatomy.layers) as calls:
        engine.run(model, PROMPTS, "cpu-experts", policy, max_new_tokens=2, device="emulated")
    assert calls
    assert all(within for _, within in calls)


def test_a_model_without_any_is_not_tried(monkeypatch):
    monkeypatch.setattr(ExpertBlock, "may_be_apart", lambda *_: pytest.fail("nothing to try"))
    assert not shared_of("mixtral")[2]


def test_llama4_gives_its_routed_experts_something_else():
    assert all(shared_of("llama4_text")[1].shared)
    assert not shared_of("llama4_text")[2]


class Block(nn.Module):
    """Experts of a family of our own: how it goes on from its networks is for the test to say."""

    def __init__(self, way):
        super().__init__()
        self.experts, self.shared_expert, self.way = nn.Linear(4, 4), nn.Linear(4, 4), way

    def forward(self, hidden):
        return self.way(self.shared_expert, lambda given: self.experts(given, None, None), hidden)


def looks_too_early(shared, routed, hidden):
    made = shared(hidden) * 0.5
    return made + routed(hidden)


def scales_what_shared_ones_get(shared, routed, hidden):
    return shared(2 * hidden) + routed(hidden)


def asks_twice(shared, routed, hidden):
    return shared(hidden) + routed(hidden) + shared(hidden)


def views(shared, routed, hidden):
    made = shared(hidden.view(-1, 4)).view(hidden.shape)
    return made + routed(hidden)


def comes_behind(shared, routed, hidden):
    return routed(hidden.view(-1, 4)).view(hidden.shape) + shared(hidden), "scores"


def raises(shared, routed, hidden, more):
    raise AssertionError("is not called so")


@pytest.mark.parametrize(
    ("way", "apart"),
    [
        (views, True),
        (comes_behind, True),
        (looks_too_early, False),
        (scales_what_shared_ones_get, False),
        (asks_twice, False),
        (raises, False),
    ],
)
def test_a_trial_says_whether_a_block_can_wait_for_them(way, apart):
    block = Block(way)
    networks = ExpertBlock(block, block.experts, block.shared_expert)
    assert networks.may_be_apart(torch.linspace(-1, 1, 8).view(1, 2, 4)) is apart
    assert not any("forward" in vars(module) for module in block.modules())
