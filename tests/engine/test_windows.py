"""Layers with sliding windows keep the tokens that they may look back on, and no others, wherever their caches are."""

import functools

import pytest
import torch
from engine_models import FAMILIES, PROMPTS, make, make_prompts, reference
from hypothesis import given, settings, strategies as st
from wide_models import ALIGNED_BYTES, FINE, as_run, wide

import engine
from engine.calibration import described
from engine.device import EmulatedDevice, Ledger
from engine.host import HostAttention
from engine.memory import HostBlocks, KVPools, PagedRows
from engine.model import Anatomy, KeysValues, Store, ring_pieces
from engine.tasks import DecodeAttention
from sim.admission import Joins
from sim.cost import plan_memory
from sim.problem import Policy
from sim.schedule import by_name
from traces.errors import InputError

NEW = 14
WINDOW = 8
ONE_WINDOW = {"sliding_window": WINDOW}
"""Of a model all of whose layers slide: no list says which."""
WINDOWED = ("gpt_oss", "llama4_text", "exaone_moe", "afmoe", "mimo_v2_flash", "mixtral", "dots1")
"""Sinks; chunks; our own kernel; gates; other heads in windows; all layers; those that a number says."""
CHANGES = {"mixtral": ONE_WINDOW, "dots1": {"sliding_window": WINDOW, "layer_types": None, "max_window_layers": 1}}
WHERE = {
    "the host": {},
    "the device": {"attention": "gpu"},
    "both": {"attention": "gpu", "kv_on_device": 0.5},
    "the device alone": {"attention": "gpu", "kv_on_device": 1.0},
    "micro-batches of both": {"attention_on_device": 0.5},
}


@functools.cache
def alone(family, size):
    return reference(made(family), PROMPTS, size, NEW)


def made(family):
    return make(family, **{name: _hashable(value) for name, value in CHANGES.get(family, {}).items()})


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


# what is kept --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_has_the_windows_of_the_engine(family):
    model = make(family)
    try:
        planned = described(model)
    except InputError:
        pytest.skip("the simulator knows no such family")
    assert Anatomy.of(model).windows == tuple(layer.attention.window for layer in planned.layers)


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_pieces_of_a_ring_are_all_tokens_in_order(first, size, data):
    stop = first + data.draw(st.integers(0, size))
    pieces = ring_pieces(first, stop, size)
    found = [(place + at, start + at) for place, start, end in pieces for at in range(end - start)]
    assert [token for _, token in found] == list(range(first, stop))
    assert all(place == token % size for place, token in found)


