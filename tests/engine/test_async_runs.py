"""Whole runs on a device whose streams run late: the tokens, the memory and the waits of a GPU, without one."""

import gc
from collections import Counter
from itertools import product

import pytest
import torch
from async_device import MISSING
from covering import covering
from engine_models import FAMILIES, PROMPTS, generated, make, make_prompts, reference
from packed_models import packable, unpacked

import engine
from engine.device.accelerator.accelerator import OVERHEAD_SHARE
from engine.generation import as_cut
from sim.cost.memory import plan_memory
from sim.problem import Model, Policy
from sim.schedule import ExpertPlace, Schedule, System, by_name, registered

if MISSING:
    pytest.skip(f"torch {torch.__version__} has no {MISSING}", allow_module_level=True)

from async_device.machine import HostWait
from async_device.orders import FEW, ORDERS, late_device

NEW = 3
SIZE = 2
TELLING = ("mixtral", "gpt_oss", "deepseek_v3")
"""Fused experts and our own kernel; biases, sinks and sliding windows; a cache that the model computes with."""

PLACES = (
    {"pages": 7},
    {"pin_weights": True},
    {"experts_on_device": 0.5},
    {"attention": "gpu"},
    {"attention": "gpu", "kv_on_device": 0.5},
    {"attention": "gpu", "kv_on_device": 1.0},
)

STEPS = 2
"""Of decode, in which waits are counted …"""

MICRO_BATCHES = 2
"""… of so many micro-batches."""

LANES = ("GPU", "H2D", "D2H")
"""Those that give work to a stream: who waits there holds up the device."""


def run(family, schedule, order, new=NEW, policy=None, prompts=PROMPTS, size=SIZE):
    """What a run gave, and the machine that it ran on."""
    device, machine = late_device(order)
    model = make(family) if isinstance(family, str) else family
    chosen = {} if policy else {"micro_batch_size": size}
    with device:
        result = engine.run(model, prompts, schedule, policy, max_new_tokens=new, device=device, **chosen)
    return result, machine


def check_tokens_and_order(family, schedule, order, policy=None):
    result, machine = run(family, schedule, order, policy=policy)
    assert result.sequences == generated(family, SIZE, NEW)
    assert Counter(machine.races.found) == {}
    gc.collect()  # some families' caches refer to themselves
    assert machine.memory.allocated_bytes == 0, "nothing of a run stays on the device"


@pytest.mark.parametrize(("family", "order"), covering(TELLING, FEW))
def test_tokens_are_those_of_generate_and_nothing_is_out_of_order(family, order):
    check_tokens_and_order(family, "cgopipe", order)


@pytest.mark.parametrize("schedule", [name for name in registered() if name != "cgopipe"])
def test_so_it_is_on_every_schedule(schedule):
    check_tokens_and_order("mixtral", schedule, "copies at once")


@pytest.mark.parametrize("places", PLACES, ids=str)
def test_so_it_is_wherever_things_lie(places):
    policy = Policy.usual(by_name("cgopipe"), len(PROMPTS), SIZE, **places)
    check_tokens_and_order("mixtral", "cgopipe", "stores late", policy)


@pytest.mark.parametrize(("case", "order"), covering([*product((len(PROMPTS), SIZE), (0.0, 0.5, 1.0))], FEW))
def test_so_it_is_with_packed_experts(case, order):
    """With some micro-batches and with one, whatever share of the experts is on the device."""
    requests, share = case
    check_packed("cgopipe", {"experts_on_device": share}, order, PROMPTS[:requests])


def check_packed(schedule, places, order, prompts=PROMPTS):
    given = Policy.usual(by_name(schedule), len(prompts), SIZE, weight_bits=4.5, **places)
    result, machine = run(packable("mixtral", 8), schedule, order, policy=given, prompts=prompts)
    assert result.sequences == reference(unpacked("mixtral", 4.5, 8), prompts, SIZE, NEW)
    assert Counter(machine.races.found) == {}
    gc.collect()
    assert machine.memory.allocated_bytes == 0


EVERYWHERE = {"experts_on_device": 0.25, "experts_on_host": 0.25, "experts_fetched": 0.25, "groups": 2}
EXPERTS = (
    ("hybrid", EVERYWHERE),
    ("hybrid", {**EVERYWHERE, "attention": "gpu", "pin_weights": 1.0}),
    ("hybrid", {"experts_on_host": 0.5, "stream_non_experts": True, "prefill_experts": "cpu"}),
    ("expert-cache", {"experts_on_device": 0.5, "groups": 2}),
    ("cpu-experts", {"experts_on_device": 0.5, "groups": 2}),
    ("n-cpu-moe", {"experts_on_device": 0.4, "prefill_experts": "cpu"}),
)


@pytest.mark.parametrize(("case", "order"), covering(EXPERTS, FEW), ids=str)
def test_so_it_is_wherever_experts_are_computed(case, order):
    schedule, places = case
    policy = Policy.usual(by_name(schedule), len(PROMPTS), SIZE, **places)
    check_tokens_and_order("qwen2_moe", schedule, order, policy)


LAYERS = (
    ("hybrid", {"layers_on_host": (1, 2), "experts_on_host": 0.5, "groups": 2}),
    ("hybrid", {"layers_on_host": (0, 2), "attention": "gpu", "pin_weights": 1.0}),
    ("n-cpu-moe", {"layers_on_host": (2, 3), "experts_on_device": 0.5}),
    ("n-cpu-moe", {"layers_on_host": (0, 3)}),
)
"""In the middle, first, last, and all."""


@pytest.mark.parametrize(("case", "order"), covering(LAYERS, FEW), ids=str)
def test_so_it_is_whichever_layers_run_on_the_host(case, order):
    schedule, places = case
    policy = Policy.usual(by_name(schedule), len(PROMPTS), SIZE, **places)
    check_tokens_and_order("qwen2_moe", schedule, order, policy)


