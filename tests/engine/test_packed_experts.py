"""Runs whose routed experts are stored in 4 or 8 bits: the tokens of a model that has the weights which these keep."""

import contextlib
import copy
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from covering import covering
from engine_models import PROMPTS, make, make_prompts, reference
from packed_models import NOT_PACKED, PACKED_FAMILIES, packable, same_weights, unpacked, what_is_left

import engine
from engine.calibration import described
from engine.device import EmulatedDevice
from engine.model import PackedFormat, packed_experts
from sim.problem import Placement, Policy, unpacked_experts
from sim.schedule import by_name
from traces.errors import InputError

NEW = 6
BITS = (4.5, 8.5)
TELLING = ("mixtral", "gpt_oss", "deepseek_v3")
MANY = 8
"""More experts than are unpacked at a time for one micro-batch."""


def policy(schedule="cgopipe", size=3, bits=4.5, **given):
    return Policy.usual(by_name(schedule), len(PROMPTS), size, weight_bits=bits, **given)


def check(family, given, schedule="cgopipe", num_experts=4, model=None, device="emulated"):
    model = model or packable(family, num_experts)
    left = unpacked(family, given.weight_bits, num_experts)
    result = engine.run(model, PROMPTS, schedule, given, max_new_tokens=NEW, device=device)
    assert result.sequences == reference(left, PROMPTS, given.micro_batch_size, NEW)
    assert same_weights(model, left)
    return result


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_every_family_generates_what_the_unpacked_model_does(family):
    check(family, policy(experts_on_device=0.5))


PLACES = [*product(("cgopipe", "flexgen"), (0.0, 0.5, 1.0), BITS), *product(("zero",), (0.0, 1.0), BITS)]
"""Schedules, shares on the device and widths; zero streams all experts of a layer or none."""


@pytest.mark.parametrize(("family", "case"), covering(TELLING, PLACES), ids=str)
def test_wherever_experts_are(family, case):
    schedule, share, bits = case
    check(family, policy(schedule, bits=bits, experts_on_device=share), schedule)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", TELLING)
def test_one_micro_batch_unpacks_a_few_experts_at_a_time(family, share):
    assert unpacked_experts(MANY, 1, 1) < unpacked_experts(MANY, 2, 1) == MANY
    assert unpacked_experts(MANY, 1, 300 << 20) == 1
    check(family, policy(size=len(PROMPTS), experts_on_device=share), num_experts=MANY)


@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_the_host_is_not_told_who_uses_which(family, share, size, monkeypatch):
    """In decode on a device with a memory of its own: by pairs where they are few, by experts where they are many."""
    monkeypatch.setattr(packed_experts, "rows_are_known", lambda hidden, in_prefill: False)
    prompts, model, left = PROMPTS[:size], packable(family, MANY), unpacked(family, 4.5, MANY)
    given = Policy(size, size, experts_on_device=share, weight_bits=4.5)
    result = engine.run(model, prompts, policy=given, max_new_tokens=NEW)
    assert result.sequences == reference(left, prompts, size, NEW)


def test_it_says_something_else_than_the_models_own_width():
    """Else no test here could tell 4 bits from all."""
    assert reference(unpacked("mixtral", 4.5), PROMPTS, 3, NEW) != reference(packable("mixtral"), PROMPTS, 3, NEW)


def test_the_models_own_width_is_no_packing():
    model, before = packable("mixtral"), packable("mixtral")
    result = engine.run(model, PROMPTS, policy=policy(bits=32), max_new_tokens=NEW)
    assert result.sequences == reference(before, PROMPTS, 3, NEW)
    assert same_weights(model, before)


@pytest.mark.parametrize("family", TELLING)
def test_half_precision_keeps_what_the_bits_keep(family):
    model = packable(family).to(torch.bfloat16)
    left = what_is_left(model, 8.5)
    engine.run(model, PROMPTS, policy=policy(bits=8.5, experts_on_device=0.5), max_new_tokens=2)
    assert same_weights(model, left)


def test_a_second_run_changes_nothing_more():
    model = packable("gpt_oss")
    first = check("gpt_oss", policy(), model=model)
    assert check("gpt_oss", policy(), model=model).sequences == first.sequences


def test_several_batches_of_one_run():
    given = Policy(4, 2, weight_bits=4.5, experts_on_device=0.25)
    result = engine.run(packable("mixtral"), PROMPTS, policy=given, max_new_tokens=NEW)
    assert result.sequences == reference(unpacked("mixtral", 4.5), PROMPTS, 2, NEW)
    assert result.stats.num_batches == 2


