"""Expert deferral: the tokens of a plain Transformers model whose experts are deferred alike, and what is refused."""

import contextlib

import pytest
import torch
from covering import covering
from engine_models import PROMPTS, make, reference

import engine
from engine.model import Anatomy
from engine.tasks.experts import least_weighted
from sim.problem import Policy
from sim.schedule import by_name
from traces.errors import InputError
from validation.replay import recorded

NEW = 6
PLACES = [
    {},
    {"experts_on_device": 0.5, "prefill_experts": "gpu"},
    {"experts_on_device": 0.25, "groups": 2},
    {"groups": 1, "stream_non_experts": True},
]


@contextlib.contextmanager
def deferring(model, count, on_host, batch_size):
    """Plain `generate()` in whose decode the `count` least weighted experts of a token, if `on_host`, count later.

    A weight of nothing leaves an expert out.
    """
    anatomy, pending = Anatomy.of(model), []
    modules = [some[0].owner for some in anatomy.experts if some]

    def forward(module, plain, hidden, index, weights):
        if len(hidden) > batch_size:
            return plain(hidden, index, weights)
        ranks = weights.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        late = (ranks >= weights.shape[-1] - count) & torch.isin(index, torch.tensor(on_host))
        if module is modules[-1]:
            late = torch.zeros_like(late)
        output = plain(hidden, index, weights.masked_fill(late, 0))
        if pending:
            output = output + pending.pop()
        if module is not modules[-1]:
            pending.append(plain(hidden, index, weights.masked_fill(~late, 0)))
        return output

    for module in modules:
        module.forward = lambda *given, module=module, plain=module.forward: forward(module, plain, *given)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def expected(model, size, count, on_host):
    rows = []
    for first in range(0, len(PROMPTS), size):
        some = PROMPTS[first : first + size]
        with deferring(model, count, on_host, len(some)):
            rows += reference(model, some, size, NEW)
    return rows


def run(model, size=2, device="emulated", **places):
    policy = Policy.usual(by_name("cpu-experts"), len(PROMPTS), size, **places)
    return engine.run(model, PROMPTS, "cpu-experts", policy, max_new_tokens=NEW, device=device)


def on_host(places, num_experts=4):
    return list(range(int(num_experts * places.get("experts_on_device", 0)), num_experts))


@pytest.mark.parametrize(("family", "places"), covering(["mixtral", "deepseek_v3"], PLACES), ids=str)
def test_tokens_are_those_of_a_model_that_defers_in_the_same_way(family, places):
    model = make(family, num_hidden_layers=5)
    result = run(model, defer_experts=1, **places)
    assert result.sequences == expected(model, 2, 1, on_host(places))
    late = [span for span in result.trace.spans if span.op == "HostExperts" and span.page == 1]
    layers = {span.layer for span in late}
    assert layers == {layer for layer, some in enumerate(Anatomy.of(model).experts[:-1]) if some}
    assert {span.step for span in late} == set(range(1, NEW))


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_several_of_three_and_shared_experts_beside_them(family):
    model = make(family, num_experts_per_tok=3)
    assert run(model, size=7, defer_experts=2).sequences == expected(model, 7, 2, on_host({}))


def test_it_changes_the_outputs_and_is_never_usual():
    model = make("mixtral", num_hidden_layers=5)
    plain = reference(model, PROMPTS, 2, NEW)
    assert run(model).sequences == plain
    assert run(model, defer_experts=1).sequences != plain


def test_a_trace_can_be_taken_back_to_its_run():
    trace = run(make("mixtral"), defer_experts=1).trace
    again = recorded(trace)
    assert again.shape.defers_experts
    assert {task.key for step in again.steps() for task in step} == {span.key for span in trace.spans}


def test_all_of_a_token_s_experts_cannot_be_deferred():
    with pytest.raises(InputError, match="defer_experts: 2 is not allowed; a token has 2 experts, give less"):
        run(make("mixtral"), defer_experts=2)


def test_the_least_weighted_ones_and_of_equal_ones_the_last():
    weights = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.2, 0.2]])
    assert least_weighted(weights, 1).tolist() == [[True, False, False], [False, False, True]]
    assert least_weighted(weights, 2).tolist() == [[True, False, True], [False, True, True]]
