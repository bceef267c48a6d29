"""Layers whose attention keeps other things than keys and values: what they cost, move and hold."""

from dataclasses import replace

import pytest

from sim.cost import CacheContent
from sim.problem import MicroBatch, Workload
from sim.problem.model.attention import HeadAttention, Indexer, NoAttention
from sim.schedule import MemoryPart, Op
from sim.simulation import predict
from tests.helpers.sim_examples import few_layers, made_setup, one_task

STATE = few_layers("qwen3-next-80b-a3b", 4)
"""Three layers with a state, and one that attends."""


def with_attention(change):
    """Mixtral's first layers with another attention."""
    model = few_layers("mixtral-8x7b", 2)
    return replace(model, layers=tuple(replace(one, attention=change(one.attention)) for one in model.layers))


def indexed(attention):
    return replace(attention, indexer=Indexer(4, 64, 20, attention.hidden_size, attention.hidden_size))


def whole_cache(**changes):
    """All that is kept of a cache, wherever it is planned."""
    memory = made_setup(**changes).memory
    return sum(tier.get(MemoryPart.KV_CACHE, 0) for tier in (memory.device, memory.host))


def test_a_state_is_planned_for_each_request_whatever_it_has_had():
    state, attending = STATE.layers[0], STATE.layers[3]
    for length in (10, 1000):
        planned = whole_cache(model=STATE, workload=Workload.fixed(length, 4))
        tokens = 16 * (length + 3) * attending.kv_bytes_per_token(16)
        assert planned == tokens + 3 * 16 * state.attention.state_bytes


def test_index_keys_are_planned_beside_keys_and_values():
    plain, chosen = few_layers("mixtral-8x7b", 2), with_attention(indexed)
    more = whole_cache(model=chosen) - whole_cache(model=plain)
    assert more == 2 * 16 * 103 * 64 * 2, "two layers, 16 requests of 103 tokens, 64 numbers of 16 bits"


def test_decode_reads_what_an_index_chose_and_all_of_its_keys():
    def moved(model):
        return made_setup(model=model, attention="gpu").costs()(one_task(Op.ATTN)).bytes

    layer = with_attention(indexed).layers[0]
    entry, key = layer.kv_bytes_per_token(16), layer.index_bytes_per_token(16)
    assert moved(few_layers("mixtral-8x7b", 2)) == 8 * 101 * entry
    assert moved(with_attention(indexed)) == 8 * (20 * entry + 101 * key)


def test_a_state_goes_over_the_link_there_and_back_in_each_step():
    costs = made_setup("flexgen", model=STATE, attention="gpu").costs()
    state = 8 * STATE.layers[0].attention.state_bytes
    assert costs(one_task(Op.LOAD_KV)).bytes == costs(one_task(Op.STORE_KV)).bytes == state
    assert costs(one_task(Op.ATTN)).bytes == 2 * state, "read and written where it is computed with"
    attending = STATE.layers[3].kv_bytes_per_token(16)
    assert costs(one_task(Op.STORE_KV, layer=3)).bytes == 8 * attending
    assert costs(one_task(Op.LOAD_KV, layer=3)).bytes == 8 * 100 * attending


def test_layers_without_attention_move_and_keep_nothing():
    model = with_attention(lambda attention: NoAttention(attention.hidden_size))
    setup = made_setup("flexgen", model=model, attention="gpu")
    assert whole_cache(model=model) == 0
    assert setup.costs()(one_task(Op.LOAD_KV)).bytes == setup.costs()(one_task(Op.ATTN)).bytes == 0
    assert predict(setup).throughput_tokens_per_s > 0


@pytest.mark.parametrize("schedule", ["cgopipe", "flexgen", "zero"])
def test_models_of_mixed_kinds_are_predicted(schedule):
    model = replace(
        STATE, layers=(*STATE.layers, replace(STATE.layers[3], attention=indexed(STATE.layers[3].attention)))
    )
    assert predict(made_setup(schedule, model=model)).throughput_tokens_per_s > 0


def test_what_stays_on_the_device_and_what_does_not_is_all_there_is():
    layer, one = with_attention(indexed).layers[0], MicroBatch(7, 700, 700 * 100, 100)
    kept = CacheContent.of(layer, one, 3)
    policy = made_setup("flexgen", attention="gpu", kv_on_device=0.5).policy
    stays = kept.on_device(policy, one)
    assert stays.requests == 3
    assert stays.bytes(layer, 16) + kept.without(stays).bytes(layer, 16) == kept.bytes(layer, 16)


def test_a_window_of_another_kind_of_attention_keeps_its_window_alone():
    windowed = HeadAttention(64, 4, 2, 16, 16, window=30)
    layer = replace(few_layers("mixtral-8x7b", 1).layers[0], attention=windowed)
    assert CacheContent.of(layer, MicroBatch(2, 200, 20_000, 100), 3).tokens == 60