def tokens(requests, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return KeysValues(*(torch.randn(requests, 2, count, dim, generator=generator) for dim in (4, 6)))


def last(parts, count):
    return KeysValues(*(torch.cat(one, 2)[:, :, -count:] for one in zip(*parts, strict=True)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_store_has_the_last_tokens_in_order_and_takes_no_more_memory(data):
    window, prompt, new = (data.draw(st.integers(1, most)) for most in (9, 20, 20))
    by_tokens, taken = data.draw(st.booleans()), []

    def allocate(name, shape, dtype):
        taken.append(shape)
        return torch.full(shape, torch.nan, dtype=dtype)

    store = Store(tokens(2, 1, 0), prompt + new, allocate, "kv", window=window, by_tokens=by_tokens)
    assert [shape[0 if by_tokens else 2] for shape in taken] == [min(window, prompt + new)] * 2
    parts = []
    for step in range(new + 1):
        parts.append(tokens(2, prompt if step == 0 else 1, step))
        if data.draw(st.booleans()):
            store.append(parts[-1])
        else:
            for there, tensor in store.places(parts[-1]):
                there.copy_(tensor)
        kept = min(window, prompt + step)
        expected = last(parts, kept)
        assert store.num_tokens == kept
        assert all(map(torch.equal, store.content, expected))
        views, oldest = store.as_it_lies
        assert all(map(torch.equal, (one.roll(-oldest, 2) for one in views), expected))
        loaded, copies = store.to_device(lambda name, shape, dtype: torch.full(shape, torch.nan, dtype=dtype), 1)
        for there, tensor in copies:
            there.copy_(tensor)
        with_new = store.num_tokens_with(1)
        assert [one.shape[2] for one in loaded] == [with_new] * 2
        for found, wanted in zip(loaded, expected, strict=True):
            assert torch.equal(found[:, :, :-1], wanted[:, :, wanted.shape[2] + 1 - with_new :])


def test_a_store_without_a_window_takes_no_more_than_it_has_room_for():
    store = Store(tokens(1, 1, 0), 3, lambda name, shape, dtype: torch.zeros(shape, dtype=dtype), "kv")
    store.append(tokens(1, 3, 1))
    with pytest.raises(RuntimeError, match="room for 3 tokens is given 4"):
        store.append(tokens(1, 1, 2))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_rows_in_blocks_have_the_last_tokens_of_each_request(data):
    """A full layer beside one with a window; prompts longer than it, steps in company that changes."""
    window, size = data.draw(st.integers(1, 11)), data.draw(st.sampled_from([1, 2, 4]))
    host = HostBlocks(EmulatedDevice(None, None, 1 << 20), Ledger("host memory", None))
    blocks = {None: 3 * (20 + 14), window: 3 * -(-window // size)}
    pools = KVPools(blocks, host, (None, window), block_tokens=size)
    written: dict[int, list[KeysValues]] = {}
    lengths = [data.draw(st.integers(1, 20)) for _ in range(3)]
    by_tokens = data.draw(st.booleans())
    for step in range(data.draw(st.integers(1, 14))):
        numbers = [0, 1, 2] if step == 0 else data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]
        counts = lengths if step == 0 else [1] * len(numbers)
        rows, new = PagedRows(pools, numbers, counts), tokens(len(numbers), max(counts), step)
        for row, (number, count) in enumerate(zip(numbers, counts, strict=True)):
            mine = KeysValues(*(one[row : row + 1, :, max(counts) - count :] for one in new))
            written.setdefault(number, []).append(mine)
        for layer, most in enumerate((1 << 20, window)):
            made = rows.make(layer, new, by_tokens=by_tokens, locked=False)
            trimmed = KeysValues(*(one[:, :, -most:] for one in new))
            if data.draw(st.booleans()):
                made.append(trimmed)
            else:
                for there, tensor in made.places(trimmed):
                    there.copy_(tensor)
            kept = [min(most, sum(part.num_tokens for part in written[number])) for number in numbers]
            assert made.num_tokens == max(kept)
            loaded, copies = made.to_device(lambda name, shape, dtype: torch.full(shape, torch.nan, dtype=dtype), 0)
            for there, tensor in copies:
                there.copy_(tensor)
            query, kernel = torch.ones(len(numbers), 2, 4), HostAttention()
            for row, (number, count) in enumerate(zip(numbers, kept, strict=True)):
                expected = last(written[number], count)
                for one, two in [*zip(made.content, expected, strict=True), *zip(loaded, expected, strict=True)]:
                    assert torch.equal(one[row, :, -count:], two[0])
                    assert not one[row, :, : max(kept) - count].any()
            room = pools.of(layer).room(layer).keys
            attended = kernel(query, room, room, table=rows.tables[(None, window)[layer]])
            for row, (number, count) in enumerate(zip(numbers, kept, strict=True)):
                keys = last(written[number], count).keys
                torch.testing.assert_close(attended[row : row + 1], kernel(query[row : row + 1], keys, keys))


# runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("family", ["gpt_oss", "mixtral"])
def test_tokens_long_behind_the_window_are_those_of_generate(family, where):
    policy = Policy.usual(by_name("cgopipe"), len(PROMPTS), 2, **WHERE[where])
    result = engine.run(made(family), PROMPTS, policy=policy, max_new_tokens=NEW)
    assert result.sequences == alone(family, 2)


@pytest.mark.parametrize("family", WINDOWED)
def test_so_it_is_in_every_family_that_has_windows(family):
    assert engine.run(made(family), PROMPTS, micro_batch_size=3, max_new_tokens=NEW).sequences == alone(family, 3)


@pytest.mark.parametrize(("family", "layers"), [("gpt_oss", (0, 2)), ("mixtral", (1, 3))])
def test_so_it_is_in_layers_that_run_on_the_host(family, layers):
    policy = Policy.usual(by_name("hybrid"), len(PROMPTS), 2, layers_on_host=layers)
    assert engine.run(made(family), PROMPTS, "hybrid", policy, max_new_tokens=NEW).sequences == alone(family, 2)


@pytest.mark.parametrize("places", [{}, {"attention": "gpu"}], ids=str)
@pytest.mark.parametrize("family", WINDOWED)
def test_so_it_is_in_a_stream(family, places):
    policy = Policy(6, 2, **places)
    asked = [engine.GenerationRequest(prompt, NEW) for prompt in PROMPTS]
    found = {one.number: one for one in engine.stream(made(family), asked, policy=policy)}
    assert [found[i].error for i in range(len(PROMPTS))] == [""] * len(PROMPTS)
    assert [found[i].sequence for i in range(len(PROMPTS))] == alone(family, 1)


@pytest.mark.parametrize("size", [1, 3])
def test_the_kernel_attends_in_sliding_windows(size, monkeypatch):
    """All that is kept is seen, but padding, even where this lies among the others."""
    family, ran = "exaone_moe", []
    by_kernel = DecodeAttention.by_kernel

    def watched(self, call, num_tokens, window):
        ran.append((window, found := by_kernel(self, call, num_tokens, window)))
        return found

    monkeypatch.setattr(DecodeAttention, "by_kernel", watched)
    result = engine.run(made(family), PROMPTS, micro_batch_size=size, max_new_tokens=NEW)
    assert result.sequences == alone(family, size)
    assert {found for window, found in ran if window} == {True}


# memory --------------------------------------------------------------------------------------------------------------

LONG = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}


def planned(model, policy, lengths, size, new, name="cgopipe"):
    batch, schedule, known = as_run(lengths, size, new), by_name(name), described(model)
    shape = policy.shape(schedule, known, len(batch.micro_batches))
    return plan_memory(schedule, shape, policy, known, batch)


@pytest.mark.parametrize("where", WHERE)
def test_the_cache_takes_what_is_planned_to_the_byte(where):
    model = wide("gpt_oss", intermediate_size=FINE["intermediate_size"], **LONG)
    lengths, size, new = [40] * 6, 2, 6
    policy = Policy.usual(by_name("cgopipe"), 6, size, **WHERE[where])
    plan = planned(model, policy, lengths, size, new)
    with EmulatedDevice(None, None, 1 << 30) as device:
        result = engine.run(model, make_prompts(*lengths), policy=policy, max_new_tokens=new, device=device)
        assert device.memory.usage.peak_bytes <= plan.peak_bytes()["device"] + ALIGNED_BYTES
    held = sum(result.trace.metadata["host_memory"].get("kv cache", {}).values())
    assert held == plan.host.get("kv cache", 0)


def test_blocks_of_a_stream_are_those_of_its_windows():
    """Two requests in at a time, each as long as it may become: the longest ones."""
    model = wide("gpt_oss", max_position_embeddings=256, **LONG)
    asked = [engine.GenerationRequest(prompt, 5) for prompt in make_prompts(60, 9, 9, 100, 9)]
    with engine.stream(model, asked, policy=Policy(2, 1), traced_steps=2) as stream:
        list(stream)
        trace = stream.trace
    rules = trace.metadata["stream"]["rules"]
    assert rules["joins"] == Joins.ANY_TIME
    assert sorted(map(str, rules["layers"])) == ["[1, 16]", "[1, None]"]
    assert rules["num_blocks"] == 2 + 1 + 1 + 1, "of 104 and of 64 tokens in blocks of 64, all and the last 16"
