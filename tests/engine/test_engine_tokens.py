"""The engine's tokens equal plain generate()'s, whatever the family, the schedule and the shape of the batch."""

import itertools
import random
import time

import pytest
import torch
from covering import covering
from engine_models import FAMILIES, PROMPTS, generated, make, make_prompts, reference
from hypothesis import given, settings, strategies

import engine
from engine.device import EmulatedDevice
from engine.device.emulated import EmulatedLane
from sim.problem import Policy
from sim.schedule import by_name, registered

NEW = 6
EOS = 24  # a token that ends the prompts of `make("mixtral")` at different steps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_cgopipe(family):
    model = make(family)
    result = engine.run(model, PROMPTS, "cgopipe", micro_batch_size=2, max_new_tokens=NEW)
    assert result.sequences == generated(family, 2, NEW)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("schedule", registered())
def test_every_schedule(family, schedule):
    model = make(family)
    result = engine.run(model, PROMPTS, schedule, micro_batch_size=3, max_new_tokens=NEW)
    assert result.sequences == generated(family, 3, NEW)


@pytest.mark.parametrize("schedule", registered())
def test_sampled_as_each_request_alone_would_be(schedule):
    model = make("qwen3_moe")
    chosen = {"do_sample": True, "top_p": 0.9, "top_k": 20, "temperature": 1.3, "repetition_penalty": 1.1}
    result = engine.run(model, PROMPTS, schedule, micro_batch_size=3, max_new_tokens=NEW, seed=5, **chosen)
    assert result.sequences == reference(model, PROMPTS, 1, NEW, seed=5, **chosen)
    assert result.sequences != reference(model, PROMPTS, 3, NEW)


def test_sampling_leaves_the_callers_random_numbers_alone():
    model = make("mixtral")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=2, seed=5, do_sample=True)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("schedule", registered())
def test_sequences_that_end_at_different_steps(schedule):
    model = make("mixtral", eos=EOS)
    expected = reference(model, PROMPTS, 2, 16)
    assert len({len(row) for row in expected}) > 2
    result = engine.run(model, PROMPTS, schedule, micro_batch_size=2, max_new_tokens=16)
    assert result.sequences == expected


def test_a_run_ends_as_soon_as_all_have_ended():
    first = reference(make("mixtral"), PROMPTS[:1], 1, 1)[0][0]
    result = engine.run(make("mixtral", eos=first), PROMPTS[:1], micro_batch_size=1, max_new_tokens=30)
    assert result.sequences == [[first]]
    assert max(span.step for span in result.trace.spans) <= 1


@pytest.mark.parametrize("size", [1, 2, 4, 7, 9])
def test_micro_batch_sizes_that_do_and_do_not_divide(size):
    model = make("mixtral")
    result = engine.run(model, PROMPTS, micro_batch_size=size, max_new_tokens=NEW)
    assert result.sequences == generated("mixtral", size, NEW)


@pytest.mark.parametrize("pages", [1, 2, 3, 5, 11])
def test_more_and_fewer_pages_than_micro_batches(pages):
    model = make("mixtral")
    policy = Policy(len(PROMPTS), 3, pages=pages)
    assert engine.run(model, PROMPTS, policy=policy, max_new_tokens=NEW).sequences == generated("mixtral", 3, NEW)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "glm4_moe"])
def test_resident_experts(family, share):
    model = make(family)
    policy = Policy(len(PROMPTS), 3, experts_on_device=share)
    result = engine.run(model, PROMPTS, policy=policy, max_new_tokens=NEW)
    assert result.sequences == generated(family, 3, NEW)
    moved = any(span.op.startswith("LoadWeights") for span in result.trace.spans)
    assert moved == (share < 1)


@pytest.mark.parametrize("schedule", ["cgopipe", "fastdecode", "flexgen", "zero"])
def test_weights_that_stay_in_pinned_memory(schedule):
    model = make("mixtral")
    policy = Policy.usual(by_name(schedule), len(PROMPTS), 3, pin_weights=True)
    result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW)
    assert result.sequences == generated("mixtral", 3, NEW)
    assert not any(span.op in ("PinWeights", "LoadWeightsPageable") for span in result.trace.spans)


@pytest.mark.parametrize("kv_on_device", [0.0, 1.0])
@pytest.mark.parametrize("family", ["mixtral", "minimax", "deepseek_v2", "doge"])
def test_cgopipe_with_attention_on_the_gpu(family, kv_on_device):
    model = make(family)
    policy = Policy(len(PROMPTS), 2, attention="gpu", kv_on_device=kv_on_device)
    assert engine.run(model, PROMPTS, policy=policy, max_new_tokens=NEW).sequences == generated(family, 2, NEW)