@pytest.mark.parametrize(("schedule", "places"), EXPERTS[::2], ids=str)
def test_so_it_is_with_packed_experts_in_every_place(schedule, places):
    check_packed(schedule, places, FEW[0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("order", FEW)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:SIZE]], ids=["micro-batches", "one micro-batch"])
@pytest.mark.parametrize(("schedule", "places"), EXPERTS, ids=str)
def test_packed_experts_in_every_place_and_order(schedule, places, prompts, order):
    check_packed(schedule, {**places, "groups": 1} if len(prompts) == SIZE else places, order, prompts)


@pytest.mark.parametrize("order", FEW)
def test_so_it_is_with_deferred_experts(order):
    """Which are another model's tokens: those of a device that is never late."""
    policy = Policy.usual(by_name("cpu-experts"), len(PROMPTS), SIZE, defer_experts=1, groups=2)
    expected = engine.run(make("qwen2_moe"), PROMPTS, "cpu-experts", policy, max_new_tokens=NEW, device="emulated")
    result, machine = run("qwen2_moe", "cpu-experts", order, policy=policy)
    assert result.sequences == expected.sequences
    assert Counter(machine.races.found) == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("order", FEW)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_every_order(family, order):
    check_tokens_and_order(family, "cgopipe", order)


@pytest.mark.exhaustive
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", registered())
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_every_schedule_in_every_order(family, schedule, order):
    check_tokens_and_order(family, schedule, order)


# who waits ------------------------------------------------------------------------------------------------------------


def in_decode(schedule, family="mixtral", **given):
    """What lanes of the device waited for in a few steps of decode."""
    given = {"size": len(PROMPTS) // MICRO_BATCHES + 1, **given}
    fewer, more = (Counter(run(family, schedule, "all late", new, **given)[1].waits) for new in (3, 3 + STEPS))
    return Counter({wait: count for wait, count in (more - fewer).items() if wait.lane in LANES})


def is_of_generate(wait: HostWait) -> bool:
    """The library's own loop looks at tokens and mask: once for each step and micro-batch, whatever the layers."""
    return wait.lane == "GPU" and wait.where.startswith(("transformers/generation/", "transformers/masking_utils"))


def is_pace(wait: HostWait) -> bool:
    """A lane of copies goes on when the copy before the last has ended."""
    return wait.lane != "GPU" and wait.why == "event" and wait.where.startswith(":")


def is_of_routing(wait: HostWait, system: System) -> bool:
    """Experts can only be fetched when the host knows which; here they come from pageable memory."""
    return bool(system.experts & ExpertPlace.FETCHED) and wait.lane == "H2D" and wait.where.endswith(":fetch")


def is_pageable_by_design(wait: HostWait, system: System) -> bool:
    """Weights, activations and KV cache of systems that do not page-lock them."""
    allowed = {"load_pageable"}
    allowed |= set() if system.pins_kv else {"_load_kv", "store_kv"}
    allowed |= set() if system.pins_activations else {"offload_qkv", "load_hidden", "store_hidden", "to_host"}
    return wait.lane != "GPU" and wait.where.rpartition(":")[2] in allowed


@pytest.mark.parametrize("schedule", registered())
def test_no_layer_of_decode_makes_the_host_wait_for_the_device(schedule):
    waits = in_decode(schedule)
    of_generate = sum(count for wait, count in waits.items() if is_of_generate(wait))
    assert 0 < of_generate <= STEPS * 3 * MICRO_BATCHES
    system = by_name(schedule).system
    allowed = [one for one in waits if is_pageable_by_design(one, system) or is_of_routing(one, system)]
    known = [one for one in waits if is_of_generate(one) or is_pace(one) or one in allowed]
    assert waits.keys() - known == set()


@pytest.mark.parametrize(("requests", "size"), [(5, 1), (5, 5), (len(PROMPTS), len(PROMPTS))])
def test_nor_do_packed_experts(requests, size):
    """Shared by micro-batches, or with one micro-batch taken by pairs, which are 10, or by experts, which are 12."""
    given = Policy(requests, size, experts_on_device=0.25, weight_bits=4.5)
    waits = in_decode("cgopipe", packable("mixtral", 12), policy=given, prompts=PROMPTS[:requests])
    assert {wait for wait in waits if not is_of_generate(wait) and not is_pace(wait)} == set()


# memory ---------------------------------------------------------------------------------------------------------------

LENGTHS = [60, 5, 9, 30, 7, 12, 4]
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_local_experts": 8,
    "num_attention_heads": 8,
    "head_dim": 16,
}


def planned_bytes(model, schedule: Schedule, policy: Policy, folder, new) -> int:
    """Device memory that the plan asks for."""
    model.config.save_pretrained(folder)
    planned, batch = Model.load(folder), as_cut(LENGTHS, policy.micro_batch_size, new)
    shape = policy.shape(schedule, planned, len(batch.micro_batches))
    return plan_memory(schedule, shape, policy, planned, batch).peak_bytes()["device"]


@pytest.mark.parametrize("schedule", registered())
def test_a_run_needs_no_more_of_the_device_than_planned(schedule, tmp_path):
    model, chosen, new = make("mixtral", dtype=torch.float32, **WIDE), by_name(schedule), 3
    policy = Policy.usual(chosen, len(LENGTHS), 2)
    _, machine = run(model, chosen, "stores late", new, policy, make_prompts(*LENGTHS))
    plan = planned_bytes(model, chosen, policy, tmp_path, new)
    assert machine.memory.peak_bytes <= plan * (1 + OVERHEAD_SHARE), "masks and rotary tables are in no plan"
