"""Experts on a device that the host plays: by the kernel in decode, and what the library makes of them."""

import engine_models
import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import engine
from engine.device import EmulatedDevice
from engine.host import HostThreads, PlayedExperts
from engine.model import Anatomy, ExpertPart, PlacedExperts, expert_rows
from sim.problem import Policy
from sim.schedule import by_name


def parts_of(tensors, count, *lots):
    return [
        ExpertPart.of({name: tensor[list(lot)] for name, tensor in tensors.items()}, expert_rows(lot, count))
        for lot in lots
    ]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("in_prefill", [False, True])
def test_parts_together_are_the_whole(family, in_prefill):
    anatomy = Anatomy.of(engine_models.make(family))
    experts = next(one for one in anatomy.experts if one)
    module, count = experts[0].owner, anatomy.num_experts
    generator = torch.Generator().manual_seed(1)
    weights, index = torch.rand(5, count, generator=generator).topk(2)
    hidden = torch.randn(5, 32, generator=generator)
    parts = parts_of({one.name: one.tensor.detach() for one in experts}, count, (1, 3), (0, 2))
    with torch.inference_mode():
        code = PlayedExperts(HostThreads())
        for _ in range(2):
            found = PlacedExperts(module, count).compute(
                parts, hidden, index, weights, in_prefill=in_prefill, in_decode_by=code
            )
            torch.testing.assert_close(found, module(hidden, index, weights), rtol=2e-5, atol=2e-5)


def test_in_decode_a_played_device_leaves_the_library_alone(monkeypatch):
    model = engine_models.make("qwen3_moe")
    sizes = []
    library = ALL_EXPERTS_FUNCTIONS["grouped_mm"]

    def counted(module, hidden, *rest):
        sizes.append(len(hidden))
        return library(module, hidden, *rest)

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "grouped_mm", counted)
    schedule = by_name("n-cpu-moe")
    policy = Policy.usual(schedule, 2, 2, experts_on_device=0.5)
    with EmulatedDevice(None, None, 2**30) as device:
        engine.run(model, [[5] * 7] * 2, schedule, policy, max_new_tokens=3, device=device, do_sample=False)
    assert sizes
    assert min(sizes) > 4
