"""Routed experts on the host: what the module itself gives, whichever of its experts are on the host."""

import pytest
import torch
from engine_models import FAMILIES, make

from engine.host import HostExperts, can_run_on_host
from engine.model import Anatomy, can_split

SPLIT = [family for family in FAMILIES if family not in ("llama4_text", "jetmoe", "doge", "dbrx")]


def experts_of(family):
    """A layer's module of experts and its parameters."""
    anatomy = Anatomy.of(make(family))
    parameters = next(one for one in anatomy.experts if one)
    assert can_split(parameters, anatomy.num_experts)
    return parameters[0].owner, {one.name: one.tensor.detach() for one in parameters}


def routed(num_experts, tokens, top_k, hidden=32, seed=0, dtype=torch.float32):
    """Tokens, the experts of each, and what each counts."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(num_experts, generator=generator)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k, generator=generator)
    return torch.randn(tokens, hidden, generator=generator).to(dtype), index, weights.to(dtype)


@pytest.mark.parametrize("family", SPLIT)
def test_all_experts_give_what_the_module_gives(family):
    module, parameters = experts_of(family)
    assert can_run_on_host(module)
    call = routed(4, 9, 2)
    with torch.inference_mode():
        expected = module(*call)
    torch.testing.assert_close(HostExperts.of(module, parameters, range(4))(*call), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_parts_add_up_to_the_whole(family):
    module, parameters = experts_of(family)
    call = routed(4, 9, 2)
    whole = HostExperts.of(module, parameters, range(4))(*call)
    parts = [HostExperts.of(module, parameters, part)(*call) for part in ([1, 3], [0], [], [2])]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)
    assert not parts[2].any()


def test_what_an_index_calls_no_expert_of_the_host_counts_nothing():
    module, parameters = experts_of("mixtral")
    hidden, index, weights = routed(4, 9, 2)
    experts = HostExperts.of(module, parameters, [0, 2])
    expected = experts(hidden, index, weights)
    for foreign in (-1, 4, 1 << 40):
        changed = torch.where((index == 1) | (index == 3), foreign, index)
        assert torch.equal(experts(hidden, changed, weights), expected)
