"""Layers that run on the host whole: the tokens of plain generate(), and what they spare the device."""

import pytest
import torch
from engine_models import FAMILIES, PROMPTS, generated, make

import engine
from sim.cost.memory import plan_memory
from sim.problem import Batch, MicroBatch, Model, Policy
from sim.schedule import Op, by_name
from traces.errors import InputError
from validation.replay import recorded

NEW = 5
ALIGNED_BYTES = 16 * 1024
"""What rounding takes: each parameter and each buffer begins on a line of the cache."""
RANGES = [(0, 1), (1, 2), (1, 3), (0, 3)]
TELLING = ("mixtral", "gpt_oss", "deepseek_v3")
"""Plain ones; biases, sinks and windows; latent attention, shared experts and a leading dense layer."""


def run(family, name, layers, size=3, **fields):
    policy = Policy.usual(by_name(name), len(PROMPTS), size, layers_on_host=layers, **fields)
    return engine.run(make(family), PROMPTS, name, policy, max_new_tokens=NEW, device="emulated")


@pytest.mark.parametrize("layers", RANGES, ids=str)
@pytest.mark.parametrize("name", ["n-cpu-moe", "hybrid"])
def test_whichever_layers_are_on_the_host(name, layers):
    assert run("mixtral", name, layers).sequences == generated("mixtral", 3, NEW)


@pytest.mark.parametrize("family", TELLING[1:])
def test_families(family):
    assert run(family, "hybrid", (1, 2)).sequences == generated(family, 3, NEW)
    assert run(family, "n-cpu-moe", (0, 2)).sequences == generated(family, 3, NEW)


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", [one for one in FAMILIES if one not in ("llama4_text", "jetmoe", "doge", "dbrx")])
@pytest.mark.parametrize("name", ["n-cpu-moe", "hybrid"])
def test_every_family(family, name):
    layers = (1, 2) if family == "minimax" else (0, 2)  # its first layer keeps a state that is no cache
    assert run(family, name, layers, size=2).sequences == generated(family, 2, NEW)


@pytest.mark.parametrize(("name", "layers"), [("n-cpu-moe", (0, 2)), ("hybrid", (1, 3))])
def test_the_device_keeps_to_the_plan_and_the_model_is_what_it_was(name, layers, tmp_path):
    model, schedule = make.__wrapped__("mixtral", dtype=torch.float32), by_name(name)
    model.config.save_pretrained(tmp_path)
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    policy = Policy.usual(schedule, len(PROMPTS), len(PROMPTS), layers_on_host=layers, experts_on_device=1.0)
    width = max(map(len, PROMPTS))
    one = MicroBatch(len(PROMPTS), len(PROMPTS) * width, len(PROMPTS) * width**2, width)
    planned, batch = Model.load(tmp_path), Batch((one,), 0, NEW)
    plan = plan_memory(schedule, policy.shape(schedule, planned, 1), policy, planned, batch).peak_bytes()
    result = engine.run(model, PROMPTS, name, policy, max_new_tokens=NEW, device="emulated")
    assert result.stats.peak_bytes["device"] <= plan["device"] + ALIGNED_BYTES
    assert all(torch.equal(tensor, before[path]) for path, tensor in model.state_dict().items())


def test_only_hidden_states_cross_the_link_where_layers_meet():
    trace = run("mixtral", "hybrid", (1, 2)).trace
    ops = {span.op for span in trace.spans if span.layer == 1}
    assert ops == {Op.ENTER_HOST, Op.STORE_HIDDEN, Op.HOST_LAYER, Op.LOAD_HIDDEN}
    assert list(recorded(trace).shape.layers_on_host) == [1, 2]


@pytest.mark.parametrize(
    ("family", "layers", "told"),
    [
        ("minimax", (0, 1), "layers_on_host: \\[0, 1\\]: layer 0 of MiniMaxForCausalLM keeps a state"),
        ("mixtral", (2, 4), "layers_on_host: \\[2, 4\\] goes beyond the model's 3 layers"),
    ],
)
def test_what_cannot_be_is_refused(family, layers, told):
    with pytest.raises(InputError, match=told):
        run(family, "hybrid", layers)