def test_micro_batches_share_what_is_unpacked(monkeypatch):
    """Each expert is unpacked once at most when a layer is used, whoever of them uses it."""
    calls, unpack = [], PackedFormat.unpack
    monkeypatch.setattr(PackedFormat, "unpack", lambda form, one, out: (calls.append(len(one)), unpack(form, one, out)))
    with EmulatedDevice(None, None, 1 << 30) as device:
        engine.run(packable("mixtral"), PROMPTS, policy=policy(size=2), max_new_tokens=NEW, device=device)
    experts, matrices, layers, at_the_end = 4, 2, 2, 1
    assert sum(calls) <= experts * matrices * layers * (NEW + at_the_end)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_packed_bytes_are_what_comes_over_the_link(family, share, bits):
    """Those of the plan, but for where each parameter begins."""
    model = packable(family)
    given = policy(bits=bits, experts_on_device=share)
    metadata = engine.run(model, PROMPTS, policy=given, max_new_tokens=2).trace.metadata
    placement = Placement.of(given, by_name("cgopipe"), described(model))
    planned = [placement.streamed_bytes(kind) for kind in placement.kinds]
    assert all(0 <= told - size < 64 * 4 for told, size in zip(metadata["streamed_bytes"], planned, strict=True))
    assert metadata["policy"]["weight_bits"] == bits


ALLOWANCE_BYTES = 16 * 2**20
"""For what a run takes beside what the plan counts: threads, code, its trace."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process takes")
def test_host_memory_holds_packed_experts_alone(tmp_path):
    """Of a model of 96 MiB of experts, while it runs; and hardly more than it and a layer while they are packed."""
    width = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}
    model = make.__wrapped__("mixtral", num_hidden_layers=4, num_local_experts=8, **width)
    whole_bytes = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    script = Path(__file__).parents[1] / "helpers" / "memory_of_a_run.py"
    ran = subprocess.run([sys.executable, str(script), str(tmp_path), "0", "4.5"], check=True, capture_output=True)
    found = json.loads(ran.stdout)
    counted = found["accounts"]["host"] + found["accounts"]["device"]  # of an emulated device, host memory too
    assert counted + ALLOWANCE_BYTES < whole_bytes
    assert found["held"] < counted + ALLOWANCE_BYTES
    assert found["peak"] < whole_bytes + counted + ALLOWANCE_BYTES
    assert found["after"] < counted + ALLOWANCE_BYTES, "the model that nobody needs is not unpacked"


def test_a_model_that_is_not_kept_is_not_unpacked():
    model, before = packable("mixtral"), packable("mixtral").state_dict()
    engine.run(model, PROMPTS, policy=policy(experts_on_device=0.5), max_new_tokens=2, keep_model=False)
    for name, tensor in model.state_dict().items():
        assert not tensor.numel() if "experts" in name else torch.equal(tensor, before[name])


@pytest.mark.parametrize("family", NOT_PACKED)
def test_experts_that_cannot_be_packed_are_refused_by_name(family):
    with pytest.raises(InputError, match=r"weight_bits: 4\.5: the experts of \w+ForCausalLM cannot be packed"):
        engine.run(make(family), PROMPTS, policy=policy(), max_new_tokens=2)


def test_an_input_that_is_no_whole_number_of_groups_is_refused():
    with pytest.raises(InputError, match=r"down_proj of MixtralExperts has an input of 48, which is no multiple of 32"):
        engine.run(make("mixtral"), PROMPTS, policy=policy(), max_new_tokens=2)


@pytest.mark.parametrize("bits", [4, 8, 16.0, 6.5])
def test_other_widths_are_refused(bits):
    with pytest.raises(InputError, match=r"weight_bits: \S+: the engine runs 4.5, 8.5 or the model's own 32: give one"):
        engine.run(packable("mixtral"), PROMPTS, policy=policy(bits=bits), max_new_tokens=2)


@pytest.mark.parametrize("memory_bytes", range(20_000, 140_000, 8_000))
def test_a_run_that_does_not_fit_leaves_the_model_whole(memory_bytes):
    """Wherever it ends: with experts packed or not, each layer is what it was or what is left of it."""
    model = packable("mixtral")
    kept, left = copy.deepcopy(model).state_dict(), unpacked("mixtral", 4.5).state_dict()
    with EmulatedDevice(None, None, memory_bytes) as device:
        with contextlib.suppress(InputError):
            engine.run(model, PROMPTS, "flexgen", policy("flexgen", experts_on_device=0.5), None, 2, device)
        assert device.memory.usage.current_bytes == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[name]) or torch.equal(tensor, left[name]), name
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_resident_experts_take_their_packed_bytes_of_the_device(share):
    """Of a model whose experts are nearly all of it: the peak is far below what they took at full width."""
    model = packable("mixtral", MANY)
    layers = [one for one in described(model).layers if one.num_experts]
    with EmulatedDevice(None, None, 1 << 30) as device:
        prompts = make_prompts(1, 1)
        engine.run(model, prompts, policy=Policy(2, 2, weight_bits=4.5), max_new_tokens=2, device=device)
        none = device.usage.peak_bytes
        given = Policy(2, 2, weight_bits=4.5, experts_on_device=share)
        engine.run(model, prompts, policy=given, max_new_tokens=2, device=device)
        more = device.usage.peak_bytes - none
    packed = sum(round(MANY * share) * layer.expert_bytes(4.5) for layer in layers)
    slots = 2 * round(MANY * share) * layers[0].expert_bytes(4.5)
    assert more == pytest.approx(packed - slots, abs=1024)
