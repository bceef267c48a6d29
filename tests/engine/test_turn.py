"""A micro-batch's turn in decode does only what decode needs: what was measured is not measured or watched again."""

import pytest
import torch
from engine_models import PROMPTS, make, reference
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import engine
from engine.device import EmulatedDevice
from engine.memory import Activations
from engine.model import InFlight, KeysValues, LayerCache, LayerEntry, StackEnd, cache_for, split
from engine.model.coroutine import AttentionCall, GenerateCoroutine, current, suspend
from sim.problem import Policy

HIDDEN_BYTES = 3 * 32 * 4


def hidden(tokens):
    return torch.zeros(3, tokens, 32)


@pytest.fixture
def counted():
    """A micro-batch of three requests, its account, and the bytes that the account holds."""
    model = make("mixtral")
    micro_batch = InFlight(0, (0, 0, 0), lambda: None, cache=cache_for(model), width=5, capacity=9)
    with EmulatedDevice(None, None, 1 << 30) as device:
        activations = Activations(device, micro_batch, (0, 0, 0))

        def stop(at, attended=None):
            micro_batch.at, micro_batch.attended = at, attended
            activations.stopped(micro_batch)
            return device.memory.usage.current_bytes

        yield micro_batch, stop
        activations.close()
        assert device.memory.usage.current_bytes == 0


def test_in_decode_a_micro_batch_counts_with_what_it_holds(counted):
    micro_batch, stop = counted
    assert stop(LayerEntry(0, hidden(5))) == 5 * HIDDEN_BYTES
    micro_batch.step = 1
    assert stop(LayerEntry(0, hidden(1))) == HIDDEN_BYTES
    call = AttentionCall(0, "sdpa", nn.Identity(), hidden(1), hidden(1), hidden(1), None, {}, whole_cache=False)
    assert stop(call) == 4 * HIDDEN_BYTES
    assert stop(StackEnd(hidden(1))) == HIDDEN_BYTES


def test_stops_of_decode_are_measured_once_of_each_kind(counted):
    micro_batch, stop = counted
    micro_batch.step = 1
    assert stop(LayerEntry(0, hidden(1))) == HIDDEN_BYTES
    assert stop(LayerEntry(1, hidden(2))) == HIDDEN_BYTES, "nothing looks at a stop like one that is known"


def test_prompts_are_measured_at_every_stop(counted):
    _, stop = counted
    assert stop(LayerEntry(0, hidden(5))) == 5 * HIDDEN_BYTES
    assert stop(LayerEntry(1, hidden(2))) == 2 * HIDDEN_BYTES


def test_nothing_is_watched_in_decode():
    layer = LayerCache(0)
    prompts, newest = (KeysValues(torch.zeros(2, 1, n, 4), torch.zeros(2, 1, n, 4)) for n in (3, 1))
    assert all(type(one) is not torch.Tensor for one in layer.update(*prompts))
    given = layer.update(*newest)
    assert all(one is same for one, same in zip(given, newest, strict=True))
    assert layer.received(*given) == newest


@pytest.mark.parametrize("which", ["keys", "values"])
def test_attention_that_gets_something_else_than_the_cache_gave_is_an_error(which):
    layer = LayerCache(0)
    for tokens in (3, 1):
        given = dict(zip(("keys", "values"), layer.update(*(torch.zeros(2, 1, tokens, 4) for _ in "kv")), strict=True))
    given[which] = given[which] + 1
    with pytest.raises(RuntimeError, match="reads its KV cache in decode"):
        layer.received(**given)


def test_a_cache_is_in_use_until_attention_and_no_longer():
    """The model of the second step asks attention twice; the second call is of a layer that keeps no cache."""
    model, layer = make("mixtral"), LayerCache(0)
    seen = []

    def generate():
        attend, module = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation], model.model.layers[0].self_attn
        for tokens in (3, 1):
            keys, values = layer.update(*(torch.zeros(2, 1, tokens, 4) for _ in "kv"))
            for _ in range(2):
                attend(module, keys, keys, values, None)
            suspend(StackEnd(keys))

    with split(model, model.model.layers, ()):
        micro_batch = GenerateCoroutine(0, (), generate)
        micro_batch.start()
        while not micro_batch.finished:
            if isinstance(micro_batch.at, StackEnd):
                micro_batch.step += 1
            else:
                seen.append(micro_batch.at.whole_cache)
            micro_batch.resume()
    assert seen == [True, True, False, True]


def test_a_forward_that_was_replaced_before_is_given_back():
    model = make.__wrapped__("mixtral")
    layer = model.model.layers[1]
    ours = layer.forward
    layer.forward = ours
    with split(model, model.model.layers, ()):
        assert layer.forward is not ours
    assert vars(layer)["forward"] is ours
    assert "forward" not in vars(model.model.layers[0])


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_calls_from_outside_go_through_while_a_session_is_open(family):
    model = make(family)
    ids = torch.tensor([PROMPTS[0]])
    expected = model(ids).logits
    with split(model, model.model.layers, list(model.model.layers[0].modules())):
        assert current() is None
        assert torch.equal(model(ids).logits, expected)
    policy = Policy(7, 2, experts_on_device=0.5)
    assert engine.run(model, PROMPTS, policy=policy, max_new_tokens=3).sequences == reference(model, PROMPTS, 2, 3)
