"""A stream on a device whose streams run late: the tokens of generate(), and nothing out of order."""

import gc
from collections import Counter

import pytest
import torch
from async_device import MISSING
from covering import covering
from engine_models import PROMPTS, make, make_prompts, reference

import engine
from engine.device.accelerator.accelerator import OVERHEAD_SHARE
from sim.cost.memory import plan_memory
from sim.problem import Batch, MicroBatch, Model, Policy
from sim.schedule import by_name

if MISSING:
    pytest.skip(f"torch {torch.__version__} has no {MISSING}", allow_module_level=True)

from async_device.orders import FEW, late_device

EOS = 24
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_local_experts": 8,
    "num_attention_heads": 8,
    "head_dim": 16,
}
LIMITS = [3, 8, 1, 6, 8, 5, 2]
CASES = [
    ("cgopipe", {}),
    ("cgopipe", {"attention": "gpu"}),
    ("cgopipe", {"pin_weights": 1.0}),
    ("hybrid", {"experts_on_host": 0.5, "groups": 2}),
    ("hybrid", {"experts_on_device": 0.25, "experts_fetched": 0.5}),
]


@pytest.mark.parametrize(
    ("family", "case", "order"), covering(["mixtral", "gpt_oss", "deepseek_v3"], CASES, FEW), ids=str
)
def test_tokens_are_those_of_generate_and_nothing_is_out_of_order(family, case, order):
    name, places = case
    model, (device, machine) = make(family, eos=EOS), late_device(order)
    asked = [engine.GenerationRequest(*pair) for pair in zip(PROMPTS, LIMITS, strict=True)]
    policy = Policy.usual(by_name(name), 4, 2, **places)
    with device:
        found = {one.number: one for one in engine.stream(model, asked, name, policy, device=device)}
    assert [found[i].error for i in range(len(PROMPTS))] == [""] * len(PROMPTS)
    alone = [reference(model, [prompt], 1, most)[0] for prompt, most in zip(PROMPTS, LIMITS, strict=True)]
    assert [found[i].sequence for i in range(len(PROMPTS))] == alone
    assert Counter(machine.races.found) == {}
    gc.collect()  # some families' caches refer to themselves
    assert machine.memory.allocated_bytes == 0, "nothing of a run stays on the device"


@pytest.mark.parametrize("places", [{}, {"attention": "gpu"}], ids=str)
def test_a_stream_needs_no_more_of_the_device_than_planned(places, tmp_path):
    """Its requests have as many tokens as those that the plan is made for, so that no room is left unused."""
    model, schedule, lengths, new = make("mixtral", dtype=torch.float32, **WIDE), by_name("cgopipe"), [12] * 12, 5
    model.config.save_pretrained(tmp_path)
    planned, policy = Model.load(tmp_path), Policy.usual(schedule, 9, 3, **places)
    shape = policy.shape(schedule, planned, 4).beside_prompts(1)
    batch = Batch((MicroBatch(3, 36, 3 * 12**2, 12),) * 4, 0, new)
    plan = plan_memory(schedule, shape, policy, planned, batch).peak_bytes()["device"]
    device, machine = late_device("stores late")
    with device:
        list(engine.stream(model, make_prompts(*lengths), schedule, policy, max_new_tokens=new, device=device))
    assert machine.memory.peak_bytes <= plan * (1 + OVERHEAD_SHARE), "masks and rotary tables are in no plan"
