"""Requests of several micro-batches as one: calls joined by rows, keys and values in blocks, models that cannot."""

import threading

import pytest
import torch
from engine_models import FAMILIES, PROMPTS, VOCAB, make, make_prompts, reference
from transformers import AutoConfig, AutoModelForCausalLM

import engine
from engine.device import EmulatedDevice, Ledger
from engine.memory import HostBlocks, KVPools, PagedRows
from engine.model import Anatomy, HostCall, KeysValues, bears_padding, can_join, is_causal
from engine.model.in_flight.calls import CannotJoinError, JoinedCalls, Passed, row_pieces
from sim.problem import Policy
from sim.schedule import by_name

LATENT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "index_topk": 4, "index_n_heads": 2,
    "index_head_dim": 16,
}  # fmt: skip

ALONE = ("minimax", "doge")
"""Families that compute other tokens from a padded prompt, in plain generate() too."""


# calls ---------------------------------------------------------------------------------------------------------------


def layer(hidden, attention_mask=None, positions=None, flag=False, cache_position=None):
    """What calls are calls of."""


def passed(rows, tokens, *args, of=2, **kwargs):
    """Some of two requests that have so many tokens, which call one layer."""
    return Passed(torch.zeros(of, 1, 3), rows, {0: HostCall(layer, args, kwargs)}, tokens)


def joined(*ones, tokens=4):
    return JoinedCalls(ones, None, tokens, torch.float32).of(0)


def test_rows_are_taken_in_as_few_pieces_as_may_be():
    tensor = torch.arange(10)
    pieces = [piece.tolist() for piece in row_pieces(tensor, [0, 1, 2, 5, 7, 8])]
    assert pieces == [[0, 1, 2], [5], [7, 8]]
    assert list(row_pieces(tensor, [])) == []


def test_tensors_have_the_rows_of_all_and_one_for_all_is_one_for_each():
    two, one = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])
    found = joined(passed([1], 4, positions=(two, two)), passed([0, 1], 4, positions=(one, two)))
    assert [tensor.flatten().tolist() for tensor in found["positions"]] == [[2, 3, 3], [2, 1, 2]]


def test_arguments_by_place_and_by_name_are_the_same():
    mask = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    found = joined(passed([0], 4, mask, flag=True), passed([0], 4, attention_mask=mask, flag=True))
    assert found["attention_mask"].shape == (2, 1, 1, 4)
    assert found["flag"] is True


@pytest.mark.parametrize(("dtype", "hidden"), [(torch.bool, False), (torch.float32, torch.finfo(torch.float32).min)])
def test_a_shorter_mask_is_filled_up_where_nobody_is_and_a_longer_one_is_cut_where_padding_is(dtype, hidden):
    seen = dtype is torch.bool
    short = torch.full((2, 1, 1, 2), seen, dtype=dtype)
    long = torch.full((2, 1, 1, 6), seen, dtype=dtype)
    long[..., :2] = hidden
    found = joined(passed([0], 2, attention_mask=short), passed([1], 6, attention_mask=long))["attention_mask"]
    assert found[:, 0, 0].tolist() == [[hidden, hidden, seen, seen], [seen] * 4]
    assert found.dtype is dtype


def test_without_masks_only_those_of_one_age_need_none():
    assert joined(passed([0], 4, attention_mask=None), passed([1], 4, attention_mask=None))["attention_mask"] is None
    found = joined(passed([0], 4, attention_mask=None), passed([1], 3, attention_mask=None))["attention_mask"]
    assert (found[:, 0, 0] < -1).tolist() == [[False] * 4, [True, False, False, False]]
    assert is_causal(found), "it hides nothing but what is before a request"


def test_a_mask_that_hides_more_is_not_one_that_hides_padding_alone():
    window = torch.tensor([[[[False, True, True, True]]]]).expand(2, 1, 1, 4)
    found = joined(passed([0], 4, attention_mask=window), passed([0], 4, attention_mask=None))["attention_mask"]
    assert not is_causal(found)
    assert found[:, 0, 0].tolist() == [[False, True, True, True], [True] * 4]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"flag": True}, {"flag": False}, "flag is a bool"),
        ({"flag": True}, {"positions": None}, "in several ways"),
        ({"positions": torch.ones(3, 1)}, {"positions": torch.ones(2, 1)}, "no row for each request"),
        ({"positions": torch.ones(3)}, {"positions": torch.ones(3)}, "no row for each request"),
        ({"positions": torch.ones(2, 4)}, {"positions": torch.ones(2, 5)}, "more than its own request"),
        ({"positions": (1, 2)}, {"positions": (1,)}, "differs in length"),
        ({"attention_mask": torch.ones(2, 4)}, {"attention_mask": None}, "no mask of one token"),
        ({"positions": object()}, {"positions": object()}, "positions is a object"),
    ],
)
def test_what_nobody_knows_how_to_join_is_not(first, second, told):
    with pytest.raises(CannotJoinError, match=told):
        joined(passed([0], 4, **first), passed([0], 4, **second))


