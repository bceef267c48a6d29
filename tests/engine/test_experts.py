"""Routed experts: the code that computes them is the same on every device, and no device is asked where tokens went."""

import contextlib

import pytest
import torch
from engine_models import FAMILIES, PROMPTS, make, reference
from transformers import PreTrainedModel

import engine
from engine.device import EmulatedDevice
from engine.generation.session import open_session
from engine.model import (
    Anatomy,
    ExpertPart,
    PlacedExperts,
    expert_rows,
    host_waits,
    kept_experts,
)
from engine.model.experts import placed as of_experts
from engine.tasks import GenerationOptions, RunContext
from sim.problem import Policy
from sim.schedule import by_name

NEW = 5
TOKENS = 9


def experts_modules(model):
    return [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]


@pytest.fixture
def elsewhere(monkeypatch):
    """Models say that they are on a device that is not the CPU."""
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_keeps_experts_that_copy_no_weights(family, elsewhere):
    model = make(family)
    modules, before = experts_modules(model), model.get_experts_implementation()
    policy = Policy(7, 2)
    with EmulatedDevice(None, None, 1 << 30) as device:
        run = RunContext.of(model, by_name("cgopipe"), policy, device, GenerationOptions(NEW, 0))
        with open_session(run):
            within = [module.config._experts_implementation for module in modules]
            with model._optimize_model_for_decode():
                assert [module.config._experts_implementation for module in modules] == within
        assert all(name == of_experts.KEPT for name in within)
    assert model.get_experts_implementation() == before


def test_the_librarys_own_switch_is_what_it_was(elsewhere):
    """Should it ever go, so may what keeps it from happening."""
    model = make("mixtral")
    with model._optimize_model_for_decode():
        assert model.get_experts_implementation()[""] == "batched_mm"


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_experts_that_were_chosen_stay_chosen(implementation):
    model = make.__wrapped__("mixtral")
    model.set_experts_implementation(implementation)
    with kept_experts(model):
        assert model.get_experts_implementation()[""] == implementation


def test_an_error_inside_gives_the_implementation_back():
    model = make("mixtral")
    with contextlib.suppress(KeyError), kept_experts(model):
        raise KeyError
    assert model.get_experts_implementation()[""] == "grouped_mm"


@pytest.fixture
def asked(monkeypatch):
    """Experts are computed as in decode on a device that the host would have to wait for; asking it is an error."""

    def refused(*_, **__):
        raise AssertionError("the host waits for the device")

    monkeypatch.setattr(of_experts, "rows_are_known", lambda hidden, in_prefill: False)
    monkeypatch.setattr(torch.Tensor, "nonzero", refused)


def parts_of(family, num_resident):
    """A layer's experts, the parameters of the first and of the others, and tokens for them."""
    model = make(family)
    anatomy = Anatomy.of(model)
    experts = next(one for one in anatomy.experts if one)
    module, count = experts[0].owner, anatomy.num_experts
    tensors = {one.name: one.tensor.detach() for one in experts}
    resident, streamed = (
        ExpertPart.of({name: tensor[list(numbers)] for name, tensor in tensors.items()}, expert_rows(numbers, count))
        for numbers in (range(num_resident), range(num_resident, count))
    )
    generator = torch.Generator().manual_seed(3)
    weights, index = torch.rand(TOKENS, count, generator=generator).topk(2)
    return (
        module,
        PlacedExperts(module, count, resident, (streamed,)),
        (torch.randn(TOKENS, 32, generator=generator), index, weights),
    )


@pytest.mark.parametrize("num_resident", [1, 2, 3])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_parts_add_up_to_the_whole_without_asking_the_device(family, num_resident, asked):
    module, placed, call = parts_of(family, num_resident)
    with torch.inference_mode():
        whole = module(*call)
        with placed.in_place():
            torch.testing.assert_close(module(*call), whole, rtol=1e-5, atol=1e-5)
    assert not module._is_expert_parallel


def test_no_part_computes_the_tokens_of_the_other(asked, monkeypatch):
    """With one resident expert the library's count of its tokens would hold those of all."""
    module, placed, call = parts_of("mixtral", 1)
    computed, product = [], torch.nn.functional.grouped_mm

    def counted(tokens, weight, *, offs):
        computed.append(int(offs[-1]))
        return product(tokens, weight, offs=offs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", counted)
    with torch.inference_mode(), placed.in_place():
        module(*call)
    own = int((call[1] == 0).sum())
    assert computed == [own, own, 2 * TOKENS - own, 2 * TOKENS - own]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "glm4_moe"])
def test_tokens_are_those_of_plain_generation(family, share, asked):
    model, policy = make(family), Policy(len(PROMPTS), 3, experts_on_device=share)
    result = engine.run(model, PROMPTS, policy=policy, max_new_tokens=NEW)
    assert result.sequences == reference(model, PROMPTS, 3, NEW)


@pytest.mark.parametrize("in_prefill", [True, False])
def test_the_device_is_asked_for_prompts_only(in_prefill):
    assert of_experts.rows_are_known(torch.empty(1, device="meta"), in_prefill=in_prefill) is in_prefill
    assert of_experts.rows_are_known(torch.empty(1), in_prefill=in_prefill)


@pytest.mark.parametrize(
    ("generation", "dtype", "hip", "waits"),
    [
        (9, torch.bfloat16, None, 0),
        (10, torch.bfloat16, None, 0),
        (8, torch.bfloat16, None, 2),
        (12, torch.bfloat16, None, 2),
        (9, torch.float16, None, 2),
        (9, torch.bfloat16, "6.4", 2),
    ],
)
def test_what_a_device_is_asked_for_experts(generation, dtype, hip, waits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    monkeypatch.setattr(torch.version, "hip", hip)
    assert host_waits(torch.device("cuda"), dtype) == waits
    assert host_waits(torch.device("xpu"), dtype) == 2
    assert host_waits(torch.device("cpu"), dtype) == 0