@pytest.mark.parametrize("schedule", ["cgopipe", "hybrid"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_attention_of_some_micro_batches_on_the_device(family, schedule):
    """Of four micro-batches one, two, or all: with fewer than four, the host attends for the others beside them."""
    model = make(family)
    expected = generated(family, 2, NEW)
    for share in (0.25, 0.5, 1.0):
        policy = Policy(len(PROMPTS), 2, attention_on_device=share)
        result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW)
        assert result.sequences == expected, share
        attended = {(span.micro_batch, span.lane) for span in result.trace.spans if span.op == "Attn" and span.step}
        there = {j for j, lane in attended if lane == "GPU"}
        assert (there, len(attended)) == ({0.25: {3}, 0.5: {1, 3}, 1.0: {0, 1, 2, 3}}[share], 4)


SHARES = list(itertools.product(("cgopipe", "flexgen"), (0.25, 0.5, 0.75)))


@pytest.mark.parametrize(("family", "case"), covering(list(FAMILIES), SHARES), ids=str)
def test_a_share_of_the_cache_on_the_device(family, case):
    """Of four requests one, two or three stay; of the last three none, one or two."""
    model, (schedule, share) = make(family), case
    policy = Policy(len(PROMPTS), 4, attention="gpu", kv_on_device=share)
    result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW)
    assert result.sequences == generated(family, 4, NEW)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_odd_and_even_numbers_of_layers(layers):
    model = make("mixtral", num_hidden_layers=layers)
    result = engine.run(model, PROMPTS, micro_batch_size=3, max_new_tokens=NEW)
    assert result.sequences == reference(model, PROMPTS, 3, NEW)


def test_batches_follow_each_other():
    model = make("mixtral")
    result = engine.run(model, PROMPTS, policy=Policy(4, 2), max_new_tokens=NEW, do_sample=True, seed=2)
    assert result.sequences == reference(model, PROMPTS, 1, NEW, seed=2, do_sample=True)
    assert len(result.traces) == 2


def test_one_token():
    model = make("mixtral")
    result = engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=1)
    assert result.sequences == reference(model, PROMPTS, 2, 1)


def test_equal_prompts_without_padding():
    model, prompts = make("qwen3_moe"), make_prompts(6, 6, 6, 6)
    result = engine.run(model, prompts, micro_batch_size=2, max_new_tokens=NEW)
    assert result.sequences == reference(model, prompts, 2, NEW)


def test_the_model_is_left_as_it_was():
    model = make("mixtral")
    before = dict(model.named_parameters())
    expected = reference(model, PROMPTS, 2, NEW)
    engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=2, policy=Policy(7, 2, experts_on_device=0.5))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())
    assert reference(model, PROMPTS, 2, NEW) == expected


class _JitteryLane(EmulatedLane):
    """A lane that dawdles before and after each copy and mark, differently every time."""

    def __init__(self, *args):
        super().__init__(*args)
        self.random = random.Random(self.kind.value)

    def mark(self):
        time.sleep(self.random.choice((0, 0, 0, 1e-4, 2e-3)))
        return super().mark()


class _Jittery(EmulatedDevice):
    def __init__(self):
        super().__init__(None, None, 1 << 30)

    def open_lane(self, kind):
        return _JitteryLane(self, kind)


@pytest.mark.parametrize(("family", "schedule"), covering(["mixtral", "deepseek_v3", "minimax"], list(registered())))
def test_lanes_of_any_speed_give_the_same_tokens(family, schedule):
    model = make(family)
    result = engine.run(model, PROMPTS, schedule, micro_batch_size=2, max_new_tokens=5, device=_Jittery())
    assert result.sequences == generated(family, 2, 5)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    schedule=strategies.sampled_from(list(registered())),
    lengths=strategies.lists(strategies.integers(1, 14), min_size=1, max_size=7),
    size=strategies.integers(1, 4),
    pages=strategies.integers(1, 6),
    new=strategies.integers(1, 6),
    share=strategies.sampled_from([0.0, 0.5, 1.0]),
    batch=strategies.integers(1, 8),
)
def test_any_policy_gives_the_same_tokens(schedule, lengths, size, pages, new, share, batch):
    if by_name(schedule).system.streams_non_experts:
        share = float(int(share))
    model, prompts = make("mixtral"), make_prompts(*lengths)
    size = min(size, batch)
    batch -= batch % size  # so that micro-batches do not straddle batches in the reference
    policy = Policy.usual(by_name(schedule), batch, size, pages=pages, experts_on_device=share)
    result = engine.run(model, prompts, schedule, policy, max_new_tokens=new)
    assert result.sequences == reference(model, prompts, size, new)