def test_where_the_cache_ends_is_not_asked_of_anybody():
    found = joined(
        passed([0], 4, cache_position=torch.tensor([3])), passed([0], 9, cache_position=torch.tensor([8])), tokens=9
    )
    assert found["cache_position"].tolist() == [3]


# keys and values -----------------------------------------------------------------------------------------------------


def new_tokens(requests, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return KeysValues(*(torch.randn(requests, 2, tokens, dim, generator=generator) for dim in (4, 6)))


@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_rows_of_any_age_are_read_as_they_were_written(by_tokens, copied):
    """Three prompts padded to the longest, then steps in company that changes; blocks are those that others left."""
    host = HostBlocks(EmulatedDevice(None, None, 1 << 20), Ledger("host memory", None))
    blocks, written, seed = KVPools({None: 12}, host, block_tokens=4), {}, 0

    def write(numbers, counts, width):
        nonlocal seed
        seed += 1
        rows, new = PagedRows(blocks, numbers, counts), new_tokens(len(numbers), width, seed)
        layer = rows.make(0, new, by_tokens=by_tokens, locked=False)
        before = layer.num_tokens
        if copied:
            for there, tensor in layer.places(new):
                assert there.is_contiguous() or not by_tokens
                there.copy_(tensor)
        else:
            layer.append(new)
        assert (before, layer.num_tokens) == (rows.num_tokens - max(counts), rows.num_tokens)
        for row, (number, count) in enumerate(zip(numbers, counts, strict=True)):
            written.setdefault(number, []).append(KeysValues(*(one[row, :, width - count :] for one in new)))
        return rows

    def check(numbers, rows):
        layer, most = rows.get(0), rows.num_tokens
        loaded, copies = layer.to_device(lambda name, shape, dtype: torch.full(shape, torch.nan, dtype=dtype), 1)
        for there, tensor in copies:
            there.copy_(tensor)
        for row, number in enumerate(numbers):
            whole = KeysValues(*(torch.cat(parts, 1) for parts in zip(*written[number], strict=True)))
            before = most - whole.keys.shape[1]
            for kept, on_device, expected in zip(layer.content, loaded, whole, strict=True):
                assert torch.equal(kept[row, :, before:], expected)
                assert not kept[row, :, :before].any()
                assert torch.equal(on_device[row, :, before:-1], expected[:, :-1])
                assert not on_device[row, :, :before].any()
        assert layer.num_bytes == sum(part.num_bytes for number in numbers for part in written[number])

    write([7, 8, 9], [5, 9, 1], 9)
    for numbers in ([9, 7], [8, 7, 9], [7]):
        check(numbers, write(numbers, [1] * len(numbers), 1))
    blocks.release(8)
    write([3], [14], 14)
    check([3, 9], write([3, 9], [1, 1], 1))


# families ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_can_but_those_that_do_not_bear_padding(family):
    model = make(family)
    assert can_join(model, Anatomy.of(model).layers) == bears_padding(model) == (family not in ALONE)


def with_recurrent_state():
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_next", **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def test_layers_with_a_recurrent_state_cannot_and_who_enters_together_stays_together():
    model = with_recurrent_state()
    assert bears_padding(model)
    assert not can_join(model, Anatomy.of(model).layers)
    trace = check_model(model, "cgopipe")
    assert trace.metadata["stream"]["rules"]["joins"] == "together"
    assert max(len(mine) for mine in decoding(trace)) == 3


def test_layers_that_choose_tokens_by_an_indexer_cannot():
    """What it knows of earlier tokens lies beside the keys and values, of one batch; and padding is chosen, too."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v32", **LATENT)).eval()
    assert not bears_padding(model)
    assert not can_join(model, Anatomy.of(model).layers)


def test_a_model_that_changes_what_a_layer_made_cannot():
    model = make.__wrapped__("mixtral")
    layers = Anatomy.of(model).layers
    assert can_join(model, layers)
    layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
    assert not can_join(model, layers)


PROMPTS_TWICE = PROMPTS * 2
LIMITS = [3, 12, 1, 7, 12, 5, 9, 4, 11, 2, 6, 8, 10, 3]


def check_family(family, name, **places):
    return check_model(make(family), name, **places)


def check_model(model, name, **places):
    policy = Policy.usual(by_name(name), 6, 3, **places)
    asked = [engine.GenerationRequest(*pair) for pair in zip(PROMPTS_TWICE, LIMITS, strict=True)]
    with EmulatedDevice(None, None, 1 << 30) as device:
        stream = engine.stream(model, asked, name, policy, device=device, traced_steps=99)
        found = {one.number: one for one in stream}
        assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
    for number, (prompt, most) in enumerate(zip(PROMPTS_TWICE, LIMITS, strict=True)):
        assert (found[number].sequence, found[number].error) == (reference(model, [prompt], 1, most)[0], "")
    return stream.trace


def decoding(trace):
    """Of each micro-batch in each step the requests that decode, with the tokens that they have then."""
    for step in trace.metadata["stream"]["steps"]:
        for mine in step["composition"]["decoding"]:
            yield [(one[0], one[1]) for one in mine]


def test_requests_join_while_others_of_another_age_decode():
    trace = check_family("mixtral", "cgopipe")
    ages = [{context - len(PROMPTS_TWICE[request]) for request, context in mine} for mine in decoding(trace)]
    assert max(map(len, ages)) == 3


@pytest.mark.parametrize("family", ALONE)
def test_who_does_not_bear_padding_is_computed_alone(family):
    trace = check_family(family, "cgopipe")
    assert {len(mine) for mine in decoding(trace)} <= {0, 1}


PLACES = [("cgopipe", {}), ("cgopipe", {"attention": "gpu"}), ("hybrid", {"experts_on_host": 0.5, "groups": 2})]
NOT_APART = ("llama4_text", "jetmoe", "doge", "dbrx")
"""Families whose experts cannot be computed apart from their layers."""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("family", "name", "places"),
    [(family, *one) for family in FAMILIES for one in PLACES if one[0] != "hybrid" or family not in NOT_APART],
)
def test_every_family(family, name, places):
    check_family(family, name, **places)


@pytest.mark.parametrize("places", [{}, {"attention": "gpu"}], ids=str)
@pytest.mark.parametrize("how", ["batch", "stream"])
def test_the_cache_is_there_before_the_first_task(how, places, monkeypatch):
    """Memory that is new takes long, and would be paid for by the tasks that store keys and values."""
    taken, take = {}, HostBlocks.take

    def told(self, part, *what, **how):
        block = take(self, part, *what, **how)
        taken.setdefault(id(block), (str(part), threading.current_thread().name, block))  # which lives on, as its id
        return block

    monkeypatch.setattr(HostBlocks, "take", told)
    policy, model = Policy.usual(by_name("cgopipe"), 4, 2, **places), make("mixtral")
    with EmulatedDevice(None, None, 1 << 30) as device:
        if how == "batch":
            engine.run(model, PROMPTS, policy=policy, max_new_tokens=2, device=device)
        else:
            list(engine.stream(model, PROMPTS, policy=policy, max_new_tokens=2, device=device))
    of_cache = {thread for part, thread, _ in taken.values() if part == "kv cache"}
    assert of_cache == {"stream" if how == "stream" else threading.current_thread().name}


def test_heads_of_requests_of_any_age_are_computed_as_one():
    """Each prompt enters alone, so that whoever is scored together has joined."""
    model, rows = make.__wrapped__("mixtral"), []
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: (rows.append(len(hidden)), forward(hidden))[1]
    prompts = make_prompts(*[7] * len(LIMITS))
    asked = [engine.GenerationRequest(*pair) for pair in zip(prompts, LIMITS, strict=True)]
    with EmulatedDevice(None, None, 1 << 30) as device:
        stream = engine.stream(model, asked, policy=Policy(6, 3), device=device, prefill_chunk=7, traced_steps=99)
        found = {one.number: one.sequence for one in stream}
    steps = [step["composition"] for step in stream.trace.metadata["stream"]["steps"]]
    assert all(len(mine) <= 1 for step in steps for mine in step["prompts"])
    of_prompts = sum(bool(mine) for step in steps for mine in step["prompts"])
    of_decode = sum(bool(mine) for step in steps for mine in step["decoding"])
    assert rows[:2] == [2, 1], "the trial of whether the model can join"
    assert len(rows[2:]) == of_prompts + of_decode, "one for each micro-batch that has somebody"
    assert max(rows) == 3
    for number, (prompt, most) in enumerate(zip(prompts, LIMITS, strict=True)):
        assert found[number] == reference(model, [prompt], 1, most)[0]
